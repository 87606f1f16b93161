"""`load_task`: a task from one line of text, the form the commands and configuration files use.

sums                                         the built-in task
sums,terms=3-5                               ... with options
sums,views=2                                 ... every sum in two orders of its operands
search                                       questions of several hops, with a search tool
reasoning-gym:chain_sum,min_terms=3          a reasoning-gym data set and its options
problems.jsonl                               a file with (prompt | question | problem) and (answer | ...) columns
problems.parquet,prompt=text,answer=gold     ... with its column names
owner/name,split=test,verifier=exact         a hub data set
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from guerdon.errors import ConfigError, nearest
from guerdon.tasks.base import Task

GYM = "reasoning-gym:"
_TABLE_OPTIONS = (
    "prompt",
    "answer",
    "verifier",
    "split",
    "held_out",
    "limit",
    "seed",
    "max_completion_length",
    "delimiter",
    "instruction",
    "together",
)
_SEARCH_OPTIONS = ("style", "hops", "size", "train_size", "held_out_size", "max_turns", "seed")
_SUMS_OPTIONS = ("train_size", "held_out_size", "terms", "seed", "views")


def load_task(spec: str | Task, **options: Any) -> Task:
    """The task a spec names; a Task is returned as it is.

    Options after commas are read as numbers where they look like one, and are overridden by keyword `options`.
    Raises ConfigError for an unknown task or option, DataError for data that cannot be used.
    """
    if isinstance(spec, Task):
        return spec
    name, *parts = [part.strip() for part in spec.split(",")]
    settings = {**_options(parts, spec), **options}
    if name == "sums":
        known = _known(settings, _SUMS_OPTIONS, spec)
        views = known.pop("views", 1)
        if views not in (1, 2):
            raise ConfigError(f"{spec!r}: views={views}; 1, or 2 for every sum in two orders of its operands")
        if views == 2:
            from guerdon.tasks.views import sums_in_two_views

            return sums_in_two_views(**known)
        from guerdon.tasks.arithmetic import sums

        return replace(sums(**known), notes=_notes_on_sums())
    if name == "search":
        from guerdon.tasks.search import options_of, search

        return search(**options_of(_known(settings, _SEARCH_OPTIONS, spec)))
    from guerdon.tasks import adapters

    if name.startswith(GYM):
        return adapters.reasoning_gym_task(name.removeprefix(GYM), **settings)
    if not name or ("/" not in name and "." not in name):
        raise ConfigError(
            f"unknown task {spec!r}{nearest(name, ('sums', 'search', GYM))}: use 'sums', 'search', 'reasoning-gym:<data set>', a .jsonl or .parquet file, or a hub id 'owner/name'"
        )
    return adapters.table_task(name, **_known(settings, _TABLE_OPTIONS, spec))


def _options(parts: list[str], spec: str) -> dict[str, Any]:
    settings = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise ConfigError(f"{spec!r}: {part!r} is not an option; write name=value")
        settings[key.strip()] = _value(value.strip())
    return settings


def _value(text: str) -> Any:
    """A number, a range "3-5", true/false, or the text itself."""
    low, dash, high = text.partition("-")
    if dash and low.isdigit() and high.isdigit():
        return int(low), int(high)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _known(settings: dict[str, Any], allowed: tuple[str, ...], spec: str) -> dict[str, Any]:
    unknown = sorted(set(settings) - set(allowed))
    if unknown:
        raise ConfigError(
            f"{spec!r}: unknown option {', '.join(unknown)}{nearest(unknown[0], allowed)}; there are {', '.join(allowed)}"
        )
    return settings


def _notes_on_sums() -> dict[str, Any]:
    """Lines, then "#" and the total, where a reference goes, too; the tiny policy has never seen a hint, so gold chains come from the
    question alone."""
    from guerdon.signals.likelihood.splice import TagSplice

    return {"layout": ("", "", "#", ""), "hint": "", "splice": TagSplice("#", before="", after="")}
