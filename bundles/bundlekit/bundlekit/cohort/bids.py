"""BIDS: the scans of a data set as cases of a bundle, and results as a derivative.

ancpbids lists a data set's files with their entities; it needs no other package, where pybids brings a database. Which
of them make a case of a bundle is told by the channels that its metadata names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundlekit.cases.case import Case
from bundlekit.errors import BundleError, Finding, printable
from bundlekit.files import write_result
from bundlekit.report.table import COLUMNS
from bundlekit.version import __version__

DESCRIPTION = "dataset_description.json"
VERSION = "1.10.0"
_IGNORED = (
    "# Made by bundlekit",
    "records/",
    "jobs/",
    "failures.csv",
    "volumes.*",
    "*_overlay.png",
)  # of a derivative, what BIDS has no name for
_README = """# Segmentations by {bundle}

Made by {bundle} {version} from the data set {source}. Each `_dseg.nii.gz` has a table of its labels (`_dseg.tsv`) and a
sidecar (`_dseg.json`) that names the scans and the weights it comes from. `volumes.tsv` has the volumes of all.
"""
_NOT_SCANS = ("derivatives", "sourcedata", "code", "stimuli", "models")
_SCAN = re.compile(r"\.nii(\.gz)?$")
_NO_MAGNITUDE = ("phase", "real", "imag")  # of the entity `part`
_SUFFIXES = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "PDT2", "inplaneT1", "inplaneT2", "angio")


@dataclass(frozen=True)
class Wanted:
    """The scans that a channel of a bundle takes.

    Args:
        suffixes: of their names.
        enhanced: with (True) or without (False) the entity `ce`; None: either.
    """

    suffixes: tuple[str, ...]
    enhanced: bool | None = None


# by the name of a channel in a bundle's metadata
_WANTED = {
    "T1": Wanted(("T1w",), False),
    "T1ce": Wanted(("T1w",), True),
    "T2": Wanted(("T2w",)),
    "FLAIR": Wanted(("FLAIR",)),
    "MRI": Wanted(_SUFFIXES),
    "CT": Wanted(("ct", "CT")),
}


@dataclass(frozen=True)
class _Scan:
    path: Path
    entities: dict[str, str]  # as ancpbids reads them
    suffix: str

    @property
    def stem(self) -> str:
        return _SCAN.sub("", self.path.name)

    @property
    def named(self) -> dict[str, str]:
        """Entities as they are written."""
        return dict(part.split("-", 1) for part in self.stem.split("_")[:-1] if "-" in part)


def is_bids(folder: Path) -> bool:
    """Whether a folder is a BIDS data set, raw or derivative."""
    return (folder / DESCRIPTION).is_file()


def channels_of(bundle: Path) -> list[str]:
    """Names of a bundle's input channels, in their order."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    channels = metadata["network_data_format"]["inputs"]["image"]["channel_def"]
    return [channels[key] for key in sorted(channels, key=int)]


def find_entries(
    root: Path,
    channels: Sequence[str],
    fill_missing: bool = False,
    participants: Collection[str] = (),
    filters: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Entries of a datalist, a case each, and what is wrong.

    A bundle of one channel takes every scan of its kind; one of several takes a scan of each channel for every session
    of a participant. Files in `derivatives` and `sourcedata` are no scans, nor are phases, real and imaginary parts. A
    scan that is called `_T1w` and has the entity `ce` is one with contrast medium. One whose name is not as BIDS has it
    is a finding.

    Args:
        root: of the data set.
        channels: as `channels_of` gives them.
        fill_missing: a scan that is not there is "".
        participants: labels, with or without "sub-"; none: all.
        filters: for a channel, values that the entities of its scans must have, e.g. {"T1": {"acq": "mprage"}}; None
            for an entity that must not be there.

    Raises:
        BundleError: for a participant, a channel or an entity that there is not, a damaged
            `dataset_description.json`, or if ancpbids is not installed.
    """
    root = root.resolve()
    _description(root)
    filters = dict(filters or {})
    if unknown := set(filters) - set(channels):
        expected = ", ".join(channels)
        raise BundleError(f"the filter file names {', '.join(sorted(unknown))}; expected some of {expected}.")
    layout = _layout(root)
    _refuse_entities(filters, [entity.value["name"] for entity in layout.schema.EntityEnum])
    scans, odd = _scans(layout, root, sorted({suffix for channel in channels for suffix in _WANTED[channel].suffixes}))
    there = {scan.named["sub"] for scan in scans} | {_participant(root, file) for file in odd}
    labels = {label.removeprefix("sub-") for label in participants}
    if missing := labels - there:
        raise BundleError(f"{root} has no scan of {', '.join(sorted(missing))}; there are {_some(there)}.")
    groups: dict[tuple[str, ...], dict[str, list[_Scan]]] = {}
    for scan in scans:
        if labels and scan.named["sub"] not in labels:
            continue
        for channel in channels:
            if _fits(scan, _WANTED[channel], filters.get(channel, {})):
                own = (str(scan.path),) if len(channels) == 1 else (scan.named["sub"], scan.named.get("ses", ""))
                groups.setdefault(own, {}).setdefault(channel, []).append(scan)
    entries: list[dict[str, Any]] = []
    findings = [_misnamed(file) for file in odd if not labels or _participant(root, file) in labels]
    for group in groups.values():
        wrong = _wrong(group, channels, fill_missing)
        if wrong:
            findings.append(wrong)
            continue
        chosen = [group[channel][0] if channel in group else None for channel in channels]
        name = _name([scan for scan in chosen if scan is not None])
        images = [str(scan.path) if scan is not None else "" for scan in chosen]
        entries.append({"image": images, "case": name, "patient": name.split("_")[0]})
    return sorted(entries, key=lambda entry: str(entry["case"])), findings


def folder_of(case: str) -> Path:
    """Folder of a case's results in a derivative."""
    parts = [part for part in case.split("_") if part.startswith(("sub-", "ses-"))]
    return Path(*parts, "anat")


def require_derivative(out: Path, bundle: str) -> None:
    """Refuse a folder that is another data set.

    Raises:
        BundleError: if it is, or its `dataset_description.json` is damaged.
    """
    if not is_bids(out):
        return
    made_by = _description(out).get("GeneratedBy")
    first = made_by[0] if isinstance(made_by, list) and made_by else {}
    name = first.get("Name") if isinstance(first, dict) else None
    if name != bundle:
        found, fix = f"a data set of {name or 'another kind'}", "give a folder for this bundle alone"
        raise BundleError(Finding(str(out / DESCRIPTION), found, f"none, or one of {bundle}", fix))


def begin_derivative(out: Path, bundle: str, version: str, source: Path) -> None:
    """Write what makes a folder a derivative: `dataset_description.json`, a README, and what a validator passes over.

    Args:
        out: the folder.
        bundle: that makes it.
        version: of the bundle.
        source: the data set that it is made from.

    Raises:
        BundleError: if the folder is another data set, or a file cannot be written.
    """
    require_derivative(out, bundle)
    there = _description(out) if is_bids(out) else {}
    others = there.get("GeneratedBy", [])[1:]
    description = {
        **there,  # with what its owner has added
        "Name": f"Segmentations by {bundle}",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": bundle, "Version": version, "Description": f"with bundlekit {__version__}"}, *others],
        "SourceDatasets": [{"URL": source.as_uri()}],
        "DatasetLinks": {"raw": source.as_uri()},
    }
    _write(out / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    _write_ours(out / "README.md", _README.format(bundle=bundle, version=version, source=source))
    _write_ours(out / ".bidsignore", "\n".join(_IGNORED) + "\n")
    columns = {
        "participant_id": {"Description": "Participant"},
        "session_id": {"Description": "Session; n/a where the data set has none"},
        **COLUMNS,
    }
    _write(out / "volumes.json", json.dumps(columns, indent=2) + "\n")


def write_sidecars(
    written: Sequence[Path],
    case: Case,
    classes: Sequence[str],
    regions: Sequence[str],
    source: Path,
    made_from: Mapping[str, Any],
) -> list[Path]:
    """Beside a mask: its JSON sidecar and the table of its labels; beside probabilities, their sidecar.

    Args:
        written: files of the case, its mask (`..._dseg.nii.gz`) first.
        case: as `find_cases` gives it.
        classes: names of the classes but the background.
        regions: names of what the probabilities are of, where that is no class.
        source: the data set.
        made_from: as `pipeline.made_from` gives it.

    Raises:
        BundleError: if a file cannot be written.
    """
    stem = str(written[0]).removesuffix(".nii.gz")
    sources = [_uri(Path(file), source) for file in case["image"] if file]
    about = {
        "Sources": sources,
        "SpatialReference": sources[0],
        "Manual": False,
        "Bundle": made_from["bundle"],
        "BundleVersion": made_from["version"],
        "WeightsSHA256": made_from["weights_sha256"],
    }
    names = ["background", *classes]
    table = [f"{value}\t{name}" for value, name in zip(case["label_values"], names, strict=True)]
    files = {
        Path(f"{stem}.json"): json.dumps(about, indent=2) + "\n",
        Path(f"{stem}.tsv"): "\n".join(["index\tname", *table]) + "\n",
    }
    probabilities = Path(f"{stem.removesuffix('_dseg')}_probseg.nii.gz")
    if probabilities in written:
        import nibabel as nib

        shape: Any = nib.load(probabilities).shape  # type: ignore[attr-defined]
        kinds = {len(classes): list(classes), len(regions): list(regions), len(names): names}
        of = kinds.get(shape[3] if len(shape) > 3 else 1, [])
        more = {"LabelMap": of} if of else {}
        files[Path(str(probabilities).removesuffix(".nii.gz") + ".json")] = (
            json.dumps({**about, **more}, indent=2) + "\n"
        )
    for path, text in files.items():
        _write(path, text)
    return list(files)


def write_volumes_tsv(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `volumes.tsv`: the rows of `volumes.csv`, with participant and session before them.

    Rows of a case that is no participant's, of a folder that had other results before, are left out.

    Raises:
        BundleError: if it cannot be written.
    """
    lines = ["\t".join(("participant_id", "session_id", *COLUMNS))]
    for row in rows:
        if not str(row["case"]).startswith("sub-"):
            continue
        parts = {part[:4]: part for part in str(row["case"]).split("_")}
        values = [parts["sub-"], parts.get("ses-", ""), *(str(row[column]) for column in COLUMNS)]
        lines.append("\t".join(" ".join(value.split()) or "n/a" for value in values))
    _write(out / "volumes.tsv", "\n".join(lines) + "\n")


def read_filters(file: str | Path) -> dict[str, dict[str, Any]]:
    """Filters from a JSON file: {"T1": {"acq": "mprage"}, ...}.

    Raises:
        BundleError: if it cannot be read, or is something else.
    """
    try:
        content = json.loads(Path(file).expanduser().read_text())
        if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
            raise ValueError("no object of objects")
    except (OSError, ValueError) as error:
        expected = 'entities by channel, such as {"T1": {"acq": "mprage"}}'
        raise BundleError(Finding(str(file), f"cannot be read ({error})", expected, "mend the file")) from error
    return content


def _layout(root: Path) -> Any:
    """ancpbids' view of a data set.

    Raises:
        BundleError: if it is not installed.
    """
    try:
        from ancpbids import BIDSLayout
    except ImportError as error:
        raise BundleError(
            f"ancpbids is not installed, which reads BIDS data sets ({error}): pip install -e '.[cohort]', or pip "
            "install ancpbids."
        ) from None
    return BIDSLayout(str(root))


def _scans(layout: Any, root: Path, suffixes: list[str]) -> tuple[list[_Scan], list[Path]]:
    """The scans of these suffixes, and files that are called like one, with a name that BIDS does not have."""
    found, odd = [], []
    looks_like_one = re.compile(rf"(.*_)?({'|'.join(suffixes)})\.nii(\.gz)?", re.IGNORECASE)
    for file in layout.dataset.to_generator():
        if not isinstance(file, layout.schema.File) or not looks_like_one.fullmatch(file.name):
            continue
        path = Path(file.get_absolute_path())
        folder = path.relative_to(root).parts[0]
        parsed = isinstance(file, layout.schema.Artifact) and file.name.startswith("sub-")
        if folder in _NOT_SCANS:
            continue
        if parsed and file.suffix in suffixes and file.extension in (".nii", ".nii.gz"):
            scan = _Scan(path, {key: str(value) for key, value in file.entities.items()}, str(file.suffix))
            if scan.named.get("part") not in _NO_MAGNITUDE:
                found.append(scan)
        elif folder.startswith("sub-"):
            odd.append(path)
    return sorted(found, key=lambda scan: str(scan.path)), sorted(odd)


def _fits(scan: _Scan, wanted: Wanted, filters: Mapping[str, Any]) -> bool:
    if scan.suffix not in wanted.suffixes:
        return False
    if wanted.enhanced is not None and wanted.enhanced != ("ce" in scan.named):
        return False
    for entity, value in filters.items():
        allowed = value if isinstance(value, list) else [value]
        allowed = [None if one is None else str(one) for one in allowed]
        if scan.named.get(entity) not in allowed and scan.entities.get(entity) not in allowed:
            return False
    return True


def _misnamed(file: Path) -> Finding:
    expected = "entities such as sub-01_ses-1_acq-mprage before the suffix, of letters and digits, and .nii or .nii.gz"
    return Finding(str(file), "a scan whose name is not as BIDS has it", expected, "rename the file")


def _participant(root: Path, file: Path) -> str:
    return file.relative_to(root).parts[0].removeprefix("sub-")


def _refuse_entities(filters: Mapping[str, Mapping[str, Any]], known: Sequence[str]) -> None:
    """Refuse filters by what is no entity, which would choose nothing or everything.

    Raises:
        BundleError: naming the first channel's.
    """
    for channel, entities in filters.items():
        if unknown := set(entities) - set(known):
            raise BundleError(
                f"the filter file has {', '.join(sorted(unknown))} for {channel}; expected entities as they are "
                f"written in names of files: {', '.join(known)}."
            )


def _wrong(group: Mapping[str, Sequence[_Scan]], channels: Sequence[str], fill_missing: bool) -> Finding | None:
    folder = str(next(iter(group.values()))[0].path.parent)
    missing = [channel for channel in channels if channel not in group]
    doubled = [channel for channel, scans in group.items() if len(scans) > 1]
    if missing and not fill_missing:
        fix = "add it, or go on without it, for a worse mask, where the bundle can: --fill_missing True"
        kinds = ", ".join(f"{channel} ({_pattern(_WANTED[channel])})" for channel in missing)
        there = ", ".join(channel for channel in channels if channel in group)
        return Finding(folder, f"no {kinds} beside {there}", "a scan of each", fix)
    if doubled:
        files = ", ".join(scan.path.name for channel in doubled for scan in group[channel])
        fix = 'choose by their entities: --bids_filter_file FILE with {"' + doubled[0] + '": {"run": "1"}}'
        return Finding(folder, f"more than one {' and '.join(doubled)}: {files}", "one in each session", fix)
    return None


def _pattern(wanted: Wanted) -> str:
    return f"{'_ce-*' if wanted.enhanced else ''}_{wanted.suffixes[0]}"


def _name(scans: Sequence[_Scan]) -> str:
    """Name of a case: the entities that its scans share.

    Of one scan that is neither T1w nor CT, its suffix follows in `desc`, the last entity, which only derivatives have.
    """
    first = scans[0]
    if len(scans) == 1:
        name = first.stem.rpartition("_")[0]
        before, _, value = name.partition("_desc-")
        return name if first.suffix in ("T1w", "ct", "CT") else f"{before}_desc-{value}{first.suffix}"
    shared = [part for part in first.stem.split("_")[:-1] if all(part in scan.stem.split("_") for scan in scans)]
    return "_".join(part for part in shared if not part.startswith(("ce-", "desc-")))


def _uri(file: Path, source: Path) -> str:
    """BIDS URI of a file of the data set."""
    try:
        return f"bids:raw:{file.absolute().relative_to(source).as_posix()}"
    except ValueError:
        return file.absolute().as_uri()


def _write(path: Path, text: str) -> None:
    write_result(path, lambda file: file.write(printable(text).encode()), "output_dir")


def _write_ours(path: Path, text: str) -> None:
    """Write a file if there is none, or one with the same first line."""
    first = text.split("\n")[0]
    if not path.exists() or path.read_text(errors="replace").split("\n")[0] == first:
        _write(path, text)


def _description(root: Path) -> dict[str, Any]:
    """What a data set says of itself.

    Raises:
        BundleError: if it cannot be read.
    """
    path = root / DESCRIPTION
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        expected = 'a JSON object, such as {"Name": "...", "BIDSVersion": "1.10.0"}'
        raise BundleError(Finding(str(path), f"cannot be read ({error})", expected, "mend the file")) from error
    return content


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:10]) + (", ..." if len(names) > 10 else "")
