"""Numbers as text, with as many digits as their uncertainty supports."""

import math
from typing import Any

from foura.analysis.statistics import ROUNDING

MINUS = "−"


def decimals(uncertainty: float, item: float = 0.0) -> int:
    """Decimal places for two significant digits of the uncertainty, and none finer than one test item.

    Args:
        uncertainty: a standard deviation or half of an interval; nan or 0 where it is not known, for four places.
        item: the step of the value, 1 / items; nan or 0 for values that are not counts.
    """
    places = 4
    if math.isfinite(uncertainty) and uncertainty > 0:
        places = 1 - math.floor(math.log10(uncertainty))
    if math.isfinite(item) and item > 0:
        places = min(places, math.ceil(-math.log10(item) - 1e-9))
    return min(max(places, 0), 8)


def fixed(value: float, places: int) -> str:
    """The value with so many places, a true minus sign, and no sign for zero; "–" for nan."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else MINUS + "∞"
    return f"{round(value, places) + 0.0:,.{places}f}".replace("-", MINUS)


def signed(value: float, places: int) -> str:
    """The same with a plus sign for positive values."""
    text = fixed(value, places)
    return f"+{text}" if round(value, places) > 0 and math.isfinite(value) else text


def with_spread(mean: float, spread: float, item: float = 0.0) -> str:
    """mean ± standard deviation, as in "0.942 ± 0.019"; the mean alone without a spread."""
    places = decimals(0.0 if spread <= ROUNDING * abs(mean) else spread, item)
    return fixed(mean, places) if math.isnan(spread) else f"{fixed(mean, places)} ± {fixed(spread, places)}"


def plain(value: Any) -> str:
    """A value without a known uncertainty: whole numbers in full, others with four significant digits."""
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return fixed(value, 0)
    if abs(value) >= 1000 or value == int(value):
        return fixed(value, 0)
    return f"{value:.4g}".replace("-", MINUS)
