"""`python -m tools <command>`."""

from __future__ import annotations

import logging

import fire

from bundlekit.virtual import brats, ct, icbm152, metastases, tissue
from tools.bench import case, deformation, gliomas, loader, memory, network, painting, resizing
from tools.card import card
from tools.check import check
from tools.check_gpu import check_gpu
from tools.convert import to_h5, to_nifti
from tools.cv import cv
from tools.demo import demo
from tools.label import label
from tools.pack import pack
from tools.picture import picture
from tools.ship import ship
from tools.weights import weights

COMMANDS = {
    "demo": demo,
    "check": check,
    "check_gpu": check_gpu,
    "cv": cv,
    "weights": weights,
    "picture": picture,
    "label": label,
    "virtual": {"brats": brats, "metastases": metastases, "tissue": tissue, "icbm152": icbm152, "ct": ct},
    "convert": {"h5": to_h5, "nifti": to_nifti},
    "ship": ship,
    "pack": pack,
    "card": card,
    "bench": {
        "case": case,
        "loader": loader,
        "network": network,
        "memory": memory,
        "deformation": deformation,
        "painting": painting,
        "gliomas": gliomas,
        "resizing": resizing,
    },
}


def main() -> None:
    """Run the command that the command line names."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        fire.Fire(COMMANDS, name="python -m tools")
    except (ValueError, OSError) as error:  # what a user can mend; anything else is a defect and shows its traceback
        raise SystemExit(f"ERROR: {error}") from None


if __name__ == "__main__":
    main()
