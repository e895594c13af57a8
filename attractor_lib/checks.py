"""Whether numbers that are given are what they should be; else ValueError, which says both."""

import math
from numbers import Real


def check_whole(name: str, value, least: int, most: int | None = None) -> int:
    """value, if it is a whole number of at least `least`, at most `most`; else ValueError."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        bounds = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {bounds}, got {value!r}")
    return value


def check_number(
    name: str, value, low: float, high: float = math.inf, open_low: bool = False
) -> float:
    """value, if it is a finite number from low to high, without low where that is open; else
    ValueError.
    """
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (open_low and value == low):
        bounds = f"{'>' if open_low else '>='} {low:g}"
        if high < math.inf:
            bounds = f"{bounds} and <= {high:g}" if open_low else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} must be a finite number {bounds}, got {value!r}")
    return value
