"""Values that came from somebody else: plain ones pass, what MONAI would run as Python does not."""

from __future__ import annotations

from typing import Any

from bundlekit.errors import BundleError


def refuse_expressions(values: Any, where: str) -> None:
    """Refuse what MONAI would evaluate as Python or follow as a reference, in values that strangers may have written.

    Args:
        values: as JSON has them, nested to any depth.
        where: they come from, for the message.

    Raises:
        BundleError: for a string that begins with $, @ or %, in a key or a value, or a key that begins with an
            underscore (`_target_`).
    """
    if isinstance(values, dict):
        for key, value in values.items():
            if str(key).lstrip()[:1] in ("_", "$", "@", "%"):
                raise BundleError(f"{where}: {key!r} is no setting; expected a name with a plain value.")
            refuse_expressions(value, where)
    elif isinstance(values, (list, tuple)):
        for value in values:
            refuse_expressions(value, where)
    elif isinstance(values, str) and values.lstrip()[:1] in ("$", "@", "%"):
        raise BundleError(f"{where}: {values!r} is an expression, and would be run; expected a plain value.")
