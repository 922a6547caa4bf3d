"""Weights that come with a bundle: which they are, and whether a file is still whole."""

from __future__ import annotations

from pathlib import Path

from monai.apps.utils import check_hash

from bundlekit.errors import BundleError, Finding

RECORD = "SHA256SUMS"  # beside the weights; `sha256sum -c SHA256SUMS` reads it, too


def shipped_hash(checkpoint: str | Path) -> str | None:
    """SHA-256 that a shipped weight file must have; None for any other file.

    MONAI's own `large_files.yml` lists addresses to download from, and the weights here come with the bundle.

    Raises:
        BundleError: if the record beside it cannot be read.
    """
    return shipped_hashes(Path(checkpoint).parent).get(Path(checkpoint).name)


def shipped_folders(models: str | Path) -> list[Path]:
    """A bundle's `models/`, if weights came with it, and the folders in it with weights of its other networks."""
    records = [*Path(models).glob(RECORD), *Path(models).glob(f"*/{RECORD}")]  # those put aside lie one level deeper
    return sorted(record.parent for record in records)


def shipped_files(models: str | Path) -> list[Path]:
    """The weight files that came with a bundle, as the record in its `models/` names them; none without a record.

    Raises:
        BundleError: if the record cannot be read.
    """
    return [Path(models, Path(name).name) for name in shipped_hashes(models)]


def shipped_hashes(models: str | Path) -> dict[str, str]:
    """Name of each weight file that came with a bundle -> its SHA-256; empty without a record.

    Raises:
        BundleError: if the record cannot be read.
    """
    record = Path(models, RECORD)
    if not record.is_file():
        return {}
    try:
        lines = [line.split(maxsplit=1) for line in record.read_text().splitlines() if line.strip()]
        return {name.strip().lstrip("*"): value for value, name in lines}
    except (OSError, ValueError) as error:
        expected = "a SHA-256 and the name of a file in each line"
        finding = Finding(str(record), f"cannot be read ({error})", expected, "copy it again")
        raise BundleError(finding) from error


def training_folder(bundle_root: str | Path) -> str:
    """Where a training leaves its weights unless told: `models/`, or `eval/trained` where `models/` came with weights.

    Args:
        bundle_root: the bundle's folder.
    """
    models = Path(bundle_root, "models")
    return str(Path(bundle_root, "eval", "trained") if (models / RECORD).is_file() else models)


def check_shipped(checkpoint: str | Path) -> None:
    """Refuse a shipped weight file that is not what was shipped.

    Raises:
        BundleError: if its SHA-256 differs: it is cut off or was replaced.
    """
    expected = shipped_hash(checkpoint)
    if expected is None or check_hash(checkpoint, expected):
        return
    raise BundleError(
        Finding(
            str(checkpoint),
            f"{Path(checkpoint).stat().st_size} bytes of another SHA-256",
            f"the file that came with the bundle, SHA-256 {expected[:12]}...",
            f"copy it again; if you put weights of your own there, remove {RECORD} beside them",
        )
    )
