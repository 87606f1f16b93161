"""Clip and Delta: telescoping, bounds, what each step is credited with, and where rewards land (the sheet's items 1, 2, 4, 5)."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon import Rewards, Rollouts, Scores, Spans, System
from guerdon.credit import Accumulate, LeaveOneOut, clip_scores, delta_scores, suffix_sum
from guerdon.systems import clip_delta
from guerdon.systems.reproductions.step_chain import Episodes, ScriptedPRM, UsefulSteps, Verifier, to_rollouts

PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def row(scores: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.tensor([scores], dtype=torch.float64)
    return values, torch.ones_like(values, dtype=torch.bool)


@given(PROBABILITIES)
def test_the_return_of_delta_is_each_steps_own_score(scores: list[float]) -> None:
    values, mask = row(scores)
    returns = suffix_sum(delta_scores(values, mask), mask)[0]
    assert torch.allclose(returns[:-1], values[0, :-1], atol=1e-9, rtol=0)
    assert float(returns[-1]) == 0.0


@given(PROBABILITIES, st.integers(1, 20))
def test_the_total_of_delta_does_not_see_appended_filler(scores: list[float], fillers: int) -> None:
    scores = [*scores, 0.5]  # with a single step Delta gives 0, and its first appended step is what makes it count
    totals = [float(delta_scores(*row(s)).sum()) for s in (scores, scores + [0.95] * fillers)]
    assert abs(totals[0] - totals[1]) < 1e-9 and abs(totals[0] - scores[0]) < 1e-9


def test_bounds_over_a_thousand_trajectories() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 31, (1000,), generator=generator)
    mask = torch.arange(30) < lengths[:, None]
    values = torch.rand(1000, 30, generator=generator, dtype=torch.float64) * mask
    clipped = clip_scores(values, mask, 0.5)
    assert float(clipped.sum(1).max()) <= 0
    assert float(delta_scores(clipped, mask).sum(1).max()) <= 1e-12
    assert bool((delta_scores(values, mask).sum(1) <= values.amax(1) + 1e-12).all())
    returns = suffix_sum(delta_scores(clipped, mask), mask)
    assert float(returns.max()) <= 1e-12  # no step of any trajectory can be credited with more than success


# --- through the published system ------------------------------------------------------------------------------------------


def two_answers() -> Rollouts:
    """Steps of several tokens: rows with three steps, one step and none, in a batch wider than any of them."""
    ends = torch.zeros(3, 9, dtype=torch.bool)
    ends[0, [1, 4, 6]] = True
    ends[1, 2] = True
    mask = torch.arange(9) < torch.tensor([[7], [3], [0]])
    return Rollouts(
        ["p"] * 3,
        ["three steps", "one step", ""],
        completion_ids=torch.arange(27).view(3, 9) % 5,
        completion_mask=mask,
        spans={"steps": Spans.from_ends(ends, mask, "steps")},
        columns={"answer": ["a"] * 3},
    )


class Fixed:
    """A signal that gives the same numbers whatever the rollouts."""

    scope = "row"

    def __init__(self, values: list, level: str) -> None:
        self.values, self.level = torch.tensor(values), level

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        if self.level == "sequence":
            return Rewards.sequence(self.values, rollouts)
        spans = rollouts.segment(self.level)
        return Rewards(torch.where(spans.mask, self.values, 0.0), spans)


PRM = Fixed([[0.9, 0.2, 0.7], [0.4, 0.0, 0.0], [0.0, 0.0, 0.0]], "steps")
SUCCESS = Fixed([1.0, 1.0, 0.0], "sequence")


def before(system: System, *kinds: type) -> System:
    """The system up to its first link of these kinds."""
    stop = next(i for i, link in enumerate(system.chain) if isinstance(link, kinds))
    return System(system.signals, system.chain[:stop], segments=system.segments)


def test_the_gradient_under_delta_is_that_of_each_steps_own_score() -> None:
    alpha, beta = 0.7, 2.0
    rollouts = two_answers()
    system = clip_delta(prm=PRM, verifier=SUCCESS, mode="pr_delta", alpha=alpha, beta=beta, kl_coef=0.0)
    returns = before(system, LeaveOneOut)(rollouts).advantages  # no baseline, no whitening: the bare policy gradient
    torch.manual_seed(0)
    logits = torch.randn(3, 9, 5, requires_grad=True)
    logprobs = logits.log_softmax(-1).gather(2, rollouts.completion_ids[..., None])[..., 0]
    (given,) = torch.autograd.grad((logprobs * returns).sum(), logits, retain_graph=True)

    step = [logprobs[0, 0:2].sum(), logprobs[0, 2:5].sum(), logprobs[0, 5:7].sum()]  # log pi(step k | prefix)
    objective = step[0] * (alpha * 0.9 + beta) + step[1] * (alpha * 0.2 + beta) + step[2] * beta
    objective = objective + logprobs[1, 0:3].sum() * beta  # K = 1: success only
    (expected,) = torch.autograd.grad(objective, logits)
    assert float((given - expected).norm() / expected.norm()) < 1e-5


def test_rewards_land_on_step_ends_and_nowhere_else() -> None:
    system = clip_delta(prm=PRM, verifier=SUCCESS, eta=0.5, kl_coef=0.0)
    rewards = before(system, Accumulate)(rollouts := two_answers()).advantages
    # clip: 0, -0.3, 0; delta: 0.3, -0.3, 0; success on the last step's last token
    expected = torch.zeros(3, 9)
    expected[0, [1, 4, 6]] = torch.tensor([0.3, -0.3, 1.0])
    expected[1, 2] = 1.0
    assert torch.allclose(rewards, expected, atol=1e-6)
    assert float(rewards[~rollouts.mask].abs().max()) == 0.0
    for mode in ("pr", "pr_clip", "pr_delta"):
        other = clip_delta(prm=PRM, verifier=SUCCESS, mode=mode, kl_coef=0.0)
        placed = before(other, Accumulate)(rollouts).advantages != 0
        assert not bool((placed & (expected == 0)).any())


def test_the_reward_of_mode_pr_grows_with_filler_and_that_of_clip_delta_does_not() -> None:
    task = UsefulSteps()
    cap = 30
    actions = torch.cat([torch.zeros(cap, 3, dtype=torch.long), torch.ones(cap, cap, dtype=torch.long)], 1)
    count = torch.arange(cap)[:, None]
    index = torch.arange(cap + 3)[None]
    actions = torch.where(index == 3 + count, 2, actions)  # three useful steps, n fillers, the answer
    mask = index <= 3 + count
    rollouts = to_rollouts(Episodes(actions, mask, torch.zeros(actions.shape)), task, cap)
    options = {"prm": ScriptedPRM(task), "verifier": Verifier(task), "kl_coef": 0.0}
    raw = clip_delta(mode="pr", **options)(rollouts).reward
    assert torch.allclose(raw.diff(), torch.full((cap - 1,), 0.95), atol=1e-4)
    bounded = clip_delta(**options)(rollouts).reward
    assert torch.equal(bounded, torch.ones(cap))
