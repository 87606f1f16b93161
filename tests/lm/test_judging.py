"""Asking, parsing, asking again, voting."""

from __future__ import annotations

import pytest

from guerdon.errors import ConfigError
from guerdon.lm.chat import Reply, ScriptedModel
from guerdon.lm.judging import judge


def number(text):
    return float(text)


def test_median_of_draws():
    model = ScriptedModel(lambda messages, draw: ["1", "9", "4"][draw])
    verdicts = judge(model, ["a", "b"], number, samples=3)
    assert verdicts.values.tolist() == [4.0, 4.0] and verdicts.votes[0] == [1.0, 9.0, 4.0]
    assert [draw for _, draw in model.calls] == [0, 1, 2, 0, 1, 2]


def test_majority_and_its_tie_rule():
    answers = {"clear": ["0", "1", "1", "0", "1"], "tied": ["1", "0", "0", "1", "2"]}
    model = ScriptedModel(lambda messages, draw: answers[messages[0]["content"]][draw])
    verdicts = judge(model, ["clear", "tied"], number, samples=5, vote="majority")
    assert verdicts.values.tolist() == [1.0, 1.0]  # tied 1 and 0: 1 was drawn first
    assert judge(model, ["clear"], number, samples=5, vote="mean").values[0] == pytest.approx(0.6)


def test_unreadable_answers_are_asked_again_with_the_reason():
    def script(messages, draw):
        return "5" if "could not be read" in messages[-1]["content"] else "five, I think"

    model = ScriptedModel(script)
    verdicts = judge(model, ["a"], number)
    assert verdicts.values[0] == 5 and len(verdicts.replies[0]) == 2
    again = model.calls[1][0]
    assert [m["role"] for m in again] == ["user", "assistant", "user"] and "five" in again[2]["content"]


def test_what_never_parses_is_nan_with_the_reason():
    verdicts = judge(ScriptedModel(lambda messages, draw: "no idea"), ["a"], lambda text: None, reasks=2)
    assert verdicts.values[0].isnan() and "no idea" in verdicts.reasons[0] and len(verdicts.replies[0]) == 3
    assert judge(ScriptedModel(lambda m, d: "nan"), ["a"], number).values[0].isnan()
    assert "no finite" in judge(ScriptedModel(lambda m, d: "inf"), ["a"], number).reasons[0]


def test_failed_calls_do_not_vote_and_are_not_asked_again():
    model = ScriptedModel(lambda messages, draw: Reply(None, "timed out") if draw == 0 else "3")
    assert judge(model, ["a"], number, samples=2).values[0] == 3
    verdicts = judge(model, ["a"], number, samples=2, min_votes=2)
    assert verdicts.values[0].isnan() and "timed out" in verdicts.reasons[0] and "1 of 2" in verdicts.reasons[0]
    assert len(model.calls) == 4


def test_bugs_of_the_parser_go_through():
    def broken(text):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        judge(ScriptedModel(lambda m, d: "1"), ["a"], broken)


def test_nothing_to_judge_and_wrong_options():
    model = ScriptedModel(lambda m, d: "1")
    assert judge(model, [], number).values.shape == (0,)
    for options in ({"samples": 0}, {"min_votes": 2}, {"vote": "loudest"}, {"reasks": -1}):
        with pytest.raises(ConfigError):
            judge(model, ["a"], number, **options)


def test_a_reply_is_a_text_or_a_reason():
    for fields in ({"text": None}, {"text": "a", "error": "b"}):
        with pytest.raises(ValueError, match="not both"):
            Reply(**fields)
