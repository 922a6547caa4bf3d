"""Inference over many cases, one of which is refused while it is read, or gives no mask: the others are done.

It is named at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from ignite.engine import Engine
from monai.data import Dataset

from bundlekit.errors import BundleError, bundle_error_in, debugging, ends_run

_log = logging.getLogger(__name__)
_UNREADABLE = "unreadable"


class CaseDataset(Dataset):
    """MONAI's `Dataset`; a case that is refused while it is read and prepared is {"unreadable": message}.

    An error that holds for every case (`BundleError.ends_run`) is raised.

    Args:
        data: cases, see `find_cases`.
        transform: reads and prepares a case.
        keep_going: False raises the error at such a case.
    """

    def __init__(self, data: Sequence[Any], transform: Callable[[Any], Any], keep_going: bool = True) -> None:
        super().__init__(data, transform)
        self.keep_going = keep_going

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except (RuntimeError, ValueError) as error:
            message = bundle_error_in(error)
            if message is None or not self.keep_going or debugging() or ends_run(error):
                raise
            return {_UNREADABLE: message}


class SkipUnreadable:
    """`iteration_update` of a MONAI evaluator over a `CaseDataset`: passes over what cannot be read, or gives no mask.

    The latter only where the dataset is to keep going, and for an error that lies in one case (`BundleError.one_case`).
    """

    def __init__(self) -> None:
        self.messages: list[str] = []
        self._read = 0

    def __call__(self, engine: Engine, batch: Any) -> Any:
        """Output of the evaluator for a batch; [] for an unreadable case, which handlers see as an empty batch."""
        if engine.state.iteration == 1:
            self.messages, self._read = [], 0
        if _UNREADABLE in batch:
            messages = batch[_UNREADABLE]
        else:
            try:
                output = engine._iteration(engine, batch)  # type: ignore[attr-defined]  # what the evaluator does itself
                self._read += 1
                return output
            except BundleError as error:
                message = f"{', '.join(batch.get('case', ['a case']))}: {error}"
                dataset = getattr(getattr(engine, "data_loader", None), "dataset", None)
                if not error.one_case or debugging() or not getattr(dataset, "keep_going", False):
                    raise BundleError(message, ends_run=error.ends_run) from error
                messages = [message]
        for message in messages:
            self.messages.append(message)
            _log.warning("passed over: %s", message)
        engine.state.batch = []  # type: ignore[assignment]
        return []

    def report(self) -> None:
        """Raise a `BundleError` that lists what was refused, if anything."""
        if self.messages:
            refused = len(self.messages)
            heading = f"{refused} of {refused + self._read} cases were refused, the others are done:\n"
            raise BundleError((heading if self._read else "") + "\n".join(self.messages))
