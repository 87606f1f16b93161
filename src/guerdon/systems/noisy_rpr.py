"""Noisy rewards and the reasoning pattern reward (RPR): how wrong a reward may be, and a bonus for what a weak one misses.

Problem: verifiers and reward models err; how much error can RL for reasoning stand, and what helps? Three tools. (1) A stress test:
with probability p ALL verdicts of a question are turned round (`signals.Noisy`, usable around any signal in any system). (2) RPR: the
share of some 40 reasoning phrases that occur in a text, right or wrong; alone it comes near the true verifier before it degenerates
into long thinking. (3) Calibration: where a reward model's score is below a threshold, and so perhaps a false negative, add a little
RPR of the thinking.

Why it works, per the authors: RL mostly surfaces patterns learned in pre-training. It is a keyword count all the same: alone, it is
hacked by writing phrases.

Source: "The Climb Carves Wisdom Deeper Than the Summit: On the Noisy Rewards in Learning to Reason", arXiv 2505.22653; official code
github.com/trestad/Noisy-Rewards-in-Learning-to-Reason. Differs on purpose: in calibration RPR reads the thinking, as the paper says
(the code: thinking and answer); without the prefix "Assistant: <think> " the text is taken as it is (the code drops 18 characters).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit import (
    GAE,
    Calibrate,
    Drop,
    Fallback,
    GroupNorm,
    SwitchAt,
    ToTokens,
    Whiten,
    calibrate_scores,
)
from guerdon.errors import ConfigError
from guerdon.options import checked, require_range
from guerdon.rollouts import Rollouts
from guerdon.signals.around import OnText
from guerdon.signals.noise import Noisy, flip_scores
from guerdon.signals.verifiable import math_strings, patterns
from guerdon.signals.verifiable.extraction import Extract, extractor
from guerdon.system import System
from guerdon.systems.base import Published, VectorFunctions
from guerdon.systems.settings import settings

Reward = Literal["verifier", "rpr", "rpr_when_wrong"]
Carrier = Literal["group_mean", "grpo", "ppo"]
PREFIX = "Assistant: <think> "


@checked
def noisy_rpr(
    *,
    verifier: Any,
    flip_prob: float = 0.0,
    reward: Reward = "verifier",
    correctness_warmup: int = 0,
    unit: Literal["question", "rollout"] = "question",
    answer: Extract | None = "boxed",
    phrase_set: Any = "math",
    divisor: float = 20.0,
    word_boundary: bool = False,
    carrier: Carrier = "group_mean",
) -> System:
    """A verifier with noise, RPR, or RPR where the (noisy) verdict is wrong.

    Args:
        verifier: a signal in {0, 1}.
        flip_prob: p, the share of questions whose verdicts are turned round, in training only.
        reward: "verifier"; "rpr" = RPR alone, correctness ignored (no verifier is called); "rpr_when_wrong" = RPR where the
            noisy verdict is 0. The RPR curve is in the log in every case.
        correctness_warmup: optimiser steps with RPR alone at the start.
        unit: "question", or "rollout": independent flips, which the paper rejects as no real noise.
        answer: where the answer stands; a completion without one is never flipped and has RPR 0, which is said at the first batch where it is
            true of all. "final" = by whichever mark it uses (`verifiable.final_answer`). None = do not look.
        phrase_set, divisor, word_boundary: of RPR, see `reasoning_pattern_reward`; the paper's formula has divisor 40.
        carrier: "group_mean" = minus the group's mean, for trainers without a critic; "grpo" = also divided by the std;
            "ppo" = the official one: last token, GAE with gamma = lambda = 1, whitening: needs a critic's values.
    """
    require_range(0, above=True, divisor=divisor)
    if reward not in ("verifier", "rpr", "rpr_when_wrong"):
        raise ConfigError(f"reward={reward!r}: use verifier, rpr or rpr_when_wrong")
    from guerdon.signals import ReasoningPatterns

    rpr = ReasoningPatterns(phrase_set=phrase_set, answer=answer, divisor=divisor, word_boundary=word_boundary)
    if reward == "rpr":
        return System({"rpr": rpr}, _carried("rpr", carrier), name="noisy_rpr:reward=rpr")
    spare = None if answer is None else _without_answer(answer)
    noisy = Noisy(verifier, flip_prob, unit=unit, spare=spare, training_only=True, keep_clean=True)
    chain: list[Any] = [Drop("answer.clean")]
    warming = [SwitchAt("answer.score", "rpr", correctness_warmup)] if correctness_warmup else []
    if reward == "verifier":
        chain += warming or [Drop("rpr")]
        return System({"answer": noisy, "rpr": rpr}, [*chain, *_carried("answer.score", carrier)], name="noisy_rpr")
    signals = {"answer": noisy, "rpr": rpr}
    if warming:
        # Two links read RPR and each takes it out of the chain: the same cheap count under a second name.
        signals["warmup"] = rpr
        warming = [SwitchAt("answer.score", "warmup", correctness_warmup)]
    chain += [Fallback("answer.score", "rpr"), *warming, *_carried("answer.score", carrier)]
    return System(signals, chain, name="noisy_rpr:reward=rpr_when_wrong")


@checked
def rpr_calibrated(
    *,
    rm: Any,
    threshold: float = 0.5,
    alpha: float = 0.1,
    read: Literal["think", "all"] = "think",
    phrase_set: Any = "rm",
    divisor: float = 20.0,
    word_boundary: bool = False,
    calibrate: bool = True,
    carrier: Carrier = "group_mean",
) -> System:
    """A reward model of answers in about [0, 1], whose low scores get a small bonus for the patterns of the thinking.

    Completions are `<think>...</think><answer>...</answer>`; one that is not scores 0. The reward model sees the prompt and the
    answer alone. Evaluation batches are not calibrated.

    Args:
        rm: path or hub id of a reward model trained with `train_rm(loss="pointwise")`, or any row signal that reads texts.
        threshold, alpha: a score below the threshold gets alpha RPR, the sum at most 1.
        read: what RPR reads: "think" (the paper) or "all" of the completion (the code).
        calibrate: False = the reward model alone, the baseline.
        phrase_set, divisor, word_boundary, carrier: see `noisy_rpr`.
    """
    require_range(threshold=threshold)
    require_range(0, alpha=alpha)
    require_range(0, above=True, divisor=divisor)
    from guerdon.signals import ReasoningPatterns, RewardModel

    scorer = rm if callable(rm) else RewardModel(rm, retokenize=True)
    signals = {
        "rm": OnText(scorer, _answer),
        # RPR of a completion without well-formed tags is 0 whatever is read, so that its score stays 0.
        "rpr": ReasoningPatterns(
            phrase_set=phrase_set, read=read, answer=_answer, divisor=divisor, word_boundary=word_boundary
        ),
    }
    link = Calibrate("rm", "rpr", threshold, alpha) if calibrate else Drop("rpr")
    return System(signals, [link, *_carried("rm", carrier)], name="rpr_calibrated")


def _carried(name: str, carrier: str) -> list[Any]:
    """From one reward a completion to advantages."""
    if carrier == "ppo":
        return [ToTokens(name, "end"), GAE(name, 1.0, 1.0), Whiten(name)]
    if carrier not in ("group_mean", "grpo"):
        raise ConfigError(f"carrier={carrier!r}: use group_mean, grpo or ppo")
    norm = GroupNorm(name, std=None) if carrier == "group_mean" else GroupNorm(name)
    return [norm, ToTokens(name, "whole")]


def _without_answer(answer: Extract) -> Any:
    rule = extractor(answer)

    def without_answer(rollouts: Rollouts) -> list[bool]:
        return [not rule(text) for text in rollouts.last_turns]

    return without_answer


def _answer(text: str) -> str | None:
    """The answer of a completion with well-formed tags."""
    return patterns.think_and_answer(text).answer


# --- the functions of the conformance vectors ----------------------------------------------------------------------------


def ngram_repetition_ratio(text: str, n: int = 20) -> dict[str, float]:
    """Distinct n-grams seen at least twice / all n-grams."""
    return {"ratio": patterns.ngram_repetition_ratio(text, n)}


def reasoning_pattern_reward(text: str, phrase_set: Any = "math") -> dict[str, float]:
    """RPR of a text, with the code's divisor."""
    return {"reward": patterns.reasoning_pattern_reward(text, phrase_set)}


def extract_think_and_answer(response: str) -> dict[str, str | None]:
    """The last think and answer texts, or both None."""
    return patterns.think_and_answer(response)._asdict()


def math_score(sequence: str, ground_truth: str, check_correctness: bool = True) -> dict[str, float | None]:
    """Verdict and RPR of prompt + response; an empty last box is no answer: 0 and None. Without any box the text is the answer."""
    given = math_strings.boxed_or_all(sequence)
    if not given:
        return {"score": 0.0, "rpr": None}
    place = sequence.find(PREFIX.rstrip())
    rpr = patterns.reasoning_pattern_reward(sequence[place + len(PREFIX) :] if place >= 0 else sequence)
    if not check_correctness:
        return {"score": rpr, "rpr": rpr}
    return {"score": float(math_strings.same_math_string(math_strings.boxed_or_all(ground_truth), given)), "rpr": rpr}


def flip_group_rewards(
    scores: Sequence[float],
    rpr_scores: Sequence[float | None],
    group_size: int,
    flip_prob: float,
    uniform_draws: Sequence[float],
    add_rpr_when_wrong: bool = False,
    check_correctness: bool = True,
) -> dict[str, Tensor]:
    """Rewards of contiguous groups, given each group's draw. [N]; a row whose RPR is None has no answer and keeps its score."""
    given = torch.tensor([float(score) for score in scores], dtype=torch.float64)
    answered = torch.tensor([rpr is not None for rpr in rpr_scores], dtype=torch.bool)
    if not check_correctness:
        return {"rewards": given}
    drawn = torch.tensor([float(u) for u in uniform_draws] if flip_prob > 0 else [], dtype=torch.float64)
    group = torch.arange(len(given)) // group_size
    hit = (flip_prob > drawn)[group] if len(drawn) else torch.zeros_like(answered)
    noisy = flip_scores(given, hit & answered)
    if add_rpr_when_wrong:
        rpr = torch.tensor([rpr or 0.0 for rpr in rpr_scores], dtype=torch.float64)
        noisy = torch.where(answered & (noisy == 0), rpr, noisy)
    return {"rewards": noisy}


def calibrate_rm_scores(
    rm_scores: Any, rpr_scores: Any, format_valid: Any, threshold: float = 0.5, alpha: float = 0.1
) -> dict[str, Tensor]:
    """Scores, 0 where the format is not valid, with the bonus below the threshold. [B]."""
    score, bonus, valid = (
        torch.tensor([float(x) for x in v], dtype=torch.float64) for v in (rm_scores, rpr_scores, format_valid)
    )
    return {"scores": calibrate_scores(score * valid, bonus, threshold, alpha)}


VECTORS: VectorFunctions = {
    "ngram_repetition_ratio": ngram_repetition_ratio,
    "reasoning_pattern_reward": reasoning_pattern_reward,
    "extract_think_and_answer": extract_think_and_answer,
    "math_score": math_score,
    "flip_group_rewards": flip_group_rewards,
    "calibrate_rm_scores": calibrate_rm_scores,
}

PUBLISHED = Published(
    slug="noisy_rpr",
    title="Noisy rewards and the reasoning pattern reward (RPR)",
    arxiv="2505.22653",
    kinds=("sequence reward", "reward shaping", "reward model", "evaluation"),
    summary="Question-wise reward flips as a stress test, a count of reasoning phrases, and its use to calibrate a weak reward model.",
    vectors=VECTORS,
    settings=settings(
        code={
            "num_generations": 4,
            "temperature": 1.0,
            "beta": 0.0,
            "learning_rate": 1e-6,
            "max_completion_length": 4096,
        },
        shown={
            "algorithm": "PPO, gamma = lambda = 1, critic 5e-6, trained alone for 20 steps [code]",
            "batch": "128 prompts [code]",
            "prompt length": "768 [code]",
        },
    ),
    variants={
        "rpr_calibrated": settings(
            code={
                "num_generations": 4,
                "temperature": 1.0,
                "beta": 0.0,
                "learning_rate": 1e-6,
                "max_completion_length": 6144,
            },
            shown={"batch": "64 prompts, 200 steps [code]", "prompt length": "1536 [code]"},
        )
    },
)
