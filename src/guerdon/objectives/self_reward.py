"""Teaching a policy to score its own solutions: squared error between the last-token score and the verifier's reward (LaSeR).

    L = alpha mean over rows of w_i 1[finished] (r_s - r_v)^2,        r_s = beta (log pi(z | x, y, eos) - c)

The gradient flows through log pi(z) into the whole network. z is read in a forward pass of its own, beside the trainer's: it is in no
policy gradient, KL or entropy term. Right solutions are pulled to log pi(z) = c + 1 / beta, wrong ones are held at c: z stays improbable.

Source: arXiv 2510.14943; official code verl/workers/actor/dp_actor.py, trainer/ppo/ray_trainer.py for the class weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit.schedule import Onset
from guerdon.errors import CapabilityError, ConfigError
from guerdon.options import checked, require_range
from guerdon.signals.likelihood.last_token import LastTokenScore, last_token_score
from guerdon.signals.likelihood.reference import Bound


def class_weights(correct: Tensor, counts: Tensor) -> Tensor:
    """N / (2 N_c) for right rows and N / (2 N_i) for wrong ones, so that both classes weigh the same in a batch.

    Args:
        correct: [B] bool.
        counts: [B] bool, rows that N, N_c and N_i count; every row gets the weight of its class.

    Returns:
        [B] float64; 0 for a class that no counted row belongs to.
    """
    right, valid = correct.bool(), counts.bool()
    total, hits = valid.sum().double(), (valid & right).sum().double()
    sizes = torch.where(right, hits, total - hits)
    return torch.where(sizes > 0, total / (2 * sizes.clamp(min=1)), 0.0)


def self_reward_loss(
    scores: Tensor, rewards: Tensor, counts: Tensor, weights: Tensor | None = None, rows: float | None = None
) -> Tensor:
    """sum_i w_i 1[counts] (r_s - r_v)^2 / rows, 0-d.

    Args:
        scores: [B] r_s, with their graph; anything where `counts` is False.
        rewards: [B] r_v, any real numbers.
        counts: [B] bool: finished rows.
        weights: [B] w_i; None = 1.
        rows: the denominator; None = all B rows, those that do not count too (the official code).
    """
    error = torch.where(counts, scores - rewards.to(scores), 0.0).square()
    total = (error if weights is None else error * weights.to(error)).sum()
    return total / max(float(len(scores) if rows is None else rows), 1.0)


@checked
class SelfRewardRegression(Bound):
    """Objective: alpha times the squared error of a `LastTokenScore` against a verifier's reward.

    Costs one more forward and backward pass over prompts and completions. Rows that were dropped or whose verdict is missing leave the
    loss and its denominator; completions cut at the cap leave the loss alone.

    Args:
        signal: the score; its token, constant and beta are used.
        by: the source with the verifier's reward, one value a row.
        coefficient: alpha.
        balance: weigh right and wrong rows alike over the whole generation batch; right is a reward above 1/2.
        divide: by all "rows" (the official code), or by the "finished" ones (the paper's formula).
        onset: from which step on; before it the policy is trained by its reward alone.
    """

    needs = frozenset({"policy"})
    scope = "batch"  # class weights

    def __init__(
        self,
        signal: LastTokenScore,
        by: str = "answer",
        *,
        coefficient: float = 0.1,
        balance: bool = True,
        divide: Literal["rows", "finished"] = "rows",
        onset: Onset | None = None,
    ) -> None:
        super().__init__()
        if divide not in ("rows", "finished"):
            raise ConfigError(f"divide={divide!r}: use 'rows' or 'finished'")
        require_range(0, coefficient=coefficient)
        self.signal, self.by, self.coefficient, self.balance = signal, by, coefficient, balance
        self.divide, self.onset = divide, onset or Onset()
        self.roles = signal.roles

    def __repr__(self) -> str:
        return f"SelfRewardRegression(by={self.by!r}, coefficient={self.coefficient}, balance={self.balance}, divide={self.divide!r}, {self.onset})"

    def __call__(self, models: Mapping[str, Any], batch: Any) -> tuple[Tensor, dict[str, float]]:
        """The loss of a micro-batch (`guerdon.engines.trl.batch.ObjectiveBatch`) and what to log about it."""
        none = torch.zeros((), device=batch.inputs["advantages"].device)
        if not self.onset.reached(batch.rollouts.clock) or not self.coefficient:
            return none, {}
        labels = batch.rewards[self.by].row_total()
        usable = batch.keep & labels.isfinite()
        sequences, rows = self.signal.sequences(batch.rollouts.select(usable.nonzero()[:, 0]))
        rows = usable.nonzero()[:, 0][rows]
        logprobs, failed = self.signal.logprobs("policy", sequences, grad=True)
        constants, unknown = self.signal.constants(sequences)
        counts = torch.ones(len(rows), dtype=torch.bool)
        counts[[*failed, *unknown]] = False
        if not bool(counts.any()):
            return none, {}
        scores = last_token_score(logprobs, constants.to(logprobs), self.signal.beta)
        weights, denominator = self._batch_statistics(batch)
        target = labels[rows].to(scores.device)
        loss = self_reward_loss(scores, target, counts.to(scores.device), weights[rows].to(scores.device), denominator)
        return self.coefficient * loss, self._metrics(scores.detach().cpu()[counts], labels[rows][counts])

    def _batch_statistics(self, batch: Any) -> tuple[Tensor, float]:
        """[b] class weights of the micro-batch's rows, and what its sum of errors is divided by.

        Both come from the whole generation batch, so that micro-batches of one step add up to the loss of the step.
        """
        if batch.generation is None:
            raise CapabilityError(
                "class weights need the whole generation batch, and this engine gives the micro-batch alone"
            )
        rollouts, scores = batch.generation
        every = scores.raw[self.by].row_total()
        usable = scores.keep & every.isfinite()
        counts = usable if rollouts.finished is None else usable & rollouts.finished
        share = float((counts if self.divide == "finished" else usable).sum()) / len(usable)
        denominator = share * len(batch.keep)
        labels = batch.rewards[self.by].row_total()
        if not self.balance:
            return torch.ones(len(labels), dtype=torch.float64), denominator
        weights = class_weights(every > 0.5, counts)
        of_class = [float(weights[(every > 0.5) == right][:1].sum()) for right in (False, True)]
        return torch.where(labels > 0.5, of_class[1], of_class[0]).double(), denominator

    def _metrics(self, scores: Tensor, labels: Tensor) -> dict[str, float]:
        right = labels > 0.5
        found = {"self_reward_mse": float((scores - labels).square().mean())}
        for name, members in (("right", right), ("wrong", ~right)):
            if bool(members.any()):
                found[f"self_reward_{name}"] = float(scores[members].mean())
        return found
