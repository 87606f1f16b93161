"""CSR (calibration with semantic reward): right rollouts are paid for agreeing in meaning, wrong ones fined for agreeing with each other.

Problem: a 0/1 reward makes a policy over-confident; being wrong in the same way every time costs nothing more than being wrong. Rewards
for a spoken confidence fix that number, and other words for the same answer get other numbers. Idea: no spoken confidence. Among the
rollouts of a question, agreement in meaning is added to the reward of right ones and taken from that of wrong ones, so that large wrong
modes shrink and the share of an answer among samples becomes its confidence.

    E[R | answer k] = c_k + lam (2 c_k - 1) p_k         for clusters of mass p_k: wrong modes lose in proportion to their mass

Source: "Calibrating LLMs with Semantic-level Reward", arXiv 2605.15588. No code was published and only the abstract's sign structure is
certain: agreement, its peers, lam and the similarity are guesses, and therefore options. `form="brier"` is a proper score of the same
quantity, for comparison; it is not the paper's. `spoken_confidence` is the baseline with a spoken number, after RLCR (arXiv 2507.16806),
whose code is public; that CSR compares with it, and trains without dividing by the std as it does, is likely and not certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit import Fuse, GroupNorm, ToTokens, WatchCalibration
from guerdon.credit.by_outcome import ByOutcome, Form, brier_by_outcome, signed_by_outcome
from guerdon.credit.confidence import auroc as auroc_of
from guerdon.credit.confidence import brier_score as brier_of
from guerdon.credit.confidence import expected_calibration_error as ece_of
from guerdon.errors import ConfigError
from guerdon.options import checked, require_range
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.agreement import confidence
from guerdon.signals.agreement.semantic import Peers, SemanticAgreement, semantic_agreement
from guerdon.signals.verifiable.extraction import Extract
from guerdon.signals.verifiable.spoken import SOURCES, Pattern, SpokenConfidence
from guerdon.system import System
from guerdon.systems.base import Published, VectorFunctions
from guerdon.systems.settings import settings


@checked
def csr(
    *,
    verifier: Any,
    lam: float = 0.5,
    peers: Peers = "all",
    similarity: Any = "equal",
    form: Form = "signed",
    extract: Extract | None = "final",
    question: str | None = None,
    norm_by_std: bool = False,
    bins: int = 10,
) -> System:
    """Correctness + lam x (agreement if right, minus agreement if wrong). Every default but the signs is a guess.

    Args:
        verifier: correctness, 1 right and 0 wrong. Best with the same notion of equality as `similarity`: a right paraphrase that it
            calls wrong is pushed away from its own cluster.
        lam: factor of agreement, at least 0. At most 1 keeps every right rollout above every wrong one. Large values pay for nonsense over
            near misses where a group is wrong: watch accuracy.
        peers: whom a rollout is compared with: "all" others of the group, or those of the "same_outcome".
        similarity: "equal", "embedding", or a function (question, answers) -> [n, n] such as `Synonyms` and `Entailment`.
        form: "signed", or "brier": correctness - lam (agreement - correctness)^2.
        extract: where the answer is in a completion; "final" = by whichever mark it uses (`verifiable.final_answer`), None = all of it, which
            compares whole reasonings. Empty answers agree with nothing.
        question: data column with the question, for similarities that read it; None = the prompt.
        norm_by_std: divide by the group's sample std, as the paper may or may not do. It makes the fine in a group that is all wrong as loud
            as a right answer elsewhere, whatever lam is, and costs accuracy in the reproduction. RLCR's configurations do not divide.
        bins: of the expected calibration error in the log.
    """
    require_range(0, lam=lam)
    if lam < 0:
        raise ConfigError(f"lam={lam}: agreement is paid where right and fined where wrong, so lam is at least 0")
    std: Literal["sample"] | None = "sample" if norm_by_std else None
    signals = {"answer": verifier, "agreement": SemanticAgreement(similarity, peers, "answer", extract, question)}
    chain = [
        WatchCalibration("agreement", "answer", bins),
        ByOutcome("agreement", "answer", form),
        Fuse("answer", "agreement", weights=(1.0, lam), into="reward"),
        GroupNorm("reward", std=std, eps=1e-6),
        ToTokens("reward", "whole"),
    ]
    return System(signals, chain, name="csr")


@checked
def spoken_confidence(
    *,
    reference: str = "answer",
    pattern: Pattern = "tabc",
    weights: Sequence[float] = (0.5, 0.5, 0.5),
    norm_by_std: bool = False,
) -> System:
    """RLCR, the baseline that is paid for the confidence it speaks: w_f format + w_a accuracy + w_b (1 - (accuracy - confidence)^2).

    Args:
        reference: data column with the right answer, or a list of them.
        pattern: the layout, see `SpokenConfidence`; "ta" with weights (0.5, 0.5, 0) is its correctness-only arm.
        weights: of format, accuracy and Brier reward; those of RLCR's HotpotQA configuration.
        norm_by_std: divide by the group's sample std + 1e-4; that configuration does not.
    """
    signals = {"spoken": SpokenConfidence(reference, pattern)}
    names = tuple(f"spoken.{name}" for name in SOURCES)
    return System(signals, _weighted(names, weights, norm_by_std=norm_by_std), name="spoken_confidence")


def _weighted(names: Sequence[str], weights: Sequence[float], *, norm_by_std: bool) -> list[Any]:
    """Chain: the weighted sum of the sources, minus the group's mean, on every token."""
    if len(weights) != len(names):
        raise ConfigError(f"{len(weights)} weights for the sources {', '.join(names)}")
    return [
        Fuse(*names, weights=tuple(weights), into="reward"),
        GroupNorm("reward", std="sample" if norm_by_std else None, eps=1e-4, dtype="float64"),
        ToTokens("reward", "whole"),
    ]


# --- the functions of the conformance vectors ----------------------------------------------------------------------------


def _outcomes(correct: Sequence[Any]) -> Tensor:
    return torch.tensor([float(c) for c in correct], dtype=torch.float64)


def agreement(similarity: Any, correct: Sequence[Any], peers: Peers = "all") -> dict[str, Tensor]:
    """Mean similarity to the other rollouts."""
    return {"agreement": semantic_agreement(similarity, _outcomes(correct), peers)}


def csr_rewards(similarity: Any, correct: Sequence[Any], lam: float = 0.5, peers: Peers = "all") -> dict[str, Tensor]:
    """The signed agreement, and the total."""
    right = _outcomes(correct)
    signed = signed_by_outcome(semantic_agreement(similarity, right, peers), right)
    return {"calibration_rewards": signed, "rewards": right + lam * signed}


def brier_semantic_rewards(similarity: Any, correct: Sequence[Any], lam: float = 0.5) -> dict[str, Tensor]:
    """Correctness minus lam x squared distance of agreement from it."""
    right = _outcomes(correct)
    return {"rewards": right + lam * brier_by_outcome(semantic_agreement(similarity), right)}


def cluster_by_equivalence(equivalent: Any) -> dict[str, list[int]]:
    """Greedy clusters from a directed matrix."""
    return {"clusters": confidence.cluster_by_equivalence(torch.as_tensor(equivalent))}


def semantic_confidence(clusters: Sequence[int]) -> dict[str, Any]:
    """Share and first member of the largest cluster, and the entropy."""
    return confidence.semantic_confidence(clusters)._asdict()


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[Any], n_bins: int = 10) -> dict[str, float]:  # fmt: skip
    """ECE."""
    return {"ece": ece_of(torch.tensor(confidences, dtype=torch.float64), _outcomes(correct), n_bins)}


def expected_calibration_error_lower(confidences: Sequence[float], correct: Sequence[Any], n_bins: int = 10) -> dict[str, float]:  # fmt: skip
    """ECE with bins [lo, hi)."""
    confidence = torch.tensor(confidences, dtype=torch.float64)
    return {"ece": ece_of(confidence, _outcomes(correct), n_bins, "lower")}


def auroc(confidences: Sequence[float], correct: Sequence[Any]) -> dict[str, float]:
    """AUROC, NaN where one kind is missing."""
    return {"auroc": auroc_of(torch.tensor(confidences, dtype=torch.float64), _outcomes(correct))}


def brier_score(confidences: Sequence[float], correct: Sequence[Any]) -> dict[str, float]:
    """Mean squared distance."""
    return {"brier": brier_of(torch.tensor(confidences, dtype=torch.float64), _outcomes(correct))}


def verbalised_confidence_rewards(
    completions: Sequence[str], references: Sequence[Any], pattern: Pattern = "tabc", weights: Sequence[float] = (0.5, 0.5, 0.5)
) -> dict[str, Tensor]:  # fmt: skip
    """The three rewards of each completion and their weighted sum: what `spoken_confidence` pays. [N]."""
    rollouts = Rollouts.from_texts(
        ["q"] * len(completions), list(completions), group_ids=[0] * len(completions), columns={"answer": list(references)}
    )  # fmt: skip
    scores = spoken_confidence(pattern=pattern, weights=weights)(rollouts)
    assert scores.reward is not None
    terms = {name: scores.raw[f"spoken.{name}"].values[:, 0] for name in SOURCES}
    return {**terms, "rewards": scores.reward}


def weighted_group_advantages(
    term_rewards: Sequence[Sequence[float]], weights: Sequence[float], group_size: int, scale_rewards: bool = False
) -> dict[str, Tensor]:
    """Weighted sums of K terms and their advantages in consecutive groups, by the chain of `spoken_confidence`. [N]."""
    table = torch.tensor(term_rewards, dtype=torch.float64).reshape(len(term_rewards), len(weights))
    rollouts = Rollouts.from_texts(
        ["q"] * len(table), ["a"] * len(table), group_ids=[row // group_size for row in range(len(table))]
    )
    names = [str(term) for term in range(table.shape[1])]
    chain = _weighted(names, weights, norm_by_std=scale_rewards)
    sources = {name: Rewards.sequence(table[:, term], rollouts) for term, name in enumerate(names)}
    scores = replace(Scores.empty(rollouts), sources=sources)
    fused = chain[0](scores, rollouts)
    centred = chain[1](fused, rollouts)
    return {"rewards": fused["reward"].values[:, 0], "advantages": centred["reward"].values[:, 0]}


VECTORS: VectorFunctions = {
    "semantic_agreement": agreement,
    "csr_rewards": csr_rewards,
    "brier_semantic_rewards": brier_semantic_rewards,
    "cluster_by_equivalence": cluster_by_equivalence,
    "semantic_confidence": semantic_confidence,
    "expected_calibration_error": expected_calibration_error,
    "auroc": auroc,
    "brier_score": brier_score,
    "verbalised_confidence_rewards": verbalised_confidence_rewards,
    "expected_calibration_error_lower": expected_calibration_error_lower,
    "weighted_group_advantages": weighted_group_advantages,
}

PUBLISHED = Published(
    slug="csr",
    title="CSR (calibration with semantic reward)",
    arxiv="2605.15588",
    kinds=("sequence reward", "reward shaping"),
    summary="Right rollouts are paid for agreeing in meaning, wrong ones fined for it: agreement becomes a calibrated confidence.",
    vectors=VECTORS,
    settings=settings(
        guess={
            "num_generations": 8,
            "temperature": 0.7,
            "beta": 0.0,
            "learning_rate": 1e-6,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 0.05,
            "num_train_epochs": 1,
            "max_completion_length": 1536,
        },
        shown={"why": "all but the group size are RLCR's on the same data, whose group is 32 [guess]"},
    ),
    variants={
        "spoken_confidence": settings(
            code={
                "num_generations": 32,
                "temperature": 0.7,
                "beta": 0.0,
                "num_iterations": 1,
                "learning_rate": 1e-6,
                "lr_scheduler_type": "constant_with_warmup",
                "warmup_steps": 0.05,
                "num_train_epochs": 1,
                "max_completion_length": 1536,
            },
            shown={"prompt length": "3072 [code]"},
        )
    },
)
