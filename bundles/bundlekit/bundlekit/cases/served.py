"""A case that a viewer's server names by one path, as MONAI Label does, in place of one that `find_cases` gave."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from bundlekit.cases.case import Case
from bundlekit.errors import BundleError, Finding

Load = Callable[..., dict[Hashable, Any]]


def is_served(data: Mapping[Hashable, Any]) -> bool:
    """Whether `image` is one path, as a server gives it; a case has a list of files there."""
    return isinstance(data.get("image"), (str, os.PathLike))


def load_served(load: Load, find_cases: Callable[..., Sequence[Case]], data: Mapping[Hashable, Any]) -> dict:
    """Decode the case that a path belongs to; what else the server's dict holds is kept beside it.

    Args:
        load: the bundle's transform that decodes a case.
        find_cases: the bundle's search; it also finds the other files of a case.
        data: `image` is one file of a case, its folder, or a file that holds all of it. A setting of `find_cases` that
            is among the other keys (e.g. `channel_order`) is followed.

    Raises:
        BundleError: if the path holds no case or several, and for what `find_cases` and `load` refuse.
    """
    path = os.fspath(data["image"])
    names = set(inspect.signature(find_cases).parameters) - {"dataset_dir", "datalist", "labelled"}
    settings = {str(key): value for key, value in data.items() if key in names}
    cases = find_cases(path, labelled=False, **settings)
    if len(cases) != 1:
        found = ", ".join(case["case"] for case in cases[:4]) + (", ..." if len(cases) > 4 else "")
        fix = "name one file of it, or its folder"
        raise BundleError(Finding(path, f"{len(cases)} cases ({found})", "one case", fix))
    return {**data, **load(cases[0])}
