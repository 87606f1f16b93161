"""What a numeric option may be: one check, so that every part refuses NaN, infinity and text in the same words."""

from __future__ import annotations

import math
from typing import Any

from guerdon.errors import ConfigError


def require_range(low: float = -math.inf, high: float = math.inf, *, above: bool = False, **options: Any) -> None:
    """Refuse options that are no finite number in [low, high]; `None` is another way to say "off" and passes.

    Args:
        low, high: inclusive.
        above: `low` itself is refused.
        options: by name, as the caller spells them.

    Raises:
        ConfigError: with the name, the value and the range.
    """
    for name, value in options.items():
        if value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not low <= value <= high or (above and value == low):
            raise ConfigError(f"{name}={value!r}: {_range(low, high, above)}")


def _range(low: float, high: float, above: bool) -> str:
    if high == math.inf:
        return f"a number {'above' if above else 'of at least'} {low:g}" if low > -math.inf else "a finite number"
    return f"a number in {'(' if above else '['}{low:g}, {high:g}]"
