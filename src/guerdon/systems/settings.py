"""The loss side of the published runs: clip range, KL term, group size, learning rate, sampling. What a paper trained its reward WITH.

    GRPOConfig("out", **guerdon.systems.preset("rlpr"), per_device_train_batch_size=8)

Each value has its source: "paper" and "code" (the authors'), "note" (somebody's reading of the paper), "recall", or "guess". Values that are
fields of trl.GRPOConfig are the preset; what TRL has no field for, or what belongs to the data and the machine, is shown only.

`guerdon train` applies a preset to every model but the embedded tiny one. A learning rate of 1e-6, a group of 16 or a KL coefficient of 0.001
are for policies of billions of weights; the tiny task has settings of its own, and of a preset it takes the clip range alone, which has no
scale. `guerdon compare` gives all its arms one setting, so that what differs is the reward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from guerdon.errors import ConfigError

Source = Literal["paper", "code", "note", "recall", "guess"]
SOURCES: tuple[Source, ...] = ("paper", "code", "note", "recall", "guess")
# What has no scale: it is about the ratio of two probabilities, whatever the model.
CLIP_RANGE = frozenset({"epsilon", "epsilon_high", "delta"})
# What `guerdon train` leaves to the task and the machine.
OF_THE_RUN = frozenset({"max_completion_length", "num_train_epochs"})


@dataclass(frozen=True)
class PublishedSettings:
    """What a published run was trained with.

    Attributes:
        fields: of trl.GRPOConfig, by name.
        sources: of each field.
        shown: further facts that are no field, in words, with their source in brackets.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    shown: Mapping[str, str] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str, str]]:
        """(setting, value, source) of everything, the fields first."""
        given = [(name, repr(value), self.sources[name]) for name, value in self.fields.items()]
        return given + [
            (name, text.rpartition(" [")[0], text.rpartition(" [")[2].rstrip("]")) for name, text in self.shown.items()
        ]


def settings(
    *,
    paper: Mapping[str, Any] | None = None,
    code: Mapping[str, Any] | None = None,
    note: Mapping[str, Any] | None = None,
    recall: Mapping[str, Any] | None = None,
    guess: Mapping[str, Any] | None = None,
    shown: Mapping[str, str] | None = None,
) -> PublishedSettings:
    """Settings by their source; `shown` = facts in words, each ending in its source: "128 [code]".

    Raises:
        ConfigError: a field under two sources, or a fact without one.
    """
    by_source: dict[Source, Mapping[str, Any]] = {
        "paper": paper or {}, "code": code or {}, "note": note or {}, "recall": recall or {}, "guess": guess or {},
    }  # fmt: skip
    fields: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    for source, given in by_source.items():
        for name, value in given.items():
            if name in fields:
                raise ConfigError(f"{name} has two sources: {sources[name]} and {source}")
            fields[name], sources[name] = value, source
    for name, text in (shown or {}).items():
        if text.rpartition(" [")[2].rstrip("]") not in SOURCES:
            raise ConfigError(f"{name}={text!r} has no source: end it in one of {', '.join(f'[{s}]' for s in SOURCES)}")
    return PublishedSettings(fields, sources, dict(shown or {}))


def applied(published: PublishedSettings, *, tiny: bool) -> dict[str, Any]:
    """The fields that `guerdon train` sets for a model, unless a flag says otherwise.

    tiny: the embedded policy of the built-in tasks: the clip range alone.
    """
    kept = CLIP_RANGE if tiny else published.fields.keys() - OF_THE_RUN
    return {name: value for name, value in published.fields.items() if name in kept}
