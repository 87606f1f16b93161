"""Labels by majority vote: the reward of a rollout is 1 where its answer is the label, else 0. Nobody knows the truth.

    CrossViewVote()      the label comes from the rollouts of the OTHER wordings of the question
    SameViewVote()       the label comes from the rollout's own group (test-time training with majority labels): the baseline that
                         collapses, because a policy that answers the same everywhere is always right

A vote without any answer has no label, and no label rewards nobody: silence agreeing with silence is not agreement.

Source: Co-Reward / Co-rewarding-I (arXiv 2508.00410), official code tmlr-group/Co-Reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from guerdon.options import checked
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.agreement.answers import answer_codes, answer_rule, normaliser
from guerdon.signals.verifiable.extraction import AnswerWatch, Extract
from guerdon.signals.verifiable.references import reference_values


class Labels(NamedTuple):
    """The outcome of a vote in each cell.

    Attributes:
        label: [C] int64, -1 = nobody gave an answer.
        share: [C] float64, the label's share of the votes that were given; 0 where there is no label.
        voters: [C] int64, rows of the cell, blank answers included.
    """

    label: Tensor
    share: Tensor
    voters: Tensor


def majority(codes: Tensor, cell: Tensor, cells: int) -> Labels:
    """The most frequent answer in each cell; ties go to the one that comes first.

    Args:
        codes: [N] int64 from `answer_codes`, -1 = no answer.
        cell: [N] int64 in [0, cells).
        cells: C.
    """
    cell = cell.to(codes.device)
    label = torch.full((cells,), -1, device=codes.device)
    share = torch.zeros(cells, dtype=torch.float64, device=codes.device)
    voters = torch.bincount(cell, minlength=cells)
    live = (codes >= 0).nonzero()[:, 0]
    if not len(live):
        return Labels(label, share, voters)
    kinds = int(codes.max()) + 1
    pair, which, count = torch.unique(cell[live] * kinds + codes[live], return_inverse=True, return_counts=True)
    first = torch.full_like(pair, len(codes)).scatter_reduce(0, which, live, "amin")
    owner = pair // kinds
    rank = count * (len(codes) + 1) - first  # count decides, then the earlier one
    best = torch.full_like(label, -1).scatter_reduce(0, owner, rank, "amax")
    won = rank == best[owner]
    label[owner[won]] = pair[won] % kinds
    share[owner[won]] = count[won].double() / torch.bincount(cell[live], minlength=cells)[owner[won]]
    return Labels(label, share, voters)


def cross_labels(codes: Tensor, question: Tensor, view: Tensor) -> Labels:
    """For each row the vote of the rows that have its question and another view.

    Args:
        codes: [B] answers. question: [B] int64 in [0, Q). view: [B] int64.

    Returns:
        Labels of [B] tensors; voters 0 where no other view of the question is there.
    """
    size, questions = len(codes), int(question.max()) + 1 if len(question) else 0
    question, view = question.to(codes.device), view.to(codes.device)
    none = torch.full((size,), -1, device=codes.device)
    found = Labels(none, torch.zeros_like(none, dtype=torch.float64), torch.zeros_like(none))
    for own in view.unique():
        rows, others = view == own, view != own
        votes = majority(codes[others], question[others], questions)
        for target, source in zip(found, votes, strict=True):
            target[rows] = source[question[rows]]
    return found


@checked
@dataclass
class Vote:
    """What the voting signals share. Gives several numbers a row:

    agrees: 1.0 where the answer is the label, else 0.0. unlabelled: 1.0 where the vote had no answer. share: the label's share of the
    votes. right, with `truth`: 1.0 where the label is a right answer: for the log, never for training.

    Args:
        extract: where the answer is in a completion, see `answers.answer_rule`.
        normalise: how answers are tidied before they are compared; None = as written.
        truth: data column with the right answer(s), to watch the labels; NaN where a row has none.
    """

    extract: Extract = "boxed_as_written"
    normalise: Any = None
    truth: str | None = None
    scope: ClassVar[str] = "group"
    relative: ClassVar[bool] = True  # agreement with one another
    level: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.answer = answer_rule(self.extract, self.normalise)
        self._watch = AnswerWatch(self.extract)
        self.level = dict.fromkeys(("agrees", "unlabelled", "share"), "sequence")
        if self.truth is not None:
            self.level["right"] = "sequence"

    def watched(self) -> tuple[str, ...]:
        """The numbers that are for the log only."""
        return tuple(name for name in self.level if name != "agrees")

    def codes(self, rollouts: Rollouts, known: dict[str, int]) -> Tensor:
        """[B] int64: equal numbers for equal answers, -1 for none."""
        answers = [self.answer(text) for text in rollouts.last_turns]
        self._watch(answers, type(self).__name__)
        return answer_codes(answers, known)

    def rewards(self, rollouts: Rollouts, codes: Tensor, labels: Labels, known: dict[str, int]) -> dict[str, Rewards]:
        """The numbers of each row, from row-wise labels."""
        blank = labels.label < 0
        agrees = (codes == labels.label) & ~blank
        given = {"agrees": agrees.float(), "unlabelled": blank.float(), "share": labels.share.float()}
        found = {name: Rewards.sequence(values, rollouts) for name, values in given.items()}
        if self.truth is not None:
            found["right"] = self._right(rollouts, labels.label, known, self.truth)
        return found

    def _right(self, rollouts: Rollouts, label: Tensor, known: dict[str, int], column: str) -> Rewards:
        tidy = normaliser(self.normalise)
        references = [[tidy(str(item)) for item in reference_values(cell)] for cell in rollouts.column(column)]
        values, reasons = [], {}
        for row, (reference, code) in enumerate(zip(references, label.tolist(), strict=True)):
            values.append(float(code in {known.get(text, -2) for text in reference}) if reference else float("nan"))
            if not reference:
                reasons[row] = f"no usable reference in column {column!r}"
        return Rewards.sequence(values, rollouts, reasons)


@checked
@dataclass
class SameViewVote(Vote):
    """Signal: agreement with the majority of the rollout's own group."""

    def __call__(self, rollouts: Rollouts, scores: Scores) -> dict[str, Rewards]:
        known: dict[str, int] = {}
        codes = self.codes(rollouts, known)
        names, group = torch.unique(rollouts.groups.cpu(), return_inverse=True)
        votes = majority(codes, group, len(names))
        return self.rewards(rollouts, codes, Labels(*(values[group] for values in votes)), known)


@checked
@dataclass
class CrossViewVote(Vote):
    """Signal: agreement with the majority of the other views of the same question.

    With more than two views the others vote together. A row whose question has no other view in the batch is NaN: the sampler, not the
    policy, failed.

    Args:
        question: data column, equal for the views of one question. An engine keeps such rows in one generation batch.
        view: data column that tells the views apart.
    """

    question: str = "question_id"
    view: str = "view"
    scope: ClassVar[str] = "batch"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({f"together.{self.question}"})

    def __call__(self, rollouts: Rollouts, scores: Scores) -> dict[str, Rewards]:
        known: dict[str, int] = {}
        codes = self.codes(rollouts, known)
        questions, views = rollouts.column(self.question), rollouts.column(self.view)
        labels = cross_labels(codes, _numbered(questions), _numbered(views))
        found = self.rewards(rollouts, codes, labels, known)
        alone = labels.voters == 0
        if bool(alone.any()):
            why = {
                row: f"no other view of {self.question}={questions[row]!r} is in this batch"
                for row in alone.nonzero()[:, 0].tolist()
            }
            values = torch.where(alone, float("nan"), found["agrees"].values[:, 0])
            found["agrees"] = Rewards.sequence(values, rollouts, why)
        return found


def _numbered(values: Sequence[Any]) -> Tensor:
    """[B] int64 from 0: equal numbers for equal values."""
    known: dict[Any, int] = {}
    return torch.tensor([known.setdefault(value, len(known)) for value in values], dtype=torch.long)
