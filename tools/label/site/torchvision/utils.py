"""The two functions whose names MONAI Label imports."""

from __future__ import annotations

from typing import Any, NoReturn


def make_grid(*_: Any, **__: Any) -> NoReturn:
    """Of torchvision, which is not installed here.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(_missing("make_grid"))


def save_image(*_: Any, **__: Any) -> NoReturn:
    """Of torchvision, which is not installed here.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(_missing("save_image"))


def _missing(name: str) -> str:
    return (
        f"torchvision.utils.{name} is called, but torchvision is not installed in this environment, since no bundle "
        "uses it: install a build of torchvision for this PyTorch."
    )
