"""PURE: min-form credit from a process reward model.

Problem: with a process reward model a policy can raise the usual return, a SUM of step scores, by writing many steps the model
likes; training collapses into filler within tens of updates. Idea: a step's return is the MINIMUM of the step scores from there on.
Only the worst step matters, the value stays in the reward model's own range, and steps after the worst one get no credit. One
transform of the scores does it, r*_t = softmax_t(-r_t / T) r_t, whose suffix sums approximate the minimum; nothing else changes.

It is not immune: a reward model that scores filler ABOVE a right step makes filler the best policy under min-form too, and
one-step answers have their only score as their minimum. Watch steps, length and KL.

Source: "Stop Summation: Min-Form Credit Assignment Is All Process Reward Model Needs for Reasoning", arXiv 2504.15275; official code
github.com/CJReinforce/PURE, branch verl (the default here) and main (OpenRLHF; `baseline="openrlhf_token"`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit import (
    Accumulate,
    Fuse,
    KLPenalty,
    LeaveOneOut,
    MaskEnds,
    MinForm,
    MinReturn,
    On,
    OnFailure,
    Scale,
    ToTokens,
    WatchSteps,
    Whiten,
    min_form,
    padded_token_baseline,
    per_step_baseline,
    per_token_baseline,
    suffix_min,
    suffix_sum,
    whiten,
)
from guerdon.credit.groups import leave_one_out_mean
from guerdon.errors import ConfigError
from guerdon.options import checked, require_range
from guerdon.segment import ByDelimiter
from guerdon.system import Model, System
from guerdon.systems.base import Published, VectorFunctions
from guerdon.systems.settings import settings

Credit = Literal["min", "sum", "mean", "strict_min"]
Mode = Literal["prm", "vr", "prm+vr"]
Baseline = Literal["verl", "openrlhf_token", "openrlhf_step"]


@checked
def pure(
    *,
    prm: Any,
    verifier: Any = None,
    tokenizer: Any = None,
    delimiter: str | None = None,
    mode: Mode | None = None,
    credit: Credit = "min",
    temperature: float = 0.1,
    baseline: Baseline = "verl",
    verifier_coef: float = 1.0,
    kl_coef: float = 0.001,
    adv_norm: bool = True,
    mask_separators: bool = True,
    padded_length: int | Literal["batch"] = 7168,
    retokenize: bool = False,
    convention: str | None = None,
) -> System:
    """PURE with the official defaults.

    Args:
        prm: path or hub id of a process reward model (see docs/reward-models.md), or any signal that scores the segmentation "steps".
        verifier: a sequence signal, 1 right and 0 wrong. Rows where it fails (a prompt without an answer) train on steps alone.
        tokenizer: the policy's, to cut steps by PURE's rule on token ids; None cuts the text.
        delimiter: what ends a step; None = a blank line.
        mode: which rewards; None = "prm+vr" with a verifier, "prm" without.
        credit: "min" (the transform), "strict_min" (suffix minima), "sum" (the collapsing baseline), "mean" (weights 1/n).
        temperature: T of the transform.
        baseline: "verl"; "openrlhf_token" or "openrlhf_step" for the other branch's estimator.
        verifier_coef: weight of the verifier.
        kl_coef: per-token KL penalty inside the reward, k3 clamped to 10 (verl) or k1 (OpenRLHF); 0 needs no reference model.
        adv_norm: whiten advantages over the batch.
        mask_separators: OpenRLHF only: step ends get no gradient.
        padded_length: L of the verl baseline, tokens. verl pads every response to the run's length cap, 7168 in the official runs: give
            your trainer's `max_completion_length` (`guerdon train` does). "batch" = the longest completion of the batch, which
            makes the baseline larger, and different from batch to batch.
        retokenize: `prm` has another vocabulary than the policy: it reads the text.
        convention: how `prm` is read, where its checkpoint does not say; see `signals.learned.conventions.TABLE`.
    """
    require_range(0, verifier_coef=verifier_coef, kl_coef=kl_coef)
    require_range(0, above=True, temperature=temperature)
    if padded_length != "batch" and (isinstance(padded_length, str) or padded_length < 1):
        raise ConfigError(f"padded_length={padded_length!r}: the length cap in tokens, or 'batch'")
    mode = mode or ("prm" if verifier is None else "prm+vr")
    if mode not in ("prm", "vr", "prm+vr"):
        raise ConfigError(f"mode={mode!r}: use 'prm', 'vr' or 'prm+vr'")
    if credit not in ("min", "sum", "mean", "strict_min"):
        raise ConfigError(f"credit={credit!r}: use 'min', 'sum', 'mean' or 'strict_min'")
    if "vr" in mode and verifier is None:
        raise ConfigError(f"mode={mode!r} needs verifier=...")
    steps, answer = "prm" in mode, "vr" in mode
    signals: dict[str, Any] = {"steps": step_signal(prm, retokenize=retokenize, convention=convention)} if steps else {}
    if answer:
        signals["answer"] = verifier
    failures = [OnFailure("source", ("answer",)), OnFailure("row")] if steps and answer else [OnFailure("row")]
    transform = {"min": [MinForm(temperature)], "mean": [MinForm(temperature, weighted=False)]}.get(credit, [])
    shape = [WatchSteps("steps", warn_single=False), *[On("steps", link) for link in transform]] if steps else []
    if baseline == "verl":
        width = None if padded_length == "batch" else padded_length
        links = _verl(steps, answer, credit, verifier_coef, kl_coef, adv_norm, width)
    elif baseline in ("openrlhf_token", "openrlhf_step"):
        if credit == "strict_min":
            raise ConfigError("credit='strict_min' belongs to the verl branch: baseline='verl'")
        links = _openrlhf(steps, answer, baseline, verifier_coef, kl_coef, adv_norm, mask_separators)
    else:
        raise ConfigError(f"baseline={baseline!r}: use 'verl', 'openrlhf_token' or 'openrlhf_step'")
    cuts = steps or (baseline != "verl" and mask_separators)
    return System(
        signals,
        [*failures, *shape, *links],
        segments={"steps": ByDelimiter(tokenizer, delimiter or "\n\n")} if cuts else {},
        models={"reference": Model("policy", "phase_start")} if kl_coef else {},
        name="pure" if credit == "min" else f"pure:credit={credit}",
    )


# PURE's collapsing baseline: plain sums of the raw step scores. Options as `pure`.
pure_sum = partial(pure, credit="sum")


def step_signal(prm: Any, *, retokenize: bool = False, convention: str | None = None) -> Any:
    """The process reward model of a path, or the signal itself."""
    if callable(prm) and hasattr(prm, "level"):
        refuse_for_signals("prm", retokenize=retokenize, convention=convention)
        if prm.level == "sequence" and hasattr(prm, "name"):  # a description's placeholder
            return type(prm)(prm.name, "steps")
        return prm
    from guerdon.signals.learned.prm import StepClassifier

    return StepClassifier(prm, retokenize=retokenize, convention=convention)


def refuse_for_signals(name: str, **options: Any) -> None:
    """Raise ConfigError for options of a model's path that were given beside a signal, which has its own."""
    given = [key for key, value in options.items() if value]
    if given:
        raise ConfigError(f"{' and '.join(given)} belong to a path: {name} is a signal here, give them to the signal")


def _joined(steps: bool, answer: bool) -> tuple[str, list[Any]]:
    """The name of the token-level source both rewards end in, and the link that joins them."""
    if steps and answer:
        return "credit", [Fuse("steps", "answer", into="credit")]
    return ("steps" if steps else "answer"), []


def _verl(
    steps: bool,
    answer: bool,
    credit: str,
    verifier_coef: float,
    kl_coef: float,
    adv_norm: bool,
    padded_length: int | None,
) -> list[Any]:
    name, join = _joined(steps, answer)
    placed: list[Any] = [ToTokens("steps", "end")] if steps else []
    if answer:
        placed += [On("answer", Scale(verifier_coef)), ToTokens("answer", "end")]
    return [
        *placed,
        *join,
        *([KLPenalty(name, kl_coef, "k3", clamp=10.0)] if kl_coef else []),
        MinReturn(name, padding="zero") if credit == "strict_min" else Accumulate(name),
        LeaveOneOut(name, "padded_tokens", padded_length=padded_length, singleton="raw"),
        *([Whiten(name)] if adv_norm else []),
    ]


def _openrlhf(
    steps: bool,
    answer: bool,
    baseline: str,
    verifier_coef: float,
    kl_coef: float,
    adv_norm: bool,
    mask_separators: bool,
) -> list[Any]:
    name, join = _joined(steps, answer)
    kind: Literal["per_token", "per_step"] = "per_token" if baseline == "openrlhf_token" else "per_step"
    placed: list[Any] = [LeaveOneOut("steps", kind, singleton="raw"), ToTokens("steps", "end")] if steps else []
    if answer:  # solved in {0, 1} becomes {-1, 0}; leave-one-out is linear, so the coefficient may come first
        placed += [
            On("answer", Scale(verifier_coef, -verifier_coef)),
            LeaveOneOut("answer", singleton="raw"),
            ToTokens("answer", "end"),
        ]
    return [
        *placed,
        *join,
        *([KLPenalty(name, kl_coef, "k1", clamp=None)] if kl_coef else []),
        Accumulate(name),
        *([MaskEnds(name, "steps")] if mask_separators else []),
        *([Whiten(name, std="population")] if adv_norm else []),
    ]


# --- the functions of the conformance vectors ----------------------------------------------------------------------------


def _floats(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def _grid(rows: Sequence[Sequence[float]]) -> Tensor:
    """[B, N], also for no rows."""
    grid = _floats(rows)
    return grid if grid.dim() == 2 else grid.reshape(len(rows), 0)


def _ids(labels: Sequence[Any]) -> Tensor:
    """Group labels of any type as integers."""
    known: dict[Any, int] = {}
    return torch.tensor([known.setdefault(label, len(known)) for label in labels], dtype=torch.long)


def transform_process_rewards(
    logits: Any, step_mask: Any, temperature: float = 0.1, weighted: bool = True
) -> dict[str, Tensor]:
    """Two-class logits [B, N, 2] at step ends to r = p1 - p0, then the transform; also each row's sum."""
    mask = _grid(step_mask) > 0
    probabilities = _floats(logits).reshape(*mask.shape, 2).softmax(-1)
    scores = torch.where(mask, probabilities[..., 1] - probabilities[..., 0], 0.0)
    shaped = min_form(scores, mask, temperature, weighted=weighted)
    return {"process_rewards": shaped, "outcome_rewards": shaped.sum(1)}


def min_form_returns(step_rewards: Any) -> dict[str, Tensor]:
    """The limit T -> 0: min(r) up to and including the FIRST minimum, 0 after it. step_rewards: [N]."""
    rewards = _floats(step_rewards).reshape(-1)
    if not len(rewards):
        return {"returns": rewards}
    worst = int((rewards == rewards.min()).int().argmax())
    return {"returns": torch.where(torch.arange(len(rewards)) <= worst, rewards.min(), 0.0)}


def rloo_token_baseline_advantages(
    token_level_rewards: Any,
    response_mask: Any,
    group_ids: Sequence[Any],
    adv_norm: bool = True,
    return_aggregate: Literal["sum", "min"] = "sum",
) -> dict[str, Tensor]:
    """The verl branch's estimator on [B, L] token rewards that hold KL and verifier terms already."""
    rewards, mask = _grid(token_level_rewards), _grid(response_mask) > 0
    returns = suffix_sum(rewards, mask) if return_aggregate == "sum" else suffix_min(rewards, mask, padding="zero")
    baseline = padded_token_baseline(returns, mask, _ids(group_ids))
    returns = torch.where(mask, returns - baseline[:, None], 0.0)
    return {"advantages": whiten(returns, mask) if adv_norm else returns, "returns": returns}


def split_steps(responses: Any, response_mask: Any, separator_ids: Any) -> dict[str, Tensor]:
    """The verl branch's splitter; a final token that is a separator is listed twice, as in the official code."""
    from guerdon.signals.learned.steps import split_steps as split

    ids, mask = _grid(responses).long(), _grid(response_mask) > 0
    cut = split(ids, mask, [int(i) for i in separator_ids], count_final_separator_twice=True)
    return {"step_end_mask": cut.step_end_mask.long(), "step_ends": cut.step_ends, "num_steps": cut.num_steps.double()}


def openrlhf_group_advantages(
    process_rewards: Any,
    step_end_mask: Any,
    num_tokens_per_step: Any,
    step_mask: Any,
    response_mask: Any,
    solved: Any,
    have_answers: Any,
    kl: Any,
    n_samples: int,
    baseline: Literal["token", "step"] = "token",
    reward_mode: Literal["PRM", "VR", "PRMVR"] = "PRMVR",
    verifiable_coef: float = 1.0,
    kl_coef: float = 0.001,
    mask_separators: bool = True,
) -> dict[str, Tensor]:
    """The OpenRLHF branch's estimator; rows of a prompt are consecutive, `n_samples` each. Shapes: [B, L], steps [B, N]."""
    rewards, ends, valid = _grid(process_rewards), _grid(step_end_mask) > 0, _grid(response_mask) > 0
    sizes, steps = _grid(num_tokens_per_step), _grid(step_mask)
    groups = torch.arange(len(rewards)) // n_samples
    outcome = rewards.sum(1)
    shaped = torch.zeros_like(rewards)
    if "PRM" in reward_mode:
        if baseline == "token":
            step_of = (ends.long().cumsum(1) - 1).clamp(0, max(sizes.shape[1] - 1, 0))
            charged = sizes.gather(1, step_of) if sizes.shape[1] else torch.zeros_like(rewards)
            paid = per_token_baseline(outcome, valid.sum(1), groups)[:, None] * charged
        else:
            paid = per_step_baseline(outcome, steps.sum(1), groups)[:, None]
        shaped = torch.where(ends, rewards - paid, 0.0)
    if "VR" in reward_mode:
        value = _floats(solved) - 1
        centred = value - torch.nan_to_num(leave_one_out_mean(value, groups), nan=0.0)
        position = torch.arange(valid.shape[1]).expand(valid.shape)
        last = position == torch.where(valid, position, -1).amax(1, keepdim=True) if valid.shape[1] else valid
        shaped = shaped + torch.where(last & valid, verifiable_coef * centred[:, None], 0.0)
    advantages = suffix_sum(shaped - kl_coef * _grid(kl), torch.ones_like(valid))
    if mask_separators:
        advantages = torch.where(ends, 0.0, advantages)
    agrees = ((outcome > 0) == (_floats(solved) > 0)).double()
    return {
        "rewards_after_baseline": shaped,
        "advantages": advantages,
        "match": torch.where(_floats(have_answers) > 0, agrees, -1.0),
        "outcome_rewards": outcome,
    }


VECTORS: VectorFunctions = {
    "transform_process_rewards": transform_process_rewards,
    "min_form_returns": min_form_returns,
    "rloo_token_baseline_advantages": rloo_token_baseline_advantages,
    "split_steps": split_steps,
    "openrlhf_group_advantages": openrlhf_group_advantages,
}

PUBLISHED = Published(
    slug="pure",
    title="PURE (Process sUpervised Reinforcement lEarning, min-form credit assignment)",
    arxiv="2504.15275",
    kinds=("step reward", "credit assignment", "advantage estimator", "reward model"),
    summary="A step's return is the minimum of the step scores from there on, so filler steps earn nothing.",
    vectors=VECTORS,
    settings=settings(
        code={
            "num_generations": 8,
            "temperature": 1.0,
            "epsilon": 0.2,
            "beta": 0.0,
            "loss_type": "dapo",
            "num_iterations": 1,
            "learning_rate": 1e-6,
            "max_grad_norm": 1.0,
            "max_completion_length": 7168,
        },
        shown={
            "KL": "0.001 (k3) inside the reward: `kl_coef` of the system, so beta is 0 [code]",
            "batch": "64 prompts, updates of 256 rollouts [code]",
            "prompt length": "1024 [code]",
            "OpenRLHF branch": "4 rollouts, temperature 0.5, learning rate 5e-7, response 2048, loss averaged over rows [code]",
        },
    ),
)
