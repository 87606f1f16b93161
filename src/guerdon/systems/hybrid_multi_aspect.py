"""HARMO: rule and model rewards in one run, each question by what can score it, and behaviour as further aspects.

Problem: one run mixes questions a rule can check (sums, options, strings read off an image) with open-ended ones, and no single
scalar fits both: a reward model is unreliable where a rule is exact, and a rule is blind where there is no one right wording. Idea:
the QUESTION says who scores it; a format reward and a length penalty are added, the latter because RL-aligned models drift to short
answers; advantages are centred in the group and NOT divided by its std, which would weigh very easy and very hard questions up.

The length penalty compares each rollout with the correct ones of its own group. Reward-model scores are squashed into [0, 1]: raw
logits of -10..10 would drown a 0/1 rule and every aspect.

Source: "Beyond Monolithic Rewards: A Hybrid and Multi-Aspect Reward Optimization for MLLM Alignment", arXiv 2510.05283. There is no
official code. What the public texts give: the routing, equal weights, centring without std, that the length penalty is computed in
the group, needs a correct rollout and has parameters P_max and tau. Its form, its constants, the squashing and the format's values
are reconstructions, and every one of them is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit import (
    Drop,
    Fuse,
    GroupLengthPenalty,
    GroupNorm,
    On,
    OnFailure,
    Scale,
    Shrink,
    Squash,
    ToTokens,
    group_length_penalty,
    group_normalise,
)
from guerdon.credit.group_length import Side
from guerdon.credit.length import WatchLength
from guerdon.errors import ConfigError
from guerdon.options import checked, require_range
from guerdon.signals.around import FailTruncated, Route, levels_of
from guerdon.system import System
from guerdon.systems.base import Published, VectorFunctions
from guerdon.systems.pure import _ids
from guerdon.systems.settings import settings

Preset = Literal["rule", "model", "hybrid", "hybrid_length", "hybrid_format", "all"]
PRESETS: dict[str, tuple[str, bool, bool]] = {  # who scores, length penalty, format reward: the ablation grid
    "rule": ("rule", False, False),
    "model": ("model", False, False),
    "hybrid": ("both", False, False),
    "hybrid_length": ("both", True, False),
    "hybrid_format": ("both", False, True),
    "all": ("both", True, True),
}


@checked
def hybrid_multi_aspect(
    *,
    verifier: Any,
    rm: Any = "embedding",
    verifiable: str | bool = "verifiable",
    preset: Preset = "all",
    reference: str = "answer",
    format: Any = "R1",
    aspects: Mapping[str, Any] | None = None,
    weights: Sequence[float] = (1.0, 1.0, 1.0),
    aspect_weights: Mapping[str, float] | None = None,
    rm_scale: Literal["auto", "sigmoid", "none"] = "auto",
    rm_weights: Mapping[str, float] | None = None,
    confidence: Literal["ignore", "shrink"] = "ignore",
    p_max: float = 0.5,
    tau: float = 0.5,
    side: Side = "short",
    correct_threshold: float = 0.5,
    min_correct: int = 1,
    exempt_correct: bool = False,
    fail_truncated: bool = True,
) -> System:
    """Hybrid accuracy, length and format in one reward. Marked (guess): not in the public texts of the paper.

    Args:
        verifier: the rule: a row signal, 1 right and 0 wrong; it may give {"score", "confidence"}.
        rm: the model of open-ended questions: "embedding" (the cosine with the reference's sentence embedding), path or hub
            id of a reward model, or any row signal; several components {name: Rewards} become their weighted mean (guess).
        verifiable: data column of true/false per question (guess: a flag of the data set); True or False = all questions alike.
        preset: a cell of the ablation grid: "rule" and "model" score every question with that one.
        reference: data column for rm="embedding".
        format: a tag layout of `ThinkFormat` ("R1", "R1_nothink"), "answer_tag", or any signal in [0, 1] (guess: 0 or 1).
        aspects: further behavioural rewards, {name: signal}, added under every preset.
        weights: of accuracy, length and format (equal in the paper).
        aspect_weights: of the aspects, default 1.
        rm_scale: "sigmoid" maps logits to [0, 1] (guess); "auto" does so for a reward model given by path.
        rm_weights: of the components of a vector-valued rm, default equal (guess).
        confidence: of the rule's verdict c in [0, 1]: "shrink" makes it 1/2 + c (r - 1/2), "ignore" leaves it out (guess).
        p_max, tau, side, min_correct, exempt_correct, correct_threshold: `GroupLengthPenalty` (all guesses).
        fail_truncated: a completion cut at the length cap gets accuracy 0, format 0 and the full length penalty.

    Raises:
        ConfigError: an unknown preset, weights that do not fit.
    """
    require_range(p_max=p_max, tau=tau, correct_threshold=correct_threshold)
    if preset not in PRESETS:
        raise ConfigError(f"preset={preset!r}: use one of {list(PRESETS)}")
    if len(weights) != 3:
        raise ConfigError(f"weights={tuple(weights)}: one each for accuracy, length and format")
    who, with_length, with_format = PRESETS[preset]
    who = {True: "rule", False: "model"}[verifiable] if isinstance(verifiable, bool) and who == "both" else who

    def fails(signal: Any, **value: float) -> Any:
        return FailTruncated(signal, value or 0.0) if fail_truncated else signal

    scorers = {}
    if who in ("rule", "both"):
        scorers["rule"] = fails(verifier, **({"score": 0.0} if "confidence" in levels_of(verifier) else {}))
    if who in ("model", "both"):
        scorers["model"] = fails(_model(rm, reference))
    routed = Route(scorers, by=str(verifiable), names={True: "rule", False: "model"}) if who == "both" else None
    signals: dict[str, Any] = {"accuracy": routed or scorers[who]}
    where = {name: f"accuracy.{name}" if routed else "accuracy" for name in scorers}
    accuracy, links = _accuracy(scorers, where, rm, rm_scale, rm_weights, confidence)
    chain: list[Any] = [OnFailure("group"), *links, WatchLength(accuracy)]
    parts: dict[str, float] = {accuracy: weights[0]}
    if with_length:
        chain.append(
            GroupLengthPenalty(
                accuracy, "length", p_max, tau, side, correct_threshold, min_correct, exempt_correct,
                "full" if fail_truncated else "as_is",
            )
        )  # fmt: skip
        parts["length"] = weights[1]
    if with_format:
        signals["format"], parts["format"] = fails(_format(format)), weights[2]
    for name, signal in (aspects or {}).items():
        signals[name], parts[name] = signal, (aspect_weights or {}).get(name, 1.0)
    if len(parts) > 1:
        chain.append(Fuse(*parts, weights=tuple(parts.values()), into="reward"))
    else:
        chain.append(On(accuracy, Scale(weights[0])))
    total = "reward" if len(parts) > 1 else accuracy
    chain += [GroupNorm(total, std=None), ToTokens(total, "whole")]
    return System(
        signals, chain, name="hybrid_multi_aspect" if preset == "all" else f"hybrid_multi_aspect:preset={preset}"
    )


def _model(rm: Any, reference: str) -> Any:
    """The signal an option names."""
    if callable(rm):
        return rm
    from guerdon.signals import EmbeddingSimilarity, RewardModel

    return EmbeddingSimilarity(reference=reference) if rm == "embedding" else RewardModel(rm, retokenize=True)


def _format(format: Any) -> Any:
    if callable(format):
        return format
    from guerdon.signals import AnswerTag, ThinkFormat

    return AnswerTag() if format == "answer_tag" else ThinkFormat(mode=format)


def _accuracy(
    scorers: Mapping[str, Any],
    where: Mapping[str, str],
    rm: Any,
    rm_scale: str,
    rm_weights: Mapping[str, float] | None,
    confidence: str,
) -> tuple[str, list[Any]]:
    """The name of the accuracy source and the links that make it of what the scorers gave."""
    links: list[Any] = []
    names = []
    if "rule" in scorers:
        name, parts = where["rule"], set(levels_of(scorers["rule"]))
        if parts == {"score", "confidence"}:
            sure, name = f"{name}.confidence", f"{name}.score"
            links.append(Shrink(name, sure) if confidence == "shrink" else Drop(sure))
        elif parts != {""}:
            raise ConfigError(f"the rule gives {sorted(parts)}: it has to give one reward, or score and confidence")
        names.append(name)
    if "model" in scorers:
        name, components = where["model"], list(levels_of(scorers["model"]))
        if components != [""]:
            given = rm_weights or dict.fromkeys(components, 1.0)
            if set(given) != set(components) or sum(given.values()) <= 0:
                raise ConfigError(f"rm_weights={given}: one each for {sorted(components)}, with a positive sum")
            sources = [f"{name}.{part}" for part in components]
            shares = tuple(given[part] / sum(given.values()) for part in components)
            name = sources[0] if len(sources) == 1 else name
            links += [Fuse(*sources, weights=shares, into=name)] if len(sources) > 1 else []
        if rm_scale == "sigmoid" or (rm_scale == "auto" and isinstance(rm, str) and rm != "embedding"):
            links.append(On(name, Squash("sigmoid")))
        names.append(name)
    if len(names) > 1:
        links.append(Fuse(*names, into="accuracy"))
    return "accuracy" if len(names) > 1 else names[0], links


# --- the functions of the conformance vectors ----------------------------------------------------------------------------


def _numbers(values: Any) -> Tensor:
    """[N] float64; None is NaN."""
    return torch.tensor([float("nan") if x is None else float(x) for x in values], dtype=torch.float64)


def hybrid_accuracy_reward(verifiable: Any, rule_rewards: Any, model_rewards: Any) -> dict[str, Tensor]:
    """The rule's reward where the question is verifiable, the model's elsewhere. [N]."""
    decided = torch.tensor([bool(flag) for flag in verifiable], dtype=torch.bool)
    return {"rewards": torch.where(decided, _numbers(rule_rewards), _numbers(model_rewards))}


def embedding_similarity_reward(response_embedding: Any, reference_embedding: Any) -> dict[str, Tensor]:
    """The cosine of two vectors, clipped to [0, 1]."""
    from guerdon.signals.embedding import cosine_similarity

    return {"reward": cosine_similarity(_numbers(response_embedding), _numbers(reference_embedding))}


def length_penalty_rewards(
    response_lengths: Any,
    accuracy_rewards: Any,
    correct_threshold: float = 0.5,
    p_max: float = 0.5,
    tau: float = 0.5,
    side: Any = "short",
) -> dict[str, Any]:
    """The target length of one group (None where nobody is correct) and each rollout's penalty. [G]."""
    lengths = _numbers(response_lengths)
    found = group_length_penalty(
        lengths, _numbers(accuracy_rewards), torch.zeros(len(lengths), dtype=torch.long),
        p_max=p_max, tau=tau, side=side, correct_threshold=correct_threshold,
    )  # fmt: skip
    known = len(lengths) and not bool(found.target[0].isnan())
    return {"target_length": float(found.target[0]) if known else None, "rewards": found.rewards}


def total_rewards(
    hybrid_rewards: Any, length_rewards: Any, format_rewards: Any, weights: Sequence[float] = (1.0, 1.0, 1.0)
) -> dict[str, Tensor]:
    """w_h R_hyb + w_l R_len + w_f R_fmt. [N]."""
    parts = [_numbers(values) for values in (hybrid_rewards, length_rewards, format_rewards)]
    return {"rewards": sum((w * part for w, part in zip(weights, parts, strict=True)), torch.zeros_like(parts[0]))}


def mean_centered_advantages(rewards: Any, group_ids: Sequence[Any]) -> dict[str, Tensor]:
    """r minus its group's mean. [N]."""
    return {"advantages": group_normalise(_numbers(rewards), _ids(group_ids), std=None, dtype=torch.float64)}


VECTORS: VectorFunctions = {
    "hybrid_accuracy_reward": hybrid_accuracy_reward,
    "embedding_similarity_reward": embedding_similarity_reward,
    "length_penalty_rewards": length_penalty_rewards,
    "total_rewards": total_rewards,
    "mean_centered_advantages": mean_centered_advantages,
}

PUBLISHED = Published(
    slug="hybrid_multi_aspect",
    title="HARMO (hybrid and multi-aspect reward optimization)",
    arxiv="2510.05283",
    kinds=("sequence reward", "reward shaping", "advantage estimator"),
    summary="A rule scores what can be checked and a model the rest; length and format are aspects; advantages are centred, not scaled.",
    vectors=VECTORS,
    settings=settings(
        guess={"num_generations": 8, "epsilon": 0.2, "beta": 0.01, "loss_type": "dapo"},
        shown={"algorithm": "GRPO without division by the std [note]", "learning rate": "not found [guess]"},
    ),
)
