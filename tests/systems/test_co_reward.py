"""Co-rewarding: answers, votes, the three ways to a label, the composition."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon import CapabilityError, ConfigError, Rollouts
from guerdon.lm.local import LocalModel
from guerdon.rewards import Scores
from guerdon.signals.agreement import CrossViewVote, SameViewVote, TeacherVote, boxed_as_written, majority
from guerdon.signals.agreement.answers import answer_codes, answer_rule
from guerdon.systems.co_reward import co_reward, co_rewarding_ii, cross_majority_rewards, majority_vote

ANSWERS = st.lists(st.sampled_from(["", " ", "1", "2", "3"]), min_size=1, max_size=9)


def box(*answers: Any) -> list[str]:
    return [f"so \\boxed{{{answer}}}" if answer != "" else "no idea" for answer in answers]


def rollouts(first: list[str], second: list[str], questions: int = 1, **columns: list[Any]) -> Rollouts:
    """Both views of each question, a group each."""
    size, whole = len(first) // questions, first + second
    groups = [view * questions + i // size for view in (0, 1) for i in range(len(first))]
    question = [i // size for _ in (0, 1) for i in range(len(first))]
    view = [v for v in (0, 1) for _ in first]
    given_columns = {"question_id": question, "view": view, **columns}
    return Rollouts.from_texts([f"q{q}" for q in question], whole, given_columns, group_ids=groups)


def scored(signal: Any, batch: Rollouts) -> dict[str, list[float]]:
    return {name: rewards.values[:, 0].tolist() for name, rewards in signal(batch, Scores.empty(batch)).items()}


# --- answers and votes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{\text{a} {b}} and \boxed{1", ""),
        (r"\boxed 5$ is it, \boxed{6}", "5"),
        (r"first \boxed 5$ then \boxed 7", "7"),
        (r"\fbox{3}", ""),
        (r"\fbox{3} \boxed{4}", "4"),
        (r"\boxed{4} \fbox{3}", "4"),
        (r"\boxed{}", ""),
        (r"\boxed", ""),
        (r"\boxed3 {x}", ""),
        ("", ""),
    ],
)
def test_boxes_as_the_official_code_reads_them(text: str, answer: str) -> None:
    assert boxed_as_written(text) == answer


def test_answers_are_compared_as_written_unless_asked() -> None:
    assert answer_rule("boxed_as_written")(r"\boxed{ 1/2 }") == " 1/2 "
    assert answer_rule("boxed", "math")(r"\boxed{1/2}") == answer_rule("boxed", "math")(r"\boxed{0.5}")
    assert answer_rule("after:#", str.upper)("#a") == "A"
    for extract, normalise in (("nowhere", None), ("boxed", "physics")):
        with pytest.raises(ConfigError):
            answer_rule(extract, normalise)


@given(st.lists(ANSWERS, min_size=1, max_size=5))
def test_the_vote_is_counters(groups: list[list[str]]) -> None:
    known: dict[str, int] = {}
    codes = answer_codes([a for group in groups for a in group], known)
    cell = torch.tensor([i for i, group in enumerate(groups) for _ in group])
    found = majority(codes, cell, len(groups))
    for i, group in enumerate(groups):
        votes = [a for a in group if a.strip()]
        expected = Counter(votes).most_common(1)  # of several the first one seen
        assert found.label[i] == (known[expected[0][0]] if votes else -1)
        assert found.share[i] == pytest.approx(expected[0][1] / len(votes) if votes else 0.0)
        assert found.voters[i] == len(group)


# --- the two views ---------------------------------------------------------------------------------------------------


@given(ANSWERS.flatmap(lambda a: st.tuples(st.just(a), st.lists(st.sampled_from(["", "1", "2"]), min_size=len(a), max_size=len(a)))))  # fmt: skip
def test_swapping_the_views_swaps_the_rewards(views: tuple[list[str], list[str]]) -> None:
    first, second = (box(*view) for view in views)
    groups = [0] * len(first)
    there = cross_majority_rewards(first, second, groups)
    back = cross_majority_rewards(second, first, groups)
    assert torch.equal(there["rewards"], back["rephrased_rewards"])
    assert torch.equal(there["rephrased_rewards"], back["rewards"])


def test_permuting_rollouts_permutes_rewards() -> None:
    first, second = box(1, 1, 2, 3), box(1, 1, 1, 2)
    order = [2, 0, 3, 1]
    plain = cross_majority_rewards(first, second, [0] * 4)["rewards"]
    mixed = cross_majority_rewards([first[i] for i in order], second, [0] * 4)["rewards"]
    assert torch.equal(mixed, plain[order])


def test_a_policy_that_always_answers_1_is_paid_by_itself_and_not_by_the_other_view() -> None:
    """Truth is 7 and 1: answering 1 everywhere in the first view, rightly in the second."""
    batch = rollouts(box(*[1] * 8), box(*[7] * 4, *[1] * 4), questions=2)
    assert scored(CrossViewVote(), batch)["agrees"][:8] == [0.0] * 4 + [1.0] * 4
    assert scored(SameViewVote(), batch)["agrees"][:8] == [1.0] * 8


def test_silence_agreeing_with_silence_is_not_paid() -> None:
    batch = rollouts(box("", ""), box("", ""))
    for signal in (CrossViewVote(), SameViewVote()):
        found = scored(signal, batch)
        assert found["agrees"] == [0.0] * 4 and found["unlabelled"] == [1.0] * 4 and found["share"] == [0.0] * 4
    half = scored(CrossViewVote(), rollouts(box(5, 5), box("", "")))
    assert half["agrees"] == [0.0] * 4 and half["unlabelled"] == [1.0, 1.0, 0.0, 0.0], "answers without a label, too"


def test_the_rewards_read_ids_and_not_positions() -> None:
    batch = rollouts(box(1, 1, 2, 5, 5, 5), box(2, 2, 1, 5, 6, 6), questions=2)
    order = list(range(12))
    random.Random(0).shuffle(order)
    plain, mixed = scored(CrossViewVote(), batch), scored(CrossViewVote(), batch.select(order))
    assert plain["agrees"] == [0, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0]
    assert mixed["agrees"] == [plain["agrees"][i] for i in order]


def test_a_view_without_its_partner_is_a_failure_of_the_sampler() -> None:
    batch = rollouts(box(1, 1, 2, 2), box(1, 1, 2, 2), questions=2).select([0, 1, 2, 3, 4, 5])
    rewards = CrossViewVote()(batch, Scores.empty(batch))["agrees"]
    assert rewards.failed[:, 0].tolist() == [False, False, True, True, False, False]
    assert "no other view of question_id=1" in rewards.reasons[2, 0]
    scores = co_reward()(batch)
    assert scores.keep.tolist() == [True, True, False, False, True, True]


def test_three_views_vote_together_on_each() -> None:
    answers = box(1, 1, 2, 2, 3, 3)
    columns = {"question_id": [0] * 6, "view": ["a", "a", "b", "b", "c", "c"]}
    batch = Rollouts.from_texts(["q"] * 6, answers, columns, group_ids=[0, 0, 1, 1, 2, 2])
    found = scored(CrossViewVote(), batch)
    assert found["agrees"] == [0.0] * 6 and found["share"] == [0.5] * 6


def test_labels_are_watched_against_the_truth_and_never_trained_on() -> None:
    batch = rollouts(box(1, 1, 2, 2), box(1, 1, 2, 3), questions=2, answer=["1", "1", ["7", "2"], None] * 2)
    found = CrossViewVote(truth="answer")(batch, Scores.empty(batch))["right"]
    assert (
        found.values[:, 0].nan_to_num(-1).tolist() == [1, 1, 1, -1] * 2 and "no usable reference" in found.reasons[3, 0]
    )
    with_truth, without = co_reward(truth="answer")(batch), co_reward()(batch)
    assert torch.equal(with_truth.sources["vote.agrees"].values, without.sources["vote.agrees"].values)
    assert with_truth.keep.all(), "a missing truth drops nothing"


# --- the teacher -----------------------------------------------------------------------------------------------------


class Scripted:
    """A teacher that gives each prompt its own answers."""

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self.answers, self.calls = answers, []

    def generate(self, prompts: Any, *, n: int, **options: Any) -> Any:
        self.calls.append((list(prompts), n, options))
        return type("Made", (), {"texts": [text for p in prompts for text in box(*self.answers[p][:n])]})


def test_the_teacher_labels_each_group() -> None:
    signal = TeacherVote(samples=3, max_tokens=9, temperature=0.7)
    batch = Rollouts.from_texts(["a", "b", "a", "b"], box(1, 5, 2, ""), group_ids=[7, 3, 7, 3])
    with pytest.raises(CapabilityError, match="not bound"):
        signal(batch, Scores.empty(batch))
    teacher = Scripted({"a": ["2", "1", "2"], "b": ["", "", ""]})
    signal.bind("teacher", teacher)
    found = scored(signal, batch)
    assert found["agrees"] == [0.0, 0.0, 1.0, 0.0] and found["unlabelled"] == [0.0, 1.0, 0.0, 1.0]
    ((prompts, n, options),) = teacher.calls
    assert prompts == ["b", "a"] and n == 3 and options["max_new_tokens"] == 9 and options["temperature"] == 0.7
    with pytest.raises(ConfigError, match="samples=0"):
        TeacherVote(samples=0)


def test_a_real_teacher_reads_the_prompts_ids_and_repeats_with_the_clock() -> None:
    from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

    tokenizer = char_tokenizer()
    teacher = LocalModel(new_model(tokenizer, TinyConfig(16, 1, 2, 16), 0).eval(), tokenizer)
    ids = torch.tensor([[0, 0, 40, 41], [50, 51, 52, 53]])
    batch = Rollouts(
        ["(", "xyz"],
        ["a", "b"],
        prompt_ids=ids,
        prompt_mask=ids > 0,
        completion_ids=ids[:, 2:],
        completion_mask=torch.ones(2, 2, dtype=torch.bool),
        group_ids=torch.tensor([0, 1]),
    )
    signal = TeacherVote(lambda text: text[:1], samples=4, max_tokens=2)
    signal.bind("teacher", teacher)
    asked = []
    own = teacher.generate
    teacher.generate = lambda prompts, **options: (asked.extend(prompts), own(prompts, **options))[1]  # type: ignore[method-assign]
    assert scored(signal, batch) == scored(signal, batch)
    assert [prompt.tolist() for prompt in asked[:2]] == [[40, 41], [50, 51, 52, 53]]


# --- compositions ----------------------------------------------------------------------------------------------------


def test_views_have_statistics_of_their_own() -> None:
    scores = co_reward()(rollouts(box(1, 1, 2, 2), box(1, 1, 1, 1)))
    values = scores.sources["vote.agrees"].values[:, 0]
    assert values.tolist() == pytest.approx([0.866, 0.866, -0.866, -0.866, 0, 0, 0, 0], abs=1e-3)
    assert scores.reward.tolist() == [1, 1, 0, 0, 1, 1, 1, 1], "all agree: an advantage of 0, no NaN"
    assert set(scores.raw) == {"vote.agrees", "vote.unlabelled", "vote.share"}


def test_what_each_variant_asks_for() -> None:
    assert co_reward().needs == {"together.question_id"} and co_reward(question="id").needs == {"together.id"}
    assert majority_vote().needs == co_reward(label="own_view").needs == frozenset()
    second = co_rewarding_ii(max_completion_length=8)
    assert second.models["reference"].moves and second.models["reference"].rate_at(1, 10) == 0.01
    assert second.models["reference"].rate_at(11, 10) == pytest.approx(1e-5)
    with pytest.raises(ConfigError, match="own_view"):
        co_reward(label="no_view")  # type: ignore[arg-type]


def test_the_command_line_finds_what_each_needs() -> None:
    from guerdon.systems.context import Context, build
    from guerdon.tasks import load_task

    context = Context(load_task("sums,views=2,train_size=32,held_out_size=40"), None, "policy")
    assert build("co_reward", context).signals["vote"].extract == "after:#"
    taught = build("co_rewarding_ii:teacher_samples=4", context).signals["vote"]
    assert taught.max_tokens == 64 and taught.samples == 4
