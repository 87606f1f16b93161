"""Rewards that are learned: process and scalar reward models as signals, and what trains them.

StepClassifier(model)    p(good) - p(bad) of every step, PURE's procedure
RewardModel(model)       one scalar for the whole completion
train_prm, train_rm      turn a language model into either
tiny_prm()               the path of the embedded process reward model that likes filler
"""

from guerdon.signals.learned.prm import StepClassifier, rebuild_prm_input, step_scores
from guerdon.signals.learned.scalar import RewardModel
from guerdon.signals.learned.steps import StepEnds, find_separator_ids, split_steps
from guerdon.signals.learned.tiny_prm import tiny_prm
from guerdon.signals.learned.train_prm import PURE_STAGES, Auxiliary, LabelledSolution, Stage, train_prm
from guerdon.signals.learned.train_rm import PreferencePair, pair_accuracy, train_rm

__all__ = [
    "PURE_STAGES",
    "Auxiliary",
    "LabelledSolution",
    "PreferencePair",
    "RewardModel",
    "Stage",
    "StepClassifier",
    "StepEnds",
    "find_separator_ids",
    "pair_accuracy",
    "rebuild_prm_input",
    "split_steps",
    "step_scores",
    "tiny_prm",
    "train_prm",
    "train_rm",
]
