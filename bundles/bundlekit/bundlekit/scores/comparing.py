"""Which of two scores is the better one, for MONAI's `metric_cmp_fn`."""

from __future__ import annotations

import math


def is_lower(current: float, best: float) -> bool:
    """Whether a loss is better than the best one so far; any number is better than NaN, where MONAI would keep it."""
    return current < best or (math.isnan(best) and not math.isnan(current))


def is_higher(current: float, best: float) -> bool:
    """Whether a score is better than the best one so far; any number is better than NaN, where MONAI would keep it."""
    return is_lower(-current, -best)
