"""Weights that come with a bundle: which they are, and whether a file is still whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

import yaml

from bundlekit.errors import BundleError, Finding

RECORD = "large_files.yml"  # beside the weights, in the form of MONAI's Model Zoo, without addresses


def shipped_hash(checkpoint: str | Path) -> str | None:
    """SHA-256 that a shipped weight file must have; None for any other file.

    Raises:
        BundleError: if the record beside it cannot be read.
    """
    record = Path(checkpoint).parent / RECORD
    if not record.is_file():
        return None
    try:
        entries = yaml.safe_load(record.read_text())["large_files"]
        return next((str(e["hash_val"]) for e in entries if e["path"] == Path(checkpoint).name), None)
    except (yaml.YAMLError, KeyError, TypeError, OSError) as error:
        finding = Finding(str(record), f"cannot be read ({error})", "path and hash_val of each file", "copy it again")
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
    if expected is None:
        return
    found = hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()
    if found != expected:
        size = Path(checkpoint).stat().st_size
        raise BundleError(
            Finding(
                str(checkpoint),
                f"{size} bytes of SHA-256 {found[:12]}...",
                f"the file that came with the bundle, SHA-256 {expected[:12]}...",
                f"copy it again; if you put weights of your own there, remove {RECORD} beside them",
            )
        )
