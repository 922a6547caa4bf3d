"""Which of two scores is the better one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bundlekit.scores.comparing import is_higher, is_lower

NAN = float("nan")


@pytest.mark.parametrize(
    ("better", "current", "best", "expected"),
    [
        (is_lower, 1, 2, True),
        (is_lower, 2, 1, False),
        (is_lower, 1, 1, False),
        (is_higher, 0.5, 0.4, True),
        (is_higher, 0.4, 0.5, False),
        *[(better, 0.5, NAN, True) for better in (is_lower, is_higher)],
        *[(better, NAN, 0.5, False) for better in (is_lower, is_higher)],
        *[(better, NAN, NAN, False) for better in (is_lower, is_higher)],
    ],
)
def test_any_number_is_better_than_none(better: Callable, current: float, best: float, expected: bool) -> None:
    assert better(current, best) is expected
