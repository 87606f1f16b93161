"""Majority labels on tables: questions that stand in two views, a policy of logits, and the three ways to make a label.

    P(answer k | question q, view v) = softmax(theta[q] + bias[v])[k]

theta is what the views share, so that what is learned in one helps in the other; bias favours one answer in each view, another one in
each: what a policy answers when it does not know. Both are trained, by the group-normalised policy gradient, with sampled votes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guerdon.credit import group_normalise
from guerdon.lm.ema import CosineRate, ema_update_
from guerdon.signals.agreement.vote import cross_labels, majority

OWN, CROSS, TEACHER = "own view's majority", "other view's majority (I)", "teacher's majority (II)"
ARMS = (OWN, CROSS, TEACHER)


@dataclass(frozen=True)
class Table:
    """Sizes and strengths. knows: what the right answer's logit gets on average, with a deviation of `spread` between questions.
    bias: what each view's own answer gets."""

    questions: int = 60
    answers: int = 6
    group: int = 8
    updates: int = 150
    lr: float = 0.3
    knows: float = 1.0
    spread: float = 1.0
    bias: float = 1.5


@dataclass
class Policy:
    """theta [Q, K] and bias [2, K]."""

    theta: Tensor
    bias: Tensor

    def probabilities(self) -> Tensor:
        """[Q, 2, K]."""
        return (self.theta[:, None] + self.bias[None]).softmax(-1)

    def copy(self) -> Policy:
        return Policy(self.theta.clone(), self.bias.clone())


def start(table: Table, generator: torch.Generator) -> tuple[Policy, Tensor]:
    """A policy before training, and the right answer of each question [Q]."""
    truth = torch.randint(table.answers, (table.questions,), generator=generator)
    theta = 0.5 * torch.randn(table.questions, table.answers, generator=generator)
    gain = table.knows + table.spread * torch.randn(table.questions, generator=generator)
    theta[torch.arange(table.questions), truth] += gain
    bias = torch.zeros(2, table.answers)
    for view in range(2):
        bias[view, view] = table.bias
    return Policy(theta, bias), truth


def sample(policy: Policy, group: int, generator: torch.Generator) -> Tensor:
    """[Q, 2, G] answers."""
    p = policy.probabilities()
    return torch.multinomial(p.flatten(0, 1), group, replacement=True, generator=generator).view(*p.shape[:2], group)


def labels(arm: str, answers: Tensor, taught: Tensor) -> Tensor:
    """[Q, 2, G]: the label of each rollout. taught: the teacher's answers, used by its arm alone."""
    questions, views, _ = answers.shape
    question = torch.arange(questions)[:, None, None].expand(answers.shape).flatten()
    view = torch.arange(views)[None, :, None].expand(answers.shape).flatten()
    if arm == CROSS:
        return cross_labels(answers.flatten(), question, view).label.view(answers.shape)
    votes = taught if arm == TEACHER else answers
    cell = question * views + view
    return majority(votes.flatten(), cell, questions * views).label[cell].view(answers.shape)


def run(arm: str, table: Table, seed: int) -> list[float]:
    """Mean probability of the right answer before training and after every ten updates."""
    generator = torch.Generator().manual_seed(seed)
    policy, truth = start(table, generator)
    teacher, rate = policy.copy(), CosineRate()
    right = truth[:, None, None].expand(-1, 2, 1)
    accuracy = [float(policy.probabilities().gather(2, right).mean())]
    groups = torch.arange(table.questions * 2).repeat_interleave(table.group)
    for update in range(1, table.updates + 1):
        ema_update_([teacher.theta, teacher.bias], [policy.theta, policy.bias], rate(update, table.updates))
        answers = sample(policy, table.group, generator)
        taught = sample(teacher, table.group, generator)
        rewards = (answers == labels(arm, answers, taught)).float()
        advantage = group_normalise(rewards.flatten(), groups, eps=1e-6, singleton="raw").view(answers.shape)
        p = policy.probabilities()
        chosen = torch.zeros_like(p).scatter_add_(2, answers, advantage) / table.group
        gradient = chosen - p * chosen.sum(2, keepdim=True)  # d sum A log p / d logits
        policy.theta += table.lr * gradient.sum(1)
        policy.bias += table.lr * gradient.mean(0)
        if update % 10 == 0:
            accuracy.append(float(policy.probabilities().gather(2, right).mean()))
    return accuracy
