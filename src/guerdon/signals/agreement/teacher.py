"""The label comes from a teacher: rollouts of another model - a slowly moving average of the policy - on the same question.

    TeacherVote(max_tokens=512)                                   # asks for the role "teacher"
    System(..., models={"teacher": Model("policy", "ema", rate=CosineRate())})

The policy cannot make its own answer right within a step: the teacher has hardly moved. Costs a second sampling of each group.

Source: Co-rewarding-II (arXiv 2508.00410 v2), official code tmlr-group/Co-rewarding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from guerdon.errors import CapabilityError, ConfigError
from guerdon.lm.ranks import shared_work
from guerdon.options import checked
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.agreement.answers import answer_codes
from guerdon.signals.agreement.vote import Labels, Vote, majority


@checked
@dataclass
class TeacherVote(Vote):
    """Signal: agreement with the majority of a teacher's rollouts of the same prompt.

    On several ranks each samples a share of the groups, and all see the same labels.

    Args:
        max_tokens: cap on a teacher's rollout; the policy's own.
        samples: teacher rollouts of each prompt (G~).
        temperature: of these; the policy's own.
        role: under which the teacher is bound.
    """

    max_tokens: int = 3072
    samples: int = 8
    temperature: float = 1.0
    role: str = "teacher"
    _teacher: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1 or self.max_tokens < 1 or self.temperature <= 0:
            raise ConfigError(
                f"TeacherVote(samples={self.samples}, max_tokens={self.max_tokens}, temperature={self.temperature}): all must be positive"
            )

    @property
    def roles(self) -> tuple[str, ...]:
        return (self.role,)

    def bind(self, role: str, instrument: Any) -> None:
        self._teacher = instrument

    def __call__(self, rollouts: Rollouts, scores: Scores) -> dict[str, Rewards]:
        if self._teacher is None:
            raise CapabilityError(
                f"the vote's {self.role!r} is not bound: an engine does it, or system.bind({self.role!r}, LocalModel(...))"
            )
        known: dict[str, int] = {}
        codes = self.codes(rollouts, known)
        names, group = torch.unique(rollouts.groups.cpu(), return_inverse=True)
        prompts = [_prompt(rollouts, int((group == g).nonzero()[0, 0])) for g in range(len(names))]
        texts = shared_work(prompts, lambda share, rank: self._sample(share, rank, rollouts))
        votes = answer_codes([self.answer(text) for of_prompt in texts for text in of_prompt], known)
        cell = torch.arange(len(names)).repeat_interleave(self.samples)
        labels = majority(votes, cell, len(names))
        return self.rewards(rollouts, codes, Labels(*(values[group] for values in labels)), known)

    def _sample(self, prompts: Sequence[Any], rank: int, rollouts: Rollouts) -> list[list[str]]:
        """`samples` texts for each prompt."""
        if not prompts:
            return []
        made = self._teacher.generate(
            prompts,
            n=self.samples,
            max_new_tokens=self.max_tokens,
            temperature=self.temperature,
            generator=rollouts.clock.generator("teacher", rank),
        )
        return [made.texts[i : i + self.samples] for i in range(0, len(made.texts), self.samples)]


def _prompt(rollouts: Rollouts, row: int) -> Tensor | Any:
    """The prompt's ids as the policy saw them, or its text where the rollouts have no tokens."""
    if rollouts.prompt_ids is None or rollouts.prompt_mask is None:
        return rollouts.prompts[row]
    return rollouts.prompt_ids[row][rollouts.prompt_mask[row].bool()]
