"""CSR (calibration with semantic reward): right rollouts are paid for agreeing in meaning, wrong ones fined for agreeing with each other.

Problem: a 0/1 reward makes a policy over-confident; being wrong in the same way every time costs nothing more than being wrong. Rewards
for a spoken confidence fix that number, and other words for the same answer get other numbers. Idea: no spoken confidence. Among the
rollouts of a question, agreement in meaning is added to the reward of right ones and taken from that of wrong ones, so that large wrong
modes shrink and the share of an answer among samples becomes its confidence.

    E[R | answer k] = c_k + lam (2 c_k - 1) p_k         for clusters of mass p_k: wrong modes lose in proportion to their mass

Source: "Calibrating LLMs with Semantic-level Reward", arXiv 2605.15588. No code was published and only the abstract's sign structure is
certain: agreement, its peers, lam and the similarity are guesses, and therefore options. `form="brier"` is a proper score of the same
quantity, for comparison; it is not the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit import Fuse, GroupNorm, ToTokens, WatchCalibration
from guerdon.credit.by_outcome import ByOutcome, Form, brier_by_outcome, signed_by_outcome
from guerdon.credit.confidence import auroc as auroc_of
from guerdon.credit.confidence import brier_score as brier_of
from guerdon.credit.confidence import expected_calibration_error as ece_of
from guerdon.errors import ConfigError
from guerdon.signals.agreement import confidence
from guerdon.signals.agreement.semantic import Peers, SemanticAgreement, semantic_agreement
from guerdon.signals.verifiable.extraction import Extract
from guerdon.system import System
from guerdon.systems.base import Published, VectorFunctions


def csr(
    *,
    verifier: Any,
    lam: float = 0.5,
    peers: Peers = "all",
    similarity: Any = "equal",
    form: Form = "signed",
    extract: Extract | None = None,
    question: str | None = None,
    norm_by_std: bool = True,
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
        extract: where the answer is in a completion; None = all of it. Empty answers agree with nothing.
        question: data column with the question, for similarities that read it; None = the prompt.
        norm_by_std: divide by the group's sample std. That already flattens large wrong modes a little, see the reproduction.
        bins: of the expected calibration error in the log.
    """
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


def auroc(confidences: Sequence[float], correct: Sequence[Any]) -> dict[str, float]:
    """AUROC, NaN where one kind is missing."""
    return {"auroc": auroc_of(torch.tensor(confidences, dtype=torch.float64), _outcomes(correct))}


def brier_score(confidences: Sequence[float], correct: Sequence[Any]) -> dict[str, float]:
    """Mean squared distance."""
    return {"brier": brier_of(torch.tensor(confidences, dtype=torch.float64), _outcomes(correct))}


VECTORS: VectorFunctions = {
    "semantic_agreement": agreement,
    "csr_rewards": csr_rewards,
    "brier_semantic_rewards": brier_semantic_rewards,
    "cluster_by_equivalence": cluster_by_equivalence,
    "semantic_confidence": semantic_confidence,
    "expected_calibration_error": expected_calibration_error,
    "auroc": auroc,
    "brier_score": brier_score,
}

PUBLISHED = Published(
    slug="csr",
    title="CSR (calibration with semantic reward)",
    arxiv="2605.15588",
    kinds=("sequence reward", "reward shaping"),
    summary="Right rollouts are paid for agreeing in meaning, wrong ones fined for it: agreement becomes a calibrated confidence.",
    vectors=VECTORS,
)
