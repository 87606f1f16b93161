"""Credit: from raw scores to advantages. Pure functions on tensors, and links over them.

    chain=[On("steps", MinForm(0.1)), ToTokens("steps"), ToTokens("answer"), Fuse("steps", "answer", into="credit"),
           Accumulate("credit"), LeaveOneOut("credit", "padded_tokens"), Whiten("credit")]

| what | links | functions |
| --- | --- | --- |
| one source | `On` with `Clip`, `Delta`, `MinForm`, `Scale`, `Round`, `Shape`, `Squash`, `Minus` | `shaping` |
| placement | `ToTokens`, `ToSequence`, `MaskEnds`, `OnLastSpan` | `placement`, `turns` |
| returns | `Accumulate`, `MinReturn`, `GAE`, `BlockedReturns` | `scan`, `turns` |
| across sources | `Fuse`, `Gate`, `Drop` | `fuse` |
| centring | `GroupNorm`, `LeaveOneOut`, `Whiten`, `PerRewardNorm`, `WeightedAdvantages` | `groups`, `normalise`, `leave_one_out` |
| between advantages | `MixSelfReward` | `self_reward` |
| penalties | `KLPenalty` | `kl` |
| one by another | `Calibrate`, `Fallback`, `Shrink`, `SwitchAt`; `ByOutcome` | `calibration`, `by_outcome` |
| watching | `Watch`, `WatchSteps`; `WatchCalibration`; `WatchVerification`, `RewardIs` | `monitor`, `confidence`, `verification` |
| steps to a row, outcome or process | `WeightedSteps`, `Hierarchical` | `hierarchy` |
| filters | `OnFailure`, `DropUniformGroups`, `DropTruncated`, `StdEMAFilter` | `filters` |
| over the run, for being short | `On` with `Anneal`; `LengthReward`, `WatchLength` | `schedule`, `length` |
| references and running statistics | `On` with `CenterOn`, `LengthPenalty`, `Ceil`; `RunningNorm` | `reference`, `running` |
"""

from __future__ import annotations

from typing import Any

from guerdon.credit.accumulate import GAE, Accumulate, MinReturn
from guerdon.credit.by_outcome import ByOutcome, brier_by_outcome, signed_by_outcome
from guerdon.credit.calibration import Calibrate, Fallback, Shrink, SwitchAt, calibrate_scores, shrink_scores
from guerdon.credit.confidence import (
    WatchCalibration,
    auroc,
    brier_score,
    confidence_bins,
    expected_calibration_error,
)
from guerdon.credit.filters import DropTruncated, DropUniformGroups, OnFailure, StdEMAFilter, std_threshold
from guerdon.credit.fuse import Drop, Fuse, Gate, weighted_sum
from guerdon.credit.group_length import GroupLengthPenalty, group_length_penalty
from guerdon.credit.groups import GroupStats, group_stats, group_sum, leave_one_out_mean
from guerdon.credit.hierarchy import Hierarchical, WeightedSteps, hierarchical_rewards, sigmoid_step_weights
from guerdon.credit.kl import KLPenalty, kl_estimate
from guerdon.credit.leave_one_out import LeaveOneOut, padded_token_baseline, per_step_baseline, per_token_baseline
from guerdon.credit.length import LengthReward, WatchLength
from guerdon.credit.monitor import Watch, WatchSteps, correlation
from guerdon.credit.normalise import GroupNorm, PerRewardNorm, Whiten, group_normalise, normalise_then_sum, whiten
from guerdon.credit.placement import MaskEnds, ToSequence, ToTokens, place_at_ends, place_on_whole, to_tokens
from guerdon.credit.reference import (
    Ceil,
    CenterOn,
    LengthPenalty,
    length_penalised,
    log_sigmoid_centred,
    pad_references,
    relative_reward,
)
from guerdon.credit.running import RunningMoments, RunningNorm, apply_moments, update_moments
from guerdon.credit.scan import gae, reverse_linear_scan, suffix_min, suffix_sum
from guerdon.credit.schedule import Anneal, Annealing, Onset
from guerdon.credit.self_reward import MixSelfReward, self_reward_advantages
from guerdon.credit.shaping import clip_scores, delta_scores, min_form, shaping_function, squash
from guerdon.credit.transforms import Clip, Delta, MinForm, Minus, On, Round, Scale, Shape, Squash
from guerdon.credit.turns import BlockedReturns, OnLastSpan, blocked_returns, early_advantages, on_last_span
from guerdon.credit.verification import RewardIs, WatchVerification, verification_metrics
from guerdon.credit.weighting import WeightedAdvantages
from guerdon.errors import nearest


def __getattr__(name: str) -> Any:
    raise AttributeError(f"guerdon.credit has no {name!r}{nearest(name, __all__)}")


NormalizeThenSum = PerRewardNorm  # the name TRL gives it

__all__ = [
    "GAE",
    "Accumulate",
    "Anneal",
    "Annealing",
    "BlockedReturns",
    "ByOutcome",
    "Calibrate",
    "Ceil",
    "CenterOn",
    "Clip",
    "Delta",
    "Drop",
    "DropTruncated",
    "DropUniformGroups",
    "Fallback",
    "Fuse",
    "Gate",
    "GroupLengthPenalty",
    "GroupNorm",
    "GroupStats",
    "Hierarchical",
    "KLPenalty",
    "LeaveOneOut",
    "LengthPenalty",
    "LengthReward",
    "MaskEnds",
    "MinForm",
    "MinReturn",
    "Minus",
    "MixSelfReward",
    "NormalizeThenSum",
    "On",
    "OnFailure",
    "OnLastSpan",
    "Onset",
    "PerRewardNorm",
    "RewardIs",
    "Round",
    "RunningMoments",
    "RunningNorm",
    "Scale",
    "Shape",
    "Shrink",
    "Squash",
    "StdEMAFilter",
    "SwitchAt",
    "ToSequence",
    "ToTokens",
    "Watch",
    "WatchCalibration",
    "WatchLength",
    "WatchSteps",
    "WatchVerification",
    "WeightedAdvantages",
    "WeightedSteps",
    "Whiten",
    "apply_moments",
    "auroc",
    "blocked_returns",
    "brier_by_outcome",
    "brier_score",
    "calibrate_scores",
    "clip_scores",
    "confidence_bins",
    "correlation",
    "delta_scores",
    "early_advantages",
    "expected_calibration_error",
    "gae",
    "group_length_penalty",
    "group_normalise",
    "group_stats",
    "group_sum",
    "hierarchical_rewards",
    "kl_estimate",
    "leave_one_out_mean",
    "length_penalised",
    "log_sigmoid_centred",
    "min_form",
    "normalise_then_sum",
    "on_last_span",
    "pad_references",
    "padded_token_baseline",
    "per_step_baseline",
    "per_token_baseline",
    "place_at_ends",
    "place_on_whole",
    "relative_reward",
    "reverse_linear_scan",
    "self_reward_advantages",
    "shaping_function",
    "shrink_scores",
    "sigmoid_step_weights",
    "signed_by_outcome",
    "squash",
    "std_threshold",
    "suffix_min",
    "suffix_sum",
    "to_tokens",
    "update_moments",
    "verification_metrics",
    "weighted_sum",
    "whiten",
]
