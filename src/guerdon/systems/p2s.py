"""P2S: every step is paid for how much likelier it makes the rest of a gold chain that the policy wrote itself, told the answer.

Problem: on open questions a group in which every rollout is wrong teaches an outcome reward nothing, and there is no verifier, reward
model or step label to ask. Idea: shown the question AND the reference answer, the policy writes K chains of reasoning; the one after which
it finds the answer likeliest (the question alone before it) is the gold chain. A step of a rollout is good if the rollout up to it makes
some remaining part of the gold chain much likelier than a masked prefix does. Steps are weighted, later ones more; groups with a right
rollout keep the outcome reward, the others get the squashed process score.

It pays for resemblance to the policy's OWN chain, which nobody verified: watch `pfr.gold` and true success beside it.

Source: "P2S: Probabilistic Process Supervision for General-Domain Reasoning Question Answering", arXiv 2601.20649 (AAAI 2026). No official code was
found; the parameters marked (ours) are not recovered from the paper and are defaults of this library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit import (
    Drop,
    Fuse,
    Gate,
    GroupNorm,
    Hierarchical,
    OnFailure,
    SwitchAt,
    ToTokens,
    WeightedSteps,
    sigmoid_step_weights,
)
from guerdon.credit import hierarchical_rewards as _hierarchical
from guerdon.errors import ConfigError
from guerdon.options import checked, require_range
from guerdon.segment.reasoning import ChainLayout, EqualPieces, equal_pieces, layout_of
from guerdon.signals.likelihood import path_faithfulness as pfr
from guerdon.signals.likelihood.gold_chain import HINT, ChainColumn, Choose, SynthesisedChains, select_gold_chain
from guerdon.signals.verifiable.answer_layout import LayoutFormat, Rouge
from guerdon.signals.verifiable.answer_layout import rouge1_f1 as _rouge1_f1
from guerdon.system import System
from guerdon.systems.base import Published, VectorFunctions
from guerdon.systems.settings import settings

Integration = Literal["hierarchical", "additive"]


@checked
def p2s(
    *,
    verifier: Any = None,
    reference: str = "answer",
    layout: str | ChainLayout | Sequence[str] = "think",
    gold: str | None = None,
    candidates: int = 4,
    hint: str | Callable[[Any, str], Any] = HINT,
    choose: Choose = "likelihood",
    leak_pieces: int = 0,
    chain_tokens: int | None = None,
    max_steps: int = 5,
    baseline: pfr.Baseline = "masked",
    suffix_reduction: pfr.Over = "sum",
    answer_reduction: pfr.Over = "mean",
    steepness: float = 10.0,
    integration: Integration = "hierarchical",
    weight: float = 0.5,
    correct_threshold: float = 0.99,
    process_scale: float = 0.5,
    wrong_format: float = -1.0,
    format_warmup: float = 0.1,
    temperature: float = 1.0,
    eps: float = 1e-6,
    tokenizer: Any = None,
) -> System:
    """P2S.

    Args:
        verifier: the outcome, a sequence signal; None = ROUGE-1 F1 of the answer, as the paper's GRPO baseline.
        reference: the data column with the reference answer.
        layout: where a completion reasons and answers: "think", "think_opened" (the chat template writes the <think>), "answer", four texts,
            or a `ChainLayout`.
        gold: a data column with gold chains (`guerdon.io.chains` writes one); None = synthesised by the policy at every step.
        candidates: K chains for a question (ours).
        hint: what the synthesis adds to the prompt, see `signals.likelihood.gold_chain.hinted` (ours); "" = the question alone.
        choose: "likelihood" filters; "first" takes the first well-formed chain (the paper's ablation).
        leak_pieces: drop candidates that state the answer in the first of so many parts; 0 = off.
        chain_tokens: length cap of a candidate; None = twice the longest rollout.
        max_steps: pieces of a rollout and of a gold chain (ours).
        baseline: "masked" placeholder tokens, "empty", or "other" = another question's reasoning (ours).
        suffix_reduction: "sum" or "mean" of a suffix's log-probabilities over its tokens. The paper does not say; in the reproduction the sum
            taught in 5 of 5 seeds and the mean in 1, because the last step's log-probability of the answer drowned the others (ours).
        answer_reduction: the same of the answer's (ours).
        steepness: of the sigmoid of the step weights; 0 = all alike (the shape is ours).
        integration: "hierarchical"; "additive" is outcome + weight x process for all well-formed rollouts.
        weight: of the process score in "additive".
        correct_threshold, process_scale, wrong_format: see `credit.hierarchical_rewards` (the first two ours).
        format_warmup: share of the run in which the format alone is rewarded (ours: 50 of 500 steps).
        temperature: divides the logits of every scoring, and samples the chains.
        eps: of the group's std.
        tokenizer: counts the tokens of rollouts that are texts only.
    """
    require_range(0, steepness=steepness, weight=weight, eps=eps)
    require_range(correct_threshold=correct_threshold, wrong_format=wrong_format)
    require_range(0, above=True, temperature=temperature)
    if integration not in ("hierarchical", "additive"):
        raise ConfigError(f"integration={integration!r}: use 'hierarchical' or 'additive'")
    form = layout_of(layout)
    chains: Any = ChainColumn(gold, form, reference, temperature) if gold else None
    chains = chains or SynthesisedChains(
        form, reference, candidates, hint, choose, temperature, chain_tokens, leak_pieces, temperature
    )
    hierarchical = integration == "hierarchical"
    signals = {
        "format": LayoutFormat(layout=form),
        "answer": verifier if verifier is not None else Rouge(reference=reference, layout=form),
        "pfr": pfr.PathFaithfulness(
            chains=chains,
            layout=form,
            reference=reference,
            pieces=max_steps,
            baseline=baseline,
            suffix_reduction=suffix_reduction,
            answer_reduction=answer_reduction,
            temperature=temperature,
            unless="answer" if hierarchical else None,
            threshold=correct_threshold,
        ),
    }
    chain: list[Any] = [
        OnFailure("row"),
        Drop("pfr.gold", "pfr.survived"),
        WeightedSteps("pfr.steps", steepness, into="process"),
    ]
    if hierarchical:
        chain.append(
            Hierarchical("answer", "process", "format", "reward", correct_threshold, process_scale, wrong_format)
        )
    else:
        chain += [
            Fuse("answer", "process", weights=(1.0, weight), into="reward"),
            Gate("reward", by="format", threshold=0.5, otherwise=wrong_format),
        ]
    chain.append(SwitchAt("reward", by="format", share=format_warmup) if format_warmup else Drop("format"))
    chain += [GroupNorm("reward", eps=eps), ToTokens("reward", "whole")]
    return System(signals, chain, segments={"steps": EqualPieces(max_steps, form, tokenizer)}, name="p2s")


# --- the functions of the conformance vectors ----------------------------------------------------------------------------


def _table(rows: Any) -> Tensor:
    """[m - 1, n] float64 from a list of lists; [] is no row, [[], []] two rows of nothing."""
    listed = [[float("nan") if cell is None else float(cell) for cell in row] for row in rows]
    return torch.tensor(listed, dtype=torch.float64).reshape(len(listed), len(listed[0]) if listed else 0)


def path_faithfulness_rewards(suffix_logprobs: Any, masked_suffix_logprobs: Any, answer_logprob: float) -> Tensor:
    """[m] rewards of a rollout's steps from scored suffixes."""
    answer = torch.tensor(float(answer_logprob), dtype=torch.float64)
    return pfr.path_faithfulness_rewards(_table(suffix_logprobs), _table(masked_suffix_logprobs), answer)


def segment_equal_steps(num_tokens: int, max_steps: int) -> list[tuple[int, int]]:
    """[start, end) of min(max_steps, num_tokens) steps."""
    return equal_pieces(num_tokens, max_steps)


def step_weights(num_steps: int, steepness: float = 10.0) -> Tensor:
    """[m] weights summing to 1."""
    return sigmoid_step_weights(torch.ones(1, max(0, num_steps), dtype=torch.bool), steepness)[0]


def hierarchical_rewards(
    format_ok: Sequence[Any],
    outcome_rewards: Sequence[float],
    process_scores: Sequence[float],
    correct_threshold: float = 0.99,
    process_scale: float = 0.5,
) -> Tensor:
    """Rewards of one group."""
    outcome, process = (
        torch.tensor([float("nan") if x is None else float(x) for x in values], dtype=torch.float64)
        for values in (outcome_rewards, process_scores)
    )
    good = torch.tensor([bool(ok) for ok in format_ok], dtype=torch.bool)
    group = torch.zeros(len(good), dtype=torch.long)
    return _hierarchical(good, outcome, process, group, threshold=correct_threshold, scale=process_scale)[0]


def rouge1_f1(prediction: str, reference: str) -> float:
    """Unigram F1."""
    return _rouge1_f1(prediction, reference)


def select_gold_cot(format_ok: Sequence[Any], answer_logprobs: Sequence[float]) -> int | None:
    """Which candidate becomes the gold chain."""
    return select_gold_chain(format_ok, [float("nan") if value is None else float(value) for value in answer_logprobs])


VECTORS: VectorFunctions = {
    "path_faithfulness_rewards": path_faithfulness_rewards,
    "segment_equal_steps": segment_equal_steps,
    "sigmoid_step_weights": step_weights,
    "hierarchical_rewards": hierarchical_rewards,
    "rouge1_f1": rouge1_f1,
    "select_gold_cot": select_gold_cot,
}

PUBLISHED = Published(
    slug="p2s",
    title="P2S (probabilistic process supervision)",
    arxiv="2601.20649",
    kinds=("step reward", "reward shaping", "credit assignment"),
    summary="Steps are paid for how much likelier they make the rest of a gold chain the policy wrote itself, told the answer.",
    vectors=VECTORS,
    settings=settings(
        note={"num_generations": 4, "learning_rate": 3e-6, "max_completion_length": 2048},
        shown={
            "batch": "256, 500 steps, after 3 epochs of supervised cold start [note]",
            "KL, clip range, temperature": "not found [guess]",
        },
    ),
)
