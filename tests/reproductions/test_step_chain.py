"""The simulated world of steps: hand-computed states, scores and verdicts, and sampling that repeats."""

import pytest
import torch

from guerdon.rewards import Scores
from guerdon.systems.reproductions.step_chain import (
    FillerOrAnswer,
    ScriptedPRM,
    TabularPolicy,
    TransformerPolicy,
    UsefulSteps,
    Verifier,
    sample,
    state_means,
    to_rollouts,
)


def ids(task: UsefulSteps | FillerOrAnswer, *texts: str) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, texts))
    actions = torch.tensor([[task.actions.index(c) for c in text] + [0] * (width - len(text)) for text in texts])
    return actions, torch.tensor([[t < len(text) for t in range(width)] for text in texts])


def test_useful_steps_are_counted_before_each_action_and_only_count_when_made() -> None:
    task = UsefulSteps()
    actions, mask = ids(task, "ufuuua", "ua", "uuf")
    assert task.states_before(actions)[0].tolist() == [0, 1, 1, 2, 3, 3]
    scores = task.step_scores(actions)
    assert scores[0].tolist() == pytest.approx([0.95] * 6)
    assert scores[1, :2].tolist() == pytest.approx([0.95, 0.1])  # answering with one useful step is the wrong step
    # Row 2 is "uuf" then padding, and the padding id is that of a useful step: it must not count, and nothing was answered.
    assert task.success(actions, mask).tolist() == [True, False, False]


def test_a_wrong_step_spoils_the_answer() -> None:
    task = UsefulSteps(slips=True)
    actions, mask = ids(task, "uuua", "uwuua")
    assert task.success(actions, mask).tolist() == [True, False]
    assert task.step_scores(actions)[1].tolist() == pytest.approx([0.95, 0.1, 0.95, 0.95, 0.1])
    assert task.states_before(actions)[1].tolist() == [0, 1, 4, 4, 4]  # the spoilt state is one of its own


def test_filler_or_answer() -> None:
    task = FillerOrAnswer()
    actions, mask = ids(task, "ffr", "w", "ff")
    assert task.success(actions, mask).tolist() == [True, False, False]
    assert task.step_scores(actions)[0].tolist() == pytest.approx([0.5, 0.5, 0.8])


def test_sampling_stops_at_answers_and_at_the_cap_and_repeats() -> None:
    task = FillerOrAnswer()
    policy = TabularPolicy(task, (0.0, -1.0, 0.0))
    first, second = (sample(policy, task, 200, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.actions, second.actions)
    lengths = first.mask.sum(1)
    ended = (task.ends(first.actions) & first.mask).sum(1)
    assert bool((ended <= 1).all()) and bool(((ended == 1) | (lengths == task.cap)).all())
    chosen = policy(first.actions).log_softmax(-1).gather(2, first.actions[..., None])[..., 0]
    assert torch.allclose(chosen[first.mask], first.logprobs[first.mask])
    only_filler = sample(TabularPolicy(task, (50.0, 0.0, 0.0)), task, 4, torch.Generator().manual_seed(0))
    assert only_filler.actions.tolist() == [[0] * 12] * 4


def test_the_transformer_is_causal_and_starts_from_the_stated_logits() -> None:
    task = FillerOrAnswer()
    torch.manual_seed(0)
    policy = TransformerPolicy(task, (0.0, -1.0, 0.0))
    actions = torch.zeros(1, 12, dtype=torch.long)
    assert torch.allclose(policy(actions), torch.tensor([0.0, -1.0, 0.0]).expand(1, 12, 3), atol=1e-6)
    torch.nn.init.normal_(policy.head.weight)
    changed = actions.clone()
    changed[0, 6] = 1
    before, after = policy(actions), policy(changed)
    assert torch.allclose(before[:, :7], after[:, :7], atol=1e-6)
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-3)
    # logits of up to 20 are sums of 32 float32 products, and another length sums them in another order
    assert torch.allclose(policy(actions[:, :5]), before[:, :5], atol=1e-5)


def test_rollouts_have_one_token_and_one_span_a_step() -> None:
    task = UsefulSteps()
    episodes = sample(TabularPolicy(task, (0.0, 0.0, 0.0)), task, 6, torch.Generator().manual_seed(1))
    rollouts = to_rollouts(episodes, task, 3)
    assert rollouts.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert [len(text) for text in rollouts.completions] == episodes.mask.sum(1).tolist()
    steps = ScriptedPRM(task)(rollouts, Scores.empty(rollouts))
    assert torch.equal(steps.spans.start[steps.mask], steps.spans.end[steps.mask])
    assert torch.allclose(steps.values[steps.mask], task.step_scores(episodes.actions)[episodes.mask])
    verdict = Verifier(task)(rollouts, Scores.empty(rollouts))
    right = [text.endswith("a") and text.count("u") >= 3 for text in rollouts.completions]
    assert verdict.values[:, 0].tolist() == [float(ok) for ok in right]


def test_the_tabular_critic_is_the_mean_return_of_each_state() -> None:
    returns = torch.tensor([[1.0, 5.0], [3.0, 100.0]])
    states = torch.tensor([[0, 1], [0, 1]])
    mask = torch.tensor([[True, True], [True, False]])
    before = torch.tensor([9.0, 9.0, 9.0])
    assert state_means(returns, states, mask, before).tolist() == [2.0, 5.0, 9.0]
