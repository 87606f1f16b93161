"""How published reward models are read: one table of architecture, head, separator, labels and layout.

A checkpoint says what it is by the first of these: `convention=` from the caller; what `guerdon` wrote into its config when it was
trained (`note_convention`); its architecture, where that names one convention alone; its published name (the hub id, or a folder
of that name). A causal language model that none of these tells apart from any other is refused, because a head would be made up.

| convention | head | read at | score of a step |
| --- | --- | --- | --- |
| pure | token classifier, two labels | the separator that replaces a step's last token | p(good) - p(bad) |
| qwen_math_prm | two-layer head `score.0`, `score.2` | `<extra_0>` after each step of one chat turn | p(good) - p(bad) |
| skywork_prm | value head `v_head.summary` | the line break after each step | 2 sigmoid(v) - 1 |
| math_shepherd | the language model's own tokens + and - | the tag ки after each step | p(+) - p(-) |
| rlhflow_prm | the language model's own tokens + and - | where the assistant's + follows a step | p(+) - p(-) |
| sequence | sequence classifier, one label | the last token | the logit |
| qwen_math_rm | two-layer head `score.0`, `score.2` | the last token | the logit |
| rlhflow_orm | the language model's own tokens + and - | where the assistant's + follows the solution | log p(+) - log p(-) |

Sources: model cards and code of Qwen2.5-Math-PRM (arXiv 2501.07301), Math-Shepherd (2312.08935), PURE (2504.15275), Skywork-o1-Open-PRM
(github.com/SkyworkAI/skywork-o1-prm-inference), RLHFlow (github.com/RLHFlow/RLHF-Reward-Modeling), read in November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from guerdon.errors import ConfigError
from guerdon.options import checked

Kind = Literal["process", "outcome"]
Head = Literal["classifier", "two_layers", "value", "label_tokens"]
Layout = Literal["as_given", "plain", "chat", "turns"]

CONFIG_KEY = "guerdon_reward_model"  # in config.json, what `note_convention` writes
_MATH_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


@checked
@dataclass(frozen=True)
class Convention:
    """One way to read a reward model.

    Attributes:
        name: in the table.
        kind: "process" = one score a step, "outcome" = one a completion.
        head: "classifier" = transformers' own; "two_layers" = `score.0`, ReLU, `score.2`; "value" = one linear layer
            `v_head.summary`; "label_tokens" = the language model's logits of `good` and `bad`.
        layout: "as_given" = prompt and steps as they are, each step encoded by itself, and ids of one vocabulary never encoded again;
            "plain" = question and solution as one text; "chat" = one question and one answer through the chat template; "turns"
            = each step a user's turn, answered by a label.
        separator: what is written after each step and where its score is read; in "turns" the label that answers it.
        before: text between a step and its separator. after: text between a separator and the next step.
        between: text between question and solution.
        system: system message of a chat; None = none.
        good, bad: label tokens.
        architectures: of config.json that mean this convention and no other.
        published: regular expression on a hub id or the name of its folder.
    """

    name: str
    kind: Kind
    head: Head
    layout: Layout = "as_given"
    separator: str = "\n"
    before: str = ""
    after: str = ""
    between: str = ""
    system: str | None = None
    good: str = "+"
    bad: str = "-"
    architectures: tuple[str, ...] = ()
    published: str = ""


TABLE: Mapping[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention("pure", "process", "classifier"),
        Convention(
            "qwen_math_prm", "process", "two_layers", "chat", "<extra_0>", system=_MATH_SYSTEM,
            architectures=("Qwen2ForProcessRewardModel",), published=r"Qwen2\.5-Math-(7B-PRM800K|PRM-\d+B)",
        ),
        Convention(
            "skywork_prm", "process", "value", between="\n", architectures=("Qwen2ForPrmModel",),
            published=r"Skywork-o1-Open-PRM-.+",
        ),
        Convention(
            "math_shepherd", "process", "label_tokens", "plain", "ки", before=" ", after="\n", between=" ",
            published=r"math-shepherd-mistral-7b-(prm|rl-prm)",
        ),
        Convention(
            "rlhflow_prm", "process", "label_tokens", "turns", "+", between=" ", published=r"Llama3\.1-8B-PRM-(Mistral|Deepseek)-Data",
        ),
        Convention("sequence", "outcome", "classifier"),
        Convention(
            "qwen_math_rm", "outcome", "two_layers", "chat", "", system=_MATH_SYSTEM,
            architectures=("Qwen2ForRewardModel",), published=r"Qwen2\.5-Math-RM-\d+B",
        ),
        Convention(
            "rlhflow_orm", "outcome", "label_tokens", "turns", "+", between=" ", published=r"Llama3\.1-8B-ORM-(Mistral|Deepseek)-Data",
        ),
    )
}  # fmt: skip

_BAD = frozenset(
    {"bad", "negative", "neg", "wrong", "incorrect", "false", "no", "-", "0", "label_0", "fail", "invalid"}
)
_GOOD = frozenset({"good", "positive", "pos", "right", "correct", "true", "yes", "+", "1", "label_1", "pass", "valid"})


def convention_named(name: str | Convention, kind: Kind) -> Convention:
    """A convention by its name in the table, or as it is.

    Raises:
        ConfigError: no such name, or one of the other kind.
    """
    known = [key for key, item in TABLE.items() if item.kind == kind]
    convention = TABLE.get(name) if isinstance(name, str) else name
    if convention is None or convention.kind != kind:
        raise ConfigError(f"convention={name!r}: for a {kind} reward model use one of {', '.join(known)}")
    return convention


def convention_of(source: Any, config: Any, kind: Kind) -> Convention | None:
    """The convention that a checkpoint's config or its published name says, or None.

    Args:
        source: hub id, path or model.
        config: its transformers config.
        kind: what is asked for. A checkpoint of the other kind has none.
    """
    noted = getattr(config, CONFIG_KEY, None)
    if noted:
        known = {field.name for field in fields(Convention)}
        values = {key: value for key, value in dict(noted).items() if key in known}
        found = replace(TABLE[values.pop("name")], **values)
        return found if found.kind == kind else None
    names = set(getattr(config, "architectures", None) or ())
    folders = _published_names(source)
    for item in TABLE.values():
        by_name = item.published and any(re.fullmatch(item.published, name, re.IGNORECASE) for name in folders)
        if item.kind == kind and (names & set(item.architectures) or by_name):
            return item
    return None


def _published_names(source: Any) -> list[str]:
    """The name of a hub id or of a folder, that of the hub's own cache (models--ORG--NAME/snapshots/...) included."""
    if not isinstance(source, (str, Path)):
        return []
    path = Path(str(source))
    return [path.name, *(part.rsplit("--", 1)[-1] for part in path.parts if part.startswith("models--"))]


def note_convention(config: Any, convention: Convention) -> None:
    """Write a convention into a model's config, so that the saved checkpoint is read back as what it is."""
    usual = asdict(TABLE[convention.name])
    changed = {key: value for key, value in asdict(convention).items() if value != usual[key]}
    setattr(config, CONFIG_KEY, {"name": convention.name, **changed})


def good_label(labels: Mapping[int, str] | Mapping[str, str], source: Any = "this model") -> int:
    """Which of two label ids means a good step, by their names.

    Args:
        labels: id2label of a config.
        source: for the message.

    Raises:
        ConfigError: the names do not say which one is good.
    """
    names = {int(number): str(name).strip().casefold() for number, name in labels.items()}
    good = [number for number, name in names.items() if name in _GOOD]
    bad = [number for number, name in names.items() if name in _BAD]
    if len(good) == 1 and len(bad) <= 1:
        return good[0]
    if len(bad) == 1 and not good and len(names) == 2:
        return next(number for number in names if number != bad[0])
    raise ConfigError(
        f"{source}: its two labels are {dict(labels)}, which does not say which one is a good step; set id2label in its config, "
        "for instance {0: 'bad', 1: 'good'}, or pass good_label="
    )


def known_conventions(kind: Kind) -> Sequence[str]:
    """Names of the table, for messages."""
    return [name for name, item in TABLE.items() if item.kind == kind]
