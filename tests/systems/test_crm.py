"""CRM and CRF: the reward and its guarantees, the signal that asks for scores, the data pipeline and the training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import guerdon
from guerdon import Clock, ConfigError, DataError, Rewards, Rollouts, Scores
from guerdon.credit.conciseness import ConcisenessReward, conciseness_function, question_difficulty, reward_variance
from guerdon.lm import Reply, ScriptedModel
from guerdon.signals.learned.conciseness import Conciseness, conciseness_prompt, parse_score
from guerdon.signals.learned.train_crm import (
    CrmExample,
    SolutionPair,
    answer_loss,
    discriminative,
    examples,
    preferences,
    score_pairs,
    score_text,
    train_crm,
    write_pairs,
)
from guerdon.systems.crm import crf_reward

NAN = float("nan")


class Column:
    """A signal that reads its scores from a data column."""

    scope, level = "row", "sequence"

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, rollouts: Rollouts, scores: object) -> Rewards:
        values = torch.tensor(rollouts.column(self.name), dtype=torch.float64)
        return Rewards.sequence(values, rollouts, {row: "unknown" for row in values.isnan().nonzero()[:, 0].tolist()})


def rollouts(
    ok: list[float], groups: list[int], clock: Clock | None = None, texts: Any = None, **columns: Any
) -> Rollouts:
    lengths = [3] * len(ok)
    mask = torch.ones(len(ok), 3, dtype=torch.bool)
    return Rollouts(
        ["p"] * len(ok),
        texts or ["x"] * len(lengths),
        completion_ids=mask.long(),
        completion_mask=mask,
        group_ids=torch.tensor(groups),
        columns={"ok": ok, **columns},
        clock=clock or Clock(),
    )


# --- the reward ------------------------------------------------------------------------------------------------------

SCORES = st.floats(0.1, 1)


@given(SCORES, SCORES, st.floats(0, 10), st.floats(0, 1), st.floats(0, math.e))
def test_monotone_where_right_flat_where_wrong_and_always_ordered(
    one: float, other: float, alpha: float, s: float, d: float
) -> None:
    low, high = sorted((one, other))
    outcomes, scores = torch.tensor([1.0, 1, 0, 0]), torch.tensor([low, high, low, high], dtype=torch.float64)
    less, more, wrong, wrong_too = conciseness_function(outcomes, scores, alpha, s, d).tolist()
    assert 1 <= less <= more and wrong == wrong_too == 0
    assert less == pytest.approx(1 + alpha * low * (s + d))
    added = conciseness_function(outcomes, scores, alpha, s, d, form="added").tolist()
    assert added[3] == pytest.approx(alpha * high * (s + d)), "the additive form pays for being short and wrong"


def test_the_function_is_the_plain_formula_and_the_system_spares_signed_outcomes() -> None:
    """The bracket on an outcome of -1 punishes the concise wrong answer more; the function says so, the chain does not do it."""
    outcomes, scores = [-1.0, -1.0, 1.0, 0.0], [0.1, 1.0, 0.5, 0.5]
    plain = crf_reward(outcomes, scores, alpha=0.5, annealing=1.0, difficulty=1.0)["rewards"]
    assert plain.tolist() == pytest.approx([-1.1, -2.0, 1.5, 0.0])
    tensors = (torch.tensor(values, dtype=torch.float64) for values in (outcomes, scores))
    assert torch.equal(conciseness_function(*tensors, 0.5, 1.0, 1.0), plain)
    rows = rollouts(outcomes, [0] * 4, c=scores)
    reward = guerdon.systems.crm(verifier=Column("ok"), crm=Column("c"))(rows).reward.tolist()
    assert reward[:2] == [-1.0, -1.0] and reward[2] > 1.0 and reward[3] == 0.0


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_schedule_runs_the_way_it_is_asked_to(schedule: Any, reverse: bool) -> None:
    """s is 1, 3/4, 0 at the start, a quarter and the end of a run (linear), and 0, 1/4, 1 in reverse; constant is 1."""
    system = guerdon.systems.crm(
        verifier=Column("ok"), crm=Column("c"), alpha=0.5, schedule=schedule, reverse=reverse, difficulty="none"
    )
    for step, linear in ((0, 1.0), (25, 0.75), (100, 0.0)):
        u = 1 - linear if not reverse else linear
        expected = {"linear": 1 - u, "cosine": (1 + math.cos(math.pi * u)) / 2, "constant": 1.0}[schedule]
        scores = system(rollouts([1.0, 0.0], [0, 0], Clock(step, 100, True), c=[0.8, 0.8]))
        assert scores.metrics["conciseness/annealing"] == pytest.approx(expected)
        assert scores.reward.tolist() == pytest.approx([1 + 0.5 * 0.8 * expected, 0.0])


def test_difficulty_by_hand() -> None:
    outcomes, groups = torch.tensor([1.0, 0, 1, 0]), torch.tensor([7, 7, 7, 3])
    assert question_difficulty(outcomes, groups).tolist() == pytest.approx([math.exp(2 / 3)] * 3 + [1])
    assert question_difficulty(outcomes, groups, kind="exp_neg").tolist() == pytest.approx([math.exp(-2 / 3)] * 3 + [1])
    assert question_difficulty(outcomes, groups, kind="share").tolist() == pytest.approx([2 / 3] * 3 + [0])
    assert question_difficulty(outcomes, groups, kind="none").tolist() == [0] * 4
    counted = question_difficulty(outcomes, groups, torch.tensor([True, False, True, True]))
    assert counted[0] == pytest.approx(math.e), "rows that do not count are not in the group"


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="alpha=-1"):
        ConcisenessReward(alpha=-1)
    with pytest.raises(ConfigError, match="difficulty"):
        ConcisenessReward(difficulty="hard")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="form"):
        guerdon.systems.crm(verifier=Column("ok"), crm=Column("c"), form="mixed")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="schedule"):
        guerdon.systems.crm(verifier=Column("ok"), crm=Column("c"), schedule="step")  # type: ignore[arg-type]


@pytest.mark.parametrize("p", [0.1, 0.3, 0.7])
def test_variances_match_simulation(p: float) -> None:
    """Item 5: both formulas within 3 %, no conciseness noise among wrong answers, and the share that correctness explains."""
    generator = torch.Generator().manual_seed(int(10 * p))
    outcomes = (torch.rand(400_000, generator=generator, dtype=torch.float64) < p).double()
    scores = 0.1 + 0.9 * torch.rand(400_000, generator=generator, dtype=torch.float64)
    alpha, s, d = 0.5, 0.8, 1.4
    m, mean, variance = alpha * (s + d), 0.55, 0.81 / 12
    shares = {}
    for form in ("multiplied", "added"):
        rewards = conciseness_function(outcomes, scores, alpha, s, d, form=form)  # type: ignore[arg-type]
        expected = reward_variance(p, m, mean, variance, form=form)  # type: ignore[arg-type]
        assert float(rewards.var()) == pytest.approx(expected.total, rel=0.03)
        among_wrong = float(rewards[outcomes == 0].var())
        assert among_wrong == 0 if form == "multiplied" else among_wrong == pytest.approx(m**2 * variance, rel=0.03)
        shares[form] = expected.share
        means = [rewards[outcomes == value].mean() for value in (0, 1)]
        assert float((means[1] - means[0]) ** 2 * p * (1 - p)) == pytest.approx(expected.by_outcome, rel=0.03)
    assert shares["multiplied"] > shares["added"]


def test_the_system_end_to_end() -> None:
    rows = rollouts([1.0, 0.0, 1.0, NAN], [0] * 4, Clock(25, 100, True), c=[0.5, 0.9, 1.0, 0.3])
    scores = guerdon.systems.crm(verifier=Column("ok"), crm=Column("c"), alpha=0.5)(rows)
    bonus = 0.5 * (0.75 + math.exp(2 / 3))
    expected = [1 + 0.5 * bonus, 0.0, 1 + bonus]
    assert scores.reward[:3].tolist() == pytest.approx(expected) and scores.keep.tolist() == [True] * 3 + [False]
    centred = torch.tensor(expected) - sum(expected) / 3
    torch.testing.assert_close(scores.advantages[:3, 0], (centred / (torch.tensor(expected).std() + 1e-6)).float())
    assert scores.metrics["conciseness/annealing"] == 0.75 and scores.metrics["conciseness/right"] == 0.75
    assert scores.metrics["conciseness/difficulty"] == pytest.approx(math.exp(2 / 3))


def test_groups_that_are_all_alike() -> None:
    rows = rollouts([1.0, 1.0, 0.0, 0.0, 1.0], [0, 0, 1, 1, 2], c=[0.5, 1.0, 0.5, 1.0, 0.7])
    scores = guerdon.systems.crm(verifier=Column("ok"), crm=Column("c"))(rows)
    assert scores.advantages[0, 0] < 0 < scores.advantages[1, 0], "all right: conciseness still ranks"
    assert scores.advantages[2:].abs().sum() == 0, "all wrong, or alone: no signal"


# --- asking for scores -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Score: 0.8", 0.8),
        ("0.8/1", 0.8),
        ("**Score:** 7/10", 0.7),
        ("There are 3 repeats.\nscore = .4", 0.4),
        ("Score: 0.9 because of 2 steps", 0.9),
        ("Score: 0.3. On reflection, Score: 0.6", 0.6),
        ("I would say 85%", 0.85),
        ("5", 1.0),
        ("Score: -2", 0.1),
        ("0", 0.1),
        ("Score is 1/0", 1.0),
    ],
)
def test_parse_score(text: str, value: float) -> None:
    assert parse_score(text) == pytest.approx(value)


def test_no_number_is_no_score() -> None:
    with pytest.raises(ValueError, match="no number"):
        parse_score("very concise")


def test_only_right_answers_are_asked_about() -> None:
    def script(messages: Any, draw: int) -> Any:
        text = messages[-1]["content"]
        if "broken" in text:
            return Reply(None, error="503")
        return "no idea" if "vague" in text else "Score: 0.4"

    judge = ScriptedModel(script)
    texts = ["fine", "wrong one", "  ", "vague", "broken"]
    rows = rollouts([1.0, 0.0, 1.0, 1.0, 1.0], [0] * 5, texts=texts)
    system = guerdon.systems.crm(verifier=Column("ok"), crm=judge)
    scores = system(rows)
    given = scores.raw["concise"]
    assert len(judge.calls) == 3 and given.mask[:, 0].tolist() == [True, False, True, True, True]
    assert given.values[:4, 0].tolist() == pytest.approx([0.4, 0.0, 0.1, 0.5]) and given.failed[4, 0]
    assert "503" in given.reasons[4, 0] and "no idea" in given.reasons[3, 0] and "empty" in given.reasons[2, 0]
    assert scores.keep.tolist() == [True] * 4 + [False] and scores.reward[1] == 0
    everyone = guerdon.systems.crm(verifier=Column("ok"), crm=judge, form="added")(rows)
    assert everyone.raw["concise"].mask.all() and everyone.reward[1] > 0
    strict = guerdon.systems.crm(verifier=Column("ok"), crm=judge, unreadable=None)(rows)
    assert strict.keep.tolist() == [True, True, True, False, False]


def test_a_scalar_reward_model_is_squashed() -> None:
    from guerdon.signals.learned.scalar import RewardModel

    class Fixed(RewardModel):
        def __init__(self) -> None:
            self.source = "fixed"

        def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> Rewards:
            return Rewards.sequence(torch.tensor([0.0, 50.0])[: len(rollouts)], rollouts)

    rows = rollouts([1.0, 1.0], [0, 0])
    given = guerdon.systems.crm(verifier=Column("ok"), crm=Fixed())(rows).raw["concise"].values[:, 0]
    assert given.tolist() == pytest.approx([0.55, 1.0])


def test_the_question_is_the_last_user_message_or_a_column() -> None:
    chat = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2?"},
    ]
    assert conciseness_prompt(chat, "4", "{question}|{solution}") == "2+2?|4"
    judge = ScriptedModel(lambda messages, draw: "1.0" if "from the column" in messages[0]["content"] else "0.1")
    rows = rollouts([1.0], [0], q=["from the column"])
    signal = Conciseness(judge, by=None, question="q")
    assert signal(rows).values.tolist() == [[1.0]]
    with pytest.raises(ConfigError, match="by=None"):
        Conciseness(judge)(rows)


# --- the pipeline ----------------------------------------------------------------------------------------------------


def test_pairs_are_written_scored_and_filtered() -> None:
    def write(messages: Any, draw: int) -> Any:
        text = messages[-1]["content"]
        if "q3" in text:
            return Reply(None, error="timeout")
        wordy = "redundantly" in text
        return ("wordy " if wordy else "terse ") + text.rsplit("\n", 1)[1] + (" 42" if "is 42" in text else "")

    def judge(messages: Any, draw: int) -> str:
        text = messages[-1]["content"]
        if "q1" in text:
            return "Score: 0.6"
        return "Score: 0.3" if "wordy" in text else "Score: 0.9"

    pairs = write_pairs(ScriptedModel(write), ["q0", "q1", "q2", "q3"], ["42", "", "", ""])
    assert pairs[0].concise == "terse q0 42" and pairs[0].redundant == "wordy q0 42" and "timeout" in pairs[3].note
    scored = score_pairs(ScriptedModel(judge), pairs)
    assert [p.concise_score for p in scored[:3]] == pytest.approx([0.9, 0.6, 0.9])
    kept = discriminative(scored)
    assert [p.question for p in kept] == ["q0", "q2"], "a judge that cannot tell them apart teaches nothing"
    assert [(e.solution, e.score) for e in examples(kept)][:2] == [
        ("terse q0 42", pytest.approx(0.9)),
        ("wordy q0 42", pytest.approx(0.3)),
    ]
    assert preferences(kept)[1].chosen == "terse q2" and discriminative([]) == []


def test_only_the_answer_is_in_the_loss() -> None:
    logits = torch.zeros(1, 4, 5)
    logits[0, 2, 3] = 100.0  # certain of token 3 at the last place
    ids, answer = torch.tensor([[1, 2, 0, 3]]), torch.tensor([[False, False, False, True]])
    assert float(answer_loss(logits, ids, answer)) == pytest.approx(0)
    both = torch.tensor([[False, False, True, True]])
    assert float(answer_loss(logits, ids, both)) == pytest.approx(math.log(5) / 2)
    assert score_text(0.849) == "Score: 0.8" and score_text(3.0) == "Score: 1.0"


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_crm_is_trained_saved_and_asked(tmp_path: Path, lora_rank: int) -> None:
    pytest.importorskip("transformers")
    if lora_rank:
        pytest.importorskip("peft")
    from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

    tokenizer = char_tokenizer()
    model = new_model(tokenizer, TinyConfig(hidden=32, layers=1, heads=2, intermediate=64), 0)
    samples = [CrmExample("q", text, score) for text, score in (("ab", 0.9), ("abab", 0.3))] * 8
    settings: dict[str, Any] = {"template": "{question}:{solution}", "lr": 1e-2, "epochs": 40, "batch_size": 16}
    state = torch.get_rng_state()
    trained = train_crm(model, samples, tokenizer=tokenizer, lora_rank=lora_rank, output=tmp_path, **settings)
    assert torch.equal(torch.get_rng_state(), state) and trained.losses[-1] < 0.5 * trained.losses[0]
    signal = Conciseness(str(tmp_path), by=None)
    given = signal(Rollouts.from_texts(["q", "q"], ["ab", "abab"]))
    assert signal.template == "{question}:{solution}", "the prompt it was trained with comes with it"
    if not lora_rank:
        assert given.values[:, 0].tolist() == pytest.approx([0.9, 0.3])


def test_training_refuses_what_it_cannot_learn_from() -> None:
    with pytest.raises(DataError, match="no samples"):
        train_crm("nowhere", [])
    with pytest.raises(DataError, match="sample 0"):
        train_crm("nowhere", examples([SolutionPair("q", "a", "b", NAN, 0.3)]))


def test_the_built_in_task_brings_its_own_crm(monkeypatch: pytest.MonkeyPatch) -> None:
    from guerdon.signals.learned import tiny_crm as module
    from guerdon.systems.context import Context, build
    from guerdon.tasks.arithmetic import sums

    monkeypatch.setattr(module, "tiny_crm", lambda: "path/of/crm")
    system = build("crm:alpha=0.5", Context(sums(train_size=8, held_out_size=8), None, "tiny", model="other"))
    assert "Conciseness('path/of/crm'" in str(system) and "alpha=0.5" in str(system)
    from dataclasses import replace

    elsewhere = replace(sums(train_size=8, held_out_size=8), name="questions.jsonl")
    with pytest.raises(ConfigError, match="crm:crm=PATH_OR_HUB_ID"):
        build("crm", Context(elsewhere, None, "tiny"))
