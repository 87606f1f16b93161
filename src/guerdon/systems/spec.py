"""How a system is written in one word: `name:key=value,key=value`."""

from __future__ import annotations

from typing import Any

import yaml

from guerdon.errors import ConfigError


def parse_scalar(text: str) -> Any:
    """A flag's value as YAML reads it: 1 -> int, 1e-3 -> float, true -> bool, [a, b] -> list."""
    try:
        return float(text) if _looks_scientific(text) else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot read the value {text!r}: {error}") from error


def _looks_scientific(text: str) -> bool:
    """YAML 1.1 reads 1e-3 as a string."""
    head, e, tail = text.lower().partition("e")
    return bool(e) and head.replace(".", "", 1).lstrip("+-").isdigit() and tail.lstrip("+-").isdigit()


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """`name:key=value,key=value` -> (name, options). A comma inside brackets does not separate."""
    name, _, rest = spec.partition(":")
    options: dict[str, Any] = {}
    depth, item = 0, ""
    for char in [*rest, ","]:
        depth += (char in "[{(") - (char in "]})")
        if char != "," or depth:
            item += char
            continue
        if item:
            key, equals, value = item.partition("=")
            if not equals or not key.strip():
                raise ConfigError(f"system {spec!r}: options are written key=value, got {item!r}")
            options[key.strip()] = parse_scalar(value.strip())
        item = ""
    return name.strip(), options
