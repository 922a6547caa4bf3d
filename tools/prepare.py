"""Scans as they leave the scanner, made fit for the bundles that want BraTS-like cases, and masks brought back."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch

from bundlekit import StripSkulld
from bundlekit.brats.naming import MODALITIES
from bundlekit.errors import bundle_error_in
from bundlekit.preparation.preparing import prepare_case
from bundlekit.preparation.record import read_record
from bundlekit.preparation.restoring import restore_case
from bundlekit.preparation.scans import find_scans
from bundlekit.values import wrong_value
from tools.bundles import ROOT, parse

_BUNDLES = ("brats_resunet", "brain_metastasis_attention_unet")
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
) -> None:
    """Register the scans of a head, resample them to 1 mm and strip them, as the bundles for BraTS data want them.

    Writes CASE_{t1,t1ce,t2,flair}.nii.gz and prepared.json into OUT. Scans that are so already are copied.

    Example: python -m tools prepare --t1 A.nii.gz --t1ce B.nii.gz --t2 C.nii.gz --flair D.nii.gz --out OUT

    Args:
        folder: with the scans of one head in BraTS-like names, in place of the four files.
        out: folder for the prepared case.
        t1: NIfTI file, before contrast medium.
        t1ce: NIfTI file, after contrast medium.
        t2: NIfTI file.
        flair: NIfTI file.
        case: name of the case; None: as the files are named.
        reference: modality that stays where it is; None: T1ce, else T1.
        fill_missing: go on where one modality is missing.
        accept_doubtful: go on where a registration or a brain mask is doubtful; prepared.json tells it.
        n4: take the bias field away (N4).
        mask_bundle: folder of brain_mask_unet; None: the one of this project.
        device: that computes the brain masks; None: the GPU if there is one.
        seed: of the registration.

    Raises:
        ValueError: for what is missing, damaged or doubtful; nothing is written then.
    """
    _required(out, "--out", "the folder for the prepared case")
    flags = {"fill_missing": fill_missing, "accept_doubtful": accept_doubtful, "n4": n4}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"--{name} is {value!r}; expected True or False.")
    given = zip(MODALITIES, (t1, t1ce, t2, flair), strict=True)
    files = {modality: str(file) for modality, file in given if file}
    if folder is not None:
        if files:
            raise ValueError(f"a folder ({folder}) and --{', --'.join(files).lower()} are given; expected one of both.")
        found, files = find_scans(folder)
        case = found if case is None else case
    if not files:
        raise ValueError("no scan is given; give --t1, --t1ce, --t2 and --flair, or a folder with BraTS-like names.")
    masks = Path(mask_bundle).expanduser() if mask_bundle else ROOT / _MASKS
    strip = StripSkulld(masks, device=device or _device())
    record = prepare_case(files, str(out), strip.mask, case, reference, seed=int(seed), **flags)
    for modality, entry in record["modalities"].items():
        move = entry["registration"]
        told = [f"rotated by {move['rotation_degrees']:.1f} degrees", f"brain overlap {entry['brain_overlap']:.2f}"]
        print(f"{modality:<6}" + "; ".join(told + [f"DOUBTFUL: {doubt}" for doubt in move["doubts"]]))
    print(Path(str(out)) / "prepared.json")


def restore(
    prepared: str,
    out: str,
    mask: str | None = None,
    probabilities: str | None = None,
    sources: str | None = None,
) -> None:
    """Bring the mask of a prepared case back to the grid of each scan it was prepared from.

    Writes CASE_seg_on_{t1,t1ce,t2,flair}.nii.gz and CASE_volumes.json (ml of each label) into OUT.

    Example: python -m tools restore --prepared PREPARED --mask CASE_seg.nii.gz --out OUT

    Args:
        prepared: folder that `prepare` wrote.
        out: folder for the masks.
        mask: label map of the prepared case.
        probabilities: CASE_probabilities.nii.gz of the bundle, for smoother borders; None: the one beside the mask, if
            there is one.
        sources: folder with the scans, if they were moved.

    Raises:
        ValueError: if a file is missing or another one.
    """
    _required(mask, "--mask", "the label map of the prepared case")
    path = Path(str(mask)).expanduser()
    beside = path.with_name(path.name.replace("_seg.nii", "_probabilities.nii"))
    if probabilities is None and beside != path and beside.is_file():
        probabilities = str(beside)
    _tell(restore_case(prepared, path, out, probabilities, sources))


def segment(bundle: str, folder: str | None = None, out: str | None = None, **settings: Any) -> None:
    """Prepare the scans of a head, segment them, and bring the mask back to each scan.

    Leaves in OUT: prepared/ (the case, prepared.json), segmented/ (mask and probabilities at 1 mm),
    CASE_seg_on_{t1,t1ce,t2,flair}.nii.gz on the grid of each scan, CASE_volumes.json.

    Example: python -m tools segment brats_resunet --t1 A.nii --t1ce B.nii --t2 C.nii --flair D.nii --out OUT

    Args:
        bundle: brats_resunet (gliomas) or brain_metastasis_attention_unet.
        folder: with the scans of one head in BraTS-like names, in place of the four files.
        out: folder for all results.
        settings: those of `prepare` (--t1 FILE to --flair FILE, --case, --reference, --fill_missing, --accept_doubtful,
            --n4, --mask_bundle, --device, --seed), and of the bundle's inference.yaml, e.g. --flips True, --et_label 3.

    Raises:
        ValueError: for another bundle, an unknown setting, and for what is missing, damaged or doubtful.
    """
    if bundle not in _BUNDLES:
        raise ValueError(f"{bundle!r} takes no BraTS-like cases; expected {' or '.join(_BUNDLES)}.")
    _required(out, "--out", "the folder for the results")
    of_prepare = {name: settings.pop(name) for name in signature(prepare).parameters if name in settings}
    known = cast(dict, parse(bundle, "inference.yaml").config)
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ValueError(f"no setting --{', --'.join(unknown)} of {bundle}'s inference.yaml.")
    for name, value in settings.items():
        if expected := wrong_value(name, value, known[name]):
            raise ValueError(f"--{name} is {value!r}; expected {expected}.")
    root = Path(str(out)).expanduser()
    device = of_prepare["device"] = of_prepare.get("device") or _device()
    prepare(folder, str(root / "prepared"), **of_prepare)
    record = read_record(root / "prepared")
    where = {"dataset_dir": str(root / "prepared"), "output_dir": str(root / "segmented"), "device": device}
    _infer(bundle, {**where, "save_probabilities": True, "num_workers": 0, **settings}, bool(record["missing"]))
    name = root / "segmented" / record["case"]
    _tell(restore_case(root / "prepared", f"{name}_seg.nii.gz", root, f"{name}_probabilities.nii.gz"))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _required(value: Any, option: str, what: str) -> None:
    if not value:
        raise ValueError(f"{option} is missing; give {what}.")


def _infer(bundle: str, settings: Mapping[str, Any], fill_missing: bool) -> None:
    """Run the bundle's inference.yaml as `monai.bundle run inferring` does, in this process."""
    parser = parse(bundle, "inference.yaml", **settings, fill_missing=fill_missing)
    try:
        for step in ("initialize", "inferring"):
            parser.get_parsed_content(step)
    except RuntimeError as error:  # MONAI's, of an expression
        message = bundle_error_in(error)
        if message is None:
            raise
        raise ValueError(message) from error


def _tell(volumes: Mapping[str, Any]) -> None:
    """Print the volumes of a restored mask."""
    rows = {"1 mm": volumes["prepared"], **volumes["on"]}
    for name, row in rows.items():
        text = ", ".join(f"label {label} {ml:.1f} ml" for label, ml in row.items())
        print(f"{name:<6}{text or 'nothing found'}")
