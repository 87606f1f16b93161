"""What is known about each published system: its description, its vectors, its reproduction. Computed, not typed by hand."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from guerdon.errors import ConfigError, nearest
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.system import System
from guerdon.systems.settings import PublishedSettings

VectorFunctions = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Published:
    """A published system.

    Attributes:
        slug: its name here, and of its vector file.
        title: as the paper calls it.
        arxiv: id of the paper; empty where there is none.
        kinds: what kind of design it is ("step reward", "reward shaping", ...).
        summary: one sentence.
        vectors: conformance functions by name.
        settings: what the published runs were trained with.
        variants: the same for other builders of its module, by name; a builder without an entry has the system's.
    """

    slug: str
    title: str
    arxiv: str
    kinds: tuple[str, ...]
    summary: str
    vectors: VectorFunctions = field(default_factory=dict, repr=False)
    settings: PublishedSettings = field(default_factory=PublishedSettings, repr=False)
    variants: Mapping[str, PublishedSettings] = field(default_factory=dict, repr=False)


def _module(slug: str) -> Any:
    from guerdon.systems import SYSTEMS

    if slug not in SYSTEMS:
        raise ConfigError(f"no system {slug!r}{nearest(slug, SYSTEMS)}; there are: {', '.join(SYSTEMS)}")
    return importlib.import_module(f"guerdon.systems.{SYSTEMS[slug].module}")


def published(slug: str) -> Published:
    """The description of a system. Raises ConfigError for an unknown slug."""
    return _module(slug).PUBLISHED


def builder_of(name: str) -> Callable[..., System]:
    """The function that composes a system or a variant of one.

    Raises:
        ConfigError: an unknown name, with the known ones.
    """
    from guerdon.systems import SYSTEMS, VARIANTS

    entry = SYSTEMS.get(name) or VARIANTS.get(name)
    if entry is None:
        known = [*SYSTEMS, *VARIANTS]
        raise ConfigError(f"no system {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
    return getattr(importlib.import_module(f"guerdon.systems.{entry.module}"), entry.builder)


def settings_of(name: str) -> PublishedSettings:
    """What the published runs of a system, or of a variant of one, were trained with; options after a colon do not matter.

    Raises:
        ConfigError: an unknown name.
    """
    from guerdon.systems import SYSTEMS, VARIANTS

    name = name.partition(":")[0].strip()
    builder_of(name)  # refuses an unknown name
    entry = SYSTEMS.get(name) or VARIANTS[name]
    known = importlib.import_module(f"guerdon.systems.{entry.module}").PUBLISHED
    return known.variants.get(name, known.settings)


def vectors_of(slug: str) -> VectorFunctions:
    """The conformance functions of a system; none for an unknown slug."""
    from guerdon.systems import SYSTEMS

    return published(slug).vectors if slug in SYSTEMS else {}


# -- reproductions -----------------------------------------------------------------------------------------------------


def _reproduction_module(slug: str) -> str:
    from guerdon.systems import SYSTEMS

    return f"guerdon.systems.reproductions.{SYSTEMS[slug].module}"


def reproducible() -> list[str]:
    """The systems that have a reproduction."""
    from guerdon.systems import SYSTEMS

    return [slug for slug in SYSTEMS if importlib.util.find_spec(_reproduction_module(slug)) is not None]


def reproduction_of(slug: str) -> Callable[..., Any]:
    """`reproduce(budget)` of a system. Raises ConfigError where there is none."""
    if slug not in reproducible():
        raise ConfigError(
            f"no reproduction of {slug!r}{nearest(slug, reproducible())}; there are: {', '.join(reproducible()) or 'none yet'}"
        )
    return importlib.import_module(_reproduction_module(slug)).reproduce


@dataclass(frozen=True)
class Placeholder:
    """Stands for a part the user brings, so that a system can be shown without one. Refuses to score."""

    name: str
    level: str = "sequence"
    scope = "row"

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        raise ConfigError(f"{self.name} was not given: this system is a description")


def describe(name: str) -> str:
    """A system in words: what it is, its options with their defaults, and the composition those give."""
    from guerdon.systems import SYSTEMS

    builder = builder_of(name)
    lines = []
    if name in SYSTEMS:
        known = published(name)
        lines += [f"{known.title}  (arXiv {known.arxiv})" if known.arxiv else known.title, known.summary, ""]
        lines += [inspect.cleandoc(_module(name).__doc__ or ""), ""]
    parameters = inspect.signature(builder).parameters.values()
    options = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    lines += [f"{name}({', '.join(options)})", ""]
    required = {p.name: Placeholder(p.name) for p in parameters if p.default is p.empty}
    lines.append(str(builder(**required)))
    return "\n".join([*lines, *_settings_lines(name)])


def _settings_lines(name: str) -> list[str]:
    """The published loss-side settings, each with its source, and how to use them."""
    rows = settings_of(name).rows()
    if not rows:
        return []
    width = max(len(row[0]) for row in rows)
    lines = ["", "trained in the published runs with"]
    lines += [f"  {setting:<{width}}  {value}  [{source}]" for setting, value, source in rows]
    if settings_of(name).fields:
        lines += [
            "",
            f'GRPOConfig("out", **guerdon.systems.preset("{name}"), ...)   # guerdon train applies them, flags win',
        ]
    return lines
