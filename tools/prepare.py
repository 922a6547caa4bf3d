"""Scans as they leave the scanner, made fit for the bundles that want BraTS-like cases, and masks brought back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from bundlekit import StripSkulld
from bundlekit.brats.naming import MODALITIES, RESTORED
from bundlekit.command_line import beside_defaults
from bundlekit.configs import refuse_settings
from bundlekit.files import sha256_of
from bundlekit.images.nifti import read_volume
from bundlekit.images.writing import are_of, written_by
from bundlekit.preparation.preparing import prepare_case
from bundlekit.preparation.record import read_record
from bundlekit.preparation.restoring import path_on, refuse_corrected, restore_case
from bundlekit.preparation.scans import find_scans, has_scans, holds_dicom
from bundlekit.report.handler import WriteVolumes
from bundlekit.run import require_device
from tools.bundles import ROOT, parse, plain_errors

_BUNDLES = ("brats_resunet", "brain_metastasis_attention_unet")
_OF_SEGMENT = ("dataset_dir", "datalist", "output_dir", "save_probabilities")  # what `segment` gives to inference.yaml
_MASKS = "brain_mask_unet"


def prepare(
    folder: str | None = None,
    out: str | None = None,
    t1: str | None = None,
    t1ce: str | None = None,
    t2: str | None = None,
    flair: str | None = None,
    case: str | None = None,
    reference: str | None = None,
    fill_missing: bool = False,
    accept_doubtful: bool = False,
    n4: bool = False,
    mask_bundle: str | None = None,
    device: str | None = None,
    seed: int = 0,
    study: str | None = None,
    dicomweb: str | None = None,
    dicomweb_user: str | None = None,
) -> None:
    """Register the scans of a head, resample them to 1 mm and strip them, as the bundles for BraTS data want them.

    Writes CASE_{t1,t1ce,t2,flair}.nii.gz and prepared.json into OUT. Scans that are so already are copied.

    Example: python -m tools prepare --t1 A.nii.gz --t1ce B.nii.gz --t2 C.nii.gz --flair D.nii.gz --out OUT

    Args:
        folder: with the scans of one head in BraTS-like names, in place of the four files; or with a DICOM study.
        out: folder for the prepared case.
        t1: NIfTI file, before contrast medium; or of a DICOM study number or UID of the series.
        t1ce: the same, after contrast medium.
        t2: the same.
        flair: the same.
        case: name of the case; None: as the files are named, of a DICOM study a name that tells nothing.
        reference: modality that stays where it is; None: T1ce, else T1, T2 or FLAIR.
        fill_missing: go on where one or two modalities are missing.
        accept_doubtful: go on where a registration or a brain mask is doubtful; prepared.json tells it.
        n4: take the bias field away (N4).
        mask_bundle: folder of brain_mask_unet; None: the one of this project.
        device: that computes the brain masks; None: the GPU if there is one.
        seed: of the registration.
        study: UID of the DICOM study, where the folder has several, or that is fetched.
        dicomweb: address of a DICOMweb server, from which the study is fetched into `folder`; None there: OUT/dicom.
        dicomweb_user: of that server, with the password in the environment variable DICOMWEB_PASSWORD.

    Raises:
        ValueError: for what is missing, damaged, open or doubtful; nothing is written then but what was fetched.
    """
    _required(out, "--out", "the folder for the prepared case")
    flags = {"fill_missing": fill_missing, "accept_doubtful": accept_doubtful, "n4": n4}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"--{name} is {value!r}; expected True or False.")
    given = zip(MODALITIES, (t1, t1ce, t2, flair), strict=True)
    files: dict[str, Any] = {modality: str(file) for modality, file in given if file is not None}
    server = _server(dicomweb, dicomweb_user)
    if server is not None:
        folder = str(folder or Path(str(out)) / "dicom")
        _fetch(server, study, folder)
    if folder is not None:
        case, files = _of_folder(str(folder), files, case, study, fill_missing, out)
    elif study is not None:
        raise ValueError("--study is given without a folder; give the folder of the DICOM study, or --dicomweb URL.")
    if not files:
        raise ValueError(
            "no scan is given; give --t1, --t1ce, --t2 and --flair, or a folder with BraTS-like names or DICOM."
        )
    masks = Path(mask_bundle).expanduser() if mask_bundle else ROOT / _MASKS
    require_device(device or _device())
    strip = StripSkulld(masks, device=device or _device())
    record = prepare_case(files, str(out), strip.mask, case, reference, seed=int(seed), **flags)
    for modality, entry in record["modalities"].items():
        move = entry["registration"]
        told = [f"rotated by {move['rotation_degrees']:.1f} degrees", f"brain overlap {entry['brain_overlap']:.2f}"]
        if entry["brain_scanned"] < 0.995:
            told.append(f"{1 - entry['brain_scanned']:.1%} of the brain zeros, or outside of its field of view")
        print(f"{modality:<6}" + "; ".join(told + [f"DOUBTFUL: {doubt}" for doubt in move["doubts"]]))
    print(Path(str(out)) / "prepared.json")


def _server(url: str | None, user: str | None) -> Any:
    """The DICOMweb server of this address; None if there is no address."""
    if url is not None:
        return _dicom("dicomweb").DicomWeb(str(url), None if user is None else str(user))
    if user is not None:
        raise ValueError("--dicomweb_user is given without a server; give --dicomweb URL.")
    return None


def _fetch(server: Any, study: str | None, folder: str) -> None:
    """Bring a study into the folder."""
    _required(study, "--study", f"the UID of the study on {server.url}")
    where = Path(folder).expanduser()
    new = [path for path in (where, *where.parents) if not path.exists()]
    if new:
        where.parent.mkdir(parents=True, exist_ok=True)
        where.mkdir(mode=0o700)  # patients' names are nobody else's
    try:
        fetched, there = server.fetch(str(study), folder)
    except BaseException:
        with contextlib.suppress(OSError):  # one that holds a file stays, to go on with
            for path in new:
                path.rmdir()
        raise
    print(f"{folder}: {fetched} files fetched, {there} were there (they hold the patient's name)", flush=True)


def _where_to_store(store: bool, url: str | None, user: str | None, seg_on: str | None) -> Any:
    """The DICOMweb server that gets the DICOM-SEG; None if none does."""
    if not store:
        return None
    if url is None:
        raise ValueError("--store True needs the server that gets the DICOM-SEG; give --dicomweb URL.")
    if str(seg_on).lower() == "none":
        raise ValueError("--store True and --seg_on none are given: without a DICOM-SEG there is nothing to store.")
    return _server(url, user)


def _refuse_nothing_to_store(server: Any, stacks: Mapping[str, Any]) -> None:
    if server is not None and not stacks:
        raise ValueError(
            "--store True is given, and there is no DICOM-SEG: the reference was a NIfTI file; "
            "name a modality that was DICOM (--seg_on)."
        )


def _of_folder(
    folder: str, given: dict[str, str], case: str | None, study: str | None, fill_missing: bool, out: str | None = None
) -> tuple[str, dict[str, Any]]:
    """Name of the case and scans by modality, of a folder with BraTS-like names or of a DICOM study."""
    if not Path(folder).expanduser().exists():
        raise ValueError(f"{folder}: no such folder; expected one with the scans of one head, or a DICOM study.")
    nifti, dicom = has_scans(folder), holds_dicom(folder)
    if nifti and dicom:
        raise ValueError(f"{folder} holds both NIfTI scans and DICOM files; expected a folder of one of both.")
    if not dicom:
        if given:
            told = "scans with BraTS-like names" if nifti else "no DICOM file"
            raise ValueError(
                f"--{', --'.join(given).lower()} and the folder {folder} are given, which holds {told}; expected files "
                "alone, or the folder of a DICOM study."
            )
        if study is not None:
            raise ValueError(f"--study is given, and {folder} holds no DICOM; expected the folder of a DICOM study.")
        found, files = find_scans(folder, out)
        return found if case is None else case, dict(files)
    choosing = _dicom("dicom_choice")
    read = _dicom("dicom_series").read_study(folder, study)
    numbers = {stack.number for stack in read.stacks}
    series = numbers | {number.partition(":")[0] for number in numbers}  # which a file may be called, too
    files = {m: value for m, value in given.items() if value not in series and Path(value).expanduser().is_file()}
    choice = choosing.choose(read, {m: value for m, value in given.items() if m not in files}, list(files))
    print(choice.table(), flush=True)
    choosing.refuse_open(choice, read, list(files), fill_missing)
    for line in choosing.without(choice, list(files)):
        print(line, flush=True)
    stacks = {modality: taken.stack for modality, taken in choice.taken.items()}
    return read.pseudonym if case is None else case, {**files, **stacks}


def _dicom(module: str) -> Any:
    """A module of bundlekit that needs the packages of the extra `dicom`."""
    try:
        return import_module(f"bundlekit.preparation.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("pydicom", "highdicom", "dicomweb_client", "requests"):
            raise
        raise ValueError(
            f"{error.name} is not installed, which DICOM needs: python -m pip install -e '.[dicom]'"
        ) from None


def restore(
    prepared: str,
    out: str,
    mask: str | None = None,
    probabilities: str | None = None,
    sources: str | None = None,
    seg_on: str | None = "reference",
    weights: str | None = None,
    dicomweb: str | None = None,
    dicomweb_user: str | None = None,
    store: bool = False,
) -> None:
    """Bring the mask of a prepared case back to the grid of each scan it was prepared from.

    Writes CASE_seg_on_{t1,t1ce,t2,flair}.nii.gz and CASE_volumes.json (ml of each label) into OUT; of a DICOM study
    also CASE_seg_on_{...}.dcm, a DICOM-SEG, which holds the patient's name.

    Example: python -m tools restore --prepared PREPARED --mask CASE_seg.nii.gz --out OUT

    Args:
        prepared: folder that `prepare` wrote.
        out: folder for the masks.
        mask: label map of the prepared case.
        probabilities: CASE_probabilities.nii.gz of the bundle, for smoother borders; None: the one beside the mask, if
            there is one that was written with it.
        sources: folder with the scans, if they were moved.
        seg_on: modality whose series the DICOM-SEG is on, "reference", "all" or "none".
        weights: checkpoint that made the mask; its SHA-256 goes into the DICOM-SEG.
        dicomweb: address of a DICOMweb server, which gets the DICOM-SEG.
        dicomweb_user: of that server, with the password in the environment variable DICOMWEB_PASSWORD.
        store: send the DICOM-SEG to that server.

    Raises:
        ValueError: if a file is missing or another one, or the server does not take the DICOM-SEG.
    """
    if (dicomweb is not None or dicomweb_user is not None) and not store:
        raise ValueError("--dicomweb is given, and nothing to do there; --store True sends the DICOM-SEG.")
    server = _where_to_store(store, dicomweb, dicomweb_user, seg_on)
    _required(mask, "--mask", "the label map of the prepared case")
    path = Path(str(mask)).expanduser()
    beside = path.with_name(path.name.replace("_seg.nii", "_probabilities.nii"))
    if probabilities is None and beside != path and beside.is_file():
        if are_of(beside, path):
            probabilities = str(beside)
        else:
            print(f"{beside} is of another run than {path}, and left out; --probabilities takes it all the same")
    name, untouched = written_by(path)
    record_file = Path(str(prepared)).expanduser() / "prepared.json"
    if untouched and path.is_file() and record_file.is_file() and path.stat().st_mtime < record_file.stat().st_mtime:
        print(f"{path} is older than {record_file}: if other scans were prepared since, segment them first")
    if not name and probabilities is not None:  # most programs that correct masks leave out who wrote them
        name = written_by(Path(probabilities).expanduser())[0]
    maker = {"name": name, "corrected": not untouched}  # of which version is not told by the mask
    if weights is not None:
        if not name:
            raise ValueError(
                f"--weights is given, but neither {path} nor probabilities beside it tell the bundle that made the "
                "mask; give --probabilities, too, or leave out --weights: a mask of unknown origin is called manual."
            )
        maker["weights"] = _hash(weights)
    stacks = _seg_stacks(seg_on, read_record(prepared), sources)
    _refuse_nothing_to_store(server, stacks)
    _restore(prepared, path, out, probabilities, sources, stacks, maker, server)


def segment(
    bundle: str, folder: str | None = None, out: str | None = None, store: bool = False, **settings: Any
) -> None:
    """Prepare the scans of a head, segment them, and bring the mask back to each scan.

    Leaves in OUT: prepared/ (the case, prepared.json), segmented/ (mask and probabilities at 1 mm),
    CASE_seg_on_{t1,t1ce,t2,flair}.nii.gz on the grid of each scan, CASE_volumes.json; of a DICOM study also
    CASE_seg_on_{...}.dcm on the series of the reference, a DICOM-SEG, which holds the patient's name.

    Example: python -m tools segment brats_resunet --t1 A.nii --t1ce B.nii --t2 C.nii --flair D.nii --out OUT

    Args:
        bundle: brats_resunet (gliomas) or brain_metastasis_attention_unet.
        folder: with the scans of one head in BraTS-like names, in place of the four files; or with a DICOM study.
        out: folder for all results; a study that is fetched (--dicomweb URL --study UID) goes into OUT/dicom, or into
            `folder` if it is given.
        store: send the DICOM-SEG to the server that the study was fetched from.
        settings: those of `prepare` (--t1 FILE to --flair FILE, --case, --reference, --fill_missing, --accept_doubtful,
            --n4, --mask_bundle, --device, --seed, --study, --dicomweb, --dicomweb_user), --seg_on of `restore`, and
            those of the bundle's inference.yaml, e.g. --flips True, --et_label 3.

    Raises:
        ValueError: for another bundle, an unknown setting, for what is missing, damaged or doubtful, and if a server
            does not give the study or does not take the DICOM-SEG.
    """
    if bundle not in _BUNDLES:
        raise ValueError(f"{bundle!r} takes no BraTS-like cases; expected {' or '.join(_BUNDLES)}.")
    _required(out, "--out", "the folder for the results")
    of_prepare = {name: settings.pop(name) for name in signature(prepare).parameters if name in settings}
    seg_on = settings.pop("seg_on", "reference")
    for name in _OF_SEGMENT:
        if name in settings:
            raise ValueError(f"--{name} cannot be given: `segment` chooses it; results go to --out.")
    known: Any = parse(bundle, "inference.yaml").config
    refuse_settings(known, settings, f"{bundle}'s inference.yaml")
    root = Path(str(out)).expanduser()
    server = _where_to_store(store, of_prepare.get("dicomweb"), of_prepare.get("dicomweb_user"), seg_on)
    if of_prepare.get("dicomweb") is not None and folder is None:
        folder = str(root / "dicom")
    device = of_prepare["device"] = of_prepare.get("device") or _device()
    _refuse_losing(root)
    prepare(folder, str(root / "prepared"), **of_prepare)
    record = read_record(root / "prepared")
    stacks = _seg_stacks(seg_on, record, None)  # what cannot be is told before anything is segmented
    _refuse_nothing_to_store(server, stacks)
    _refuse_replacing(record, root, stacks)
    where = {"dataset_dir": str(root / "prepared"), "output_dir": str(root / "segmented"), "device": device}
    _infer(bundle, {**where, "save_probabilities": True, "num_workers": 0}, settings, bool(record["missing"]))
    name = root / "segmented" / record["case"]
    weights = parse(bundle, "inference.yaml", **settings).get_parsed_content("weights")
    hashes = [_hash(file) for file in ([weights] if isinstance(weights, str) else weights)]
    maker = {"name": bundle, "version": _version(bundle), "weights": ";".join(hashes)}
    _restore(
        root / "prepared", Path(f"{name}_seg.nii.gz"), root, f"{name}_probabilities.nii.gz", None, stacks, maker, server
    )


def _restore(
    prepared: str | Path,
    mask: Path,
    out: str | Path,
    probabilities: str | None,
    sources: str | None,
    stacks: Mapping[str, Any],
    maker: dict[str, Any],
    server: Any = None,
) -> None:
    """Masks on the grid of each scan, DICOM-SEG on the stacks of these modalities, and the volumes printed.

    The DICOM-SEG go to a server if one is given.
    """
    writing: Any = _dicom("dicom_seg") if stacks else None
    if stacks and mask.is_file():  # before anything is written
        writing.check_values(read_volume(str(mask)), mask)
    record = read_record(prepared)
    _refuse_replacing(record, out, stacks)
    volumes = restore_case(prepared, mask, out, probabilities, sources)
    written = []
    for modality, stack in stacks.items():
        restored = path_on(record, modality, out)
        path = _seg_path(restored)
        writing.write_seg(stack, restored, path, record["case"], writing.Maker(**maker))
        print(f"{path} (holds the patient's name, as its study does)")
        written.append(path)
    for path in sorted(Path(out).expanduser().glob(f"{record['case']}{RESTORED}*.dcm")):
        if path not in written:
            print(f"{path} is of an earlier run; it may hold another mask")
    _tell(volumes)
    for path in written if server is not None else ():
        server.store(path)
        print(f"{path} stored on {server.url}")


def _seg_path(restored: Path) -> Path:
    """The DICOM-SEG beside a mask on a scan."""
    return restored.with_name(restored.name.removesuffix(".nii.gz") + ".dcm")


def _refuse_replacing(record: Mapping[str, Any], out: str | Path, stacks: Mapping[str, Any]) -> None:
    """Whatever somebody corrected stays: masks on the scans, and DICOM-SEG of these modalities."""
    refuse_corrected(record, out)
    for modality in stacks:
        _dicom("dicom_seg").refuse_other(_seg_path(path_on(record, modality, out)))


def _refuse_losing(root: Path) -> None:
    """Before another case is prepared in its place: a mask that somebody corrected belongs to the one that is there."""
    if not (root / "prepared" / "prepared.json").is_file():
        return
    record = read_record(root / "prepared")
    refuse_corrected(record, root)
    mask = root / "segmented" / f"{record['case']}_seg.nii.gz"
    if mask.is_file() and not written_by(mask)[1]:
        raise ValueError(
            f"{mask} is not as it was written, and {root / 'prepared'} holds the scans that it lies on; restore it "
            f"(python -m tools restore --prepared {root / 'prepared'} --mask {mask} --out DIR), or give another --out."
        )


def _seg_stacks(asked: str | None, record: Mapping[str, Any], sources: str | None) -> dict[str, Any]:
    """Slices on which a DICOM-SEG is written, by modality.

    Args:
        asked: modality, "all", "none" or None (which is what Fire makes of it); "reference", if it came from DICOM.
        record: of the prepared case.
        sources: folder of the DICOM files, if they were moved.
    """
    entries = record["modalities"]
    dicom = [modality for modality, entry in entries.items() if "dicom" in entry]
    word = str(asked).lower()
    if word == "reference":
        modalities = [modality for modality in dicom if modality == record.get("reference")]
    elif word in ("none", "all"):
        modalities = dicom if word == "all" else []
    else:
        modalities = [modality for modality in entries if modality.lower() == word]
        if not modalities:
            raise ValueError(f"--seg_on is {asked!r}; expected reference, all, none or one of {', '.join(entries)}.")
    if word == "reference" and dicom and not modalities:
        print(f"no DICOM-SEG: the {record['reference']} was no DICOM; --seg_on {dicom[0]} writes it on that series")
    if not modalities:
        return {}
    source_of = _dicom("dicom_seg").source_of
    return {modality: source_of(entries[modality], modality, sources) for modality in modalities}


def _version(bundle: str) -> str:
    """Version of a bundle of this project; "" if there is no such bundle."""
    metadata = ROOT / bundle / "configs" / "metadata.json"
    return str(json.loads(metadata.read_text())["version"]) if bundle and metadata.is_file() else ""


def _hash(file: str | Path) -> str:
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"{path} is no file; expected the checkpoint that made the mask (--weights).")
    return sha256_of(path)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _required(value: Any, option: str, what: str) -> None:
    if not value:
        raise ValueError(f"{option} is missing; give {what}.")


def _infer(bundle: str, own: Mapping[str, Any], given: Mapping[str, Any], fill_missing: bool) -> None:
    """Run the bundle's inference.yaml as `monai.bundle run inferring` does, in this process.

    Args:
        bundle: its name.
        own: settings that this command chooses.
        given: those that a user gave, which volumes.csv tells.
        fill_missing: whether zeros stand for a modality.
    """
    chosen = {**given, **({"fill_missing": True} if fill_missing else {})}
    parser = parse(bundle, "inference.yaml", **{**own, **chosen})
    with plain_errors():
        parser.get_parsed_content("initialize")
        for handler in parser.get_parsed_content("handlers"):
            if isinstance(handler, WriteVolumes):
                handler.given = beside_defaults(["inference.yaml"], chosen)
        parser.get_parsed_content("inferring")


def _tell(volumes: Mapping[str, Any]) -> None:
    """Print the volumes of a restored mask."""
    rows = {"1 mm": volumes["prepared"], **volumes["on"]}
    for name, row in rows.items():
        text = ", ".join(f"label {label} {ml:.1f} ml" for label, ml in row.items())
        print(f"{name:<6}{text or 'nothing found'}")
