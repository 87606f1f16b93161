"""The settings of a system's published runs as settings of ours, and what a run says about them.

`guerdon train` takes them wherever the user said nothing; `guerdon compare` does not, unless asked to (`preset: published`), because its arms
share one setting. What is applied depends on the model: `guerdon.systems.settings`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from guerdon.systems.base import settings_of
from guerdon.systems.settings import applied

if TYPE_CHECKING:
    from guerdon.cli.config import RunConfig

# Fields of trl.GRPOConfig that have a word of their own among a run's settings; all others go under `grpo`.
WORDS = {"num_generations": "group_size"}
OWN = frozenset({"learning_rate", "temperature", "top_p", "beta", "loss_type"})


def _published(config: RunConfig) -> dict[str, Any]:
    """{setting of a run, or field under `grpo`: value} that the preset has for this system and model."""
    fields = applied(settings_of(config.system), tiny=config.model == "tiny")
    return {WORDS.get(name, name): value for name, value in fields.items()}


def _is_setting(name: str) -> bool:
    return name in OWN or name in WORDS.values()


def with_preset(config: RunConfig, given: Collection[str] | None = None) -> RunConfig:
    """The run with its system's published settings wherever the user gave none.

    Args:
        config: with `preset` "published"; another one is returned as it is.
        given: names of the settings the user gave; None = those `config` was made from.

    Raises:
        ConfigError: an unknown system.
    """
    if config.preset != "published":
        return config
    given = config.model_fields_set if given is None else given
    published = _published(config)
    own = {name: value for name, value in published.items() if _is_setting(name) and name not in given}
    further = {name: value for name, value in published.items() if not _is_setting(name)}
    return config.model_copy(update={**own, "grpo": {**further, **config.grpo}})


def in_use(config: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The published settings this run has, and those it has its own values for (setting -> its value)."""
    if config.preset != "published":
        return {}, {}
    mine: Mapping[str, Any] = {**config.grpo, **{name: getattr(config, name) for name in (*OWN, *WORDS.values())}}
    published = _published(config)
    taken = {name: value for name, value in published.items() if mine.get(name) == value}
    return taken, {name: mine.get(name) for name in published if name not in taken}


def preset_line(config: RunConfig) -> str:
    """What a run says about the published settings before it starts; empty where there are none."""
    taken, own = in_use(config)
    if not taken and not own:
        return ""

    def listed(values: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {value}" for name, value in values.items())

    line = f"published settings of {config.system.partition(':')[0]}: {listed(taken) or 'none'}"
    line += f"; instead of them, as you said: {listed(own)}" if own else ""
    return line + " (--set preset=none leaves them out)"
