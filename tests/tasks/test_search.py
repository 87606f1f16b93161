"""The task "search": its world, its index, its calls, its demonstrations, and the command that trains on it."""

from __future__ import annotations

import json
import random

import pytest

from guerdon.errors import ConfigError
from guerdon.tasks import load_task
from guerdon.tasks.environment import ToolEnvironment, parse_call
from guerdon.tasks.search import (
    BM25,
    NOTHING,
    RELATIONS,
    Question,
    draw_question,
    make_world,
    search_environment,
    verify_search,
)
from guerdon.tasks.search_policy import CLEAN, TAGS, Habits, demonstrate, search_tokenizer


def test_every_relation_leads_one_layer_on() -> None:
    world = make_world(random.Random(0), 10)
    assert len(world.facts) == 3 * 10 * 3 and len({name for layer in world.layers for name in layer}) == 40
    for (subject, relation), fact in world.facts.items():
        depth = next(i for i, layer in enumerate(world.layers) if subject in layer)
        assert relation in RELATIONS[depth] and fact.value in world.layers[depth + 1]


def test_questions_read_backwards_and_are_followed_forwards() -> None:
    world = make_world(random.Random(0), 10)
    question = Question(world.layers[0][0], ("star", "home"))
    assert question.text("plain") == f"home of star of {question.start}?\n"
    assert question.text("prose") == f"What is the home of the star of {question.start.capitalize()}?"
    star, home = world.follow(question.start, question.relations)
    assert home == world.facts[star.value, "home"]
    lengths = {len(draw_question(world, (2, 3), random.Random(i)).relations) for i in range(30)}
    assert lengths == {2, 3}


@pytest.mark.parametrize("style", ["plain", "prose"])
def test_the_right_query_finds_its_fact_and_wrong_ones_do_not(style: str) -> None:
    world = make_world(random.Random(3), 40)
    index = BM25([fact.text(style) for fact in world.facts.values()])  # type: ignore[arg-type]
    facts = list(world.facts.values())
    assert index([f"{fact.subject} {fact.relation}" for fact in facts]) == [fact.text(style) for fact in facts]  # type: ignore[arg-type]
    assert index(["", "?!", "xxxx yyyy"]) == [NOTHING] * 3
    assert index.search("star") == index.search("star STAR!")[:1]


def test_equal_scores_come_in_the_corpus_order() -> None:
    index = BM25(["a x", "b x", "c x", "d y"], k=2)
    assert index.search("x") == ["a x", "b x"] and index.search("c x") == ["c x", "a x"]


@pytest.mark.parametrize(
    ("turn", "style", "query"),
    [
        ("<tool_call>gita star</tool_call>", "text", "gita star"),
        ("<think>hm</think><tool_call> gita star\n</tool_call>", "text", "gita star"),
        ("<tool_call></tool_call>", "text", None),
        ("<tool_call>a</tool_call><tool_call>b</tool_call>", "text", None),
        ("<tool_call>a</tool_call><answer>b</answer>", "text", None),
        ("<tool_call>gita star", "text", None),
        ("gita", "text", None),
        ('<tool_call>{"name": "search", "arguments": {"query": "Gita"}}</tool_call>', "json", "Gita"),
        ('<tool_call>{"name": "shell", "arguments": {"query": "Gita"}}</tool_call>', "json", None),
        ('<tool_call>{"name": "search", "arguments": "Gita"}</tool_call>', "json", None),
        ('<tool_call>{"name": "search"}</tool_call>', "json", None),
        ("<tool_call>[1]</tool_call>", "json", None),
        ("<tool_call>{'name'}</tool_call>", "json", None),
        ('<tool_call>{"name": "search", "arguments": {"query": 7}}</tool_call>', "json", None),
    ],
)
def test_calls(turn: str, style: str, query: str | None) -> None:
    assert parse_call(turn, style) == query  # type: ignore[arg-type]


def test_the_environment_answers_calls_and_ends_the_rest() -> None:
    environment = ToolEnvironment(lambda queries: [q.upper() for q in queries], "text")
    turns = ["<tool_call>a</tool_call>", "<answer>b</answer>", "?", "<tool_call>c</tool_call>"]
    assert environment.respond(turns) == [
        "<tool_response>A</tool_response>",
        None,
        None,
        "<tool_response>C</tool_response>",
    ]
    assert environment.respond(["gone"]) == [None]


def test_true_success_is_the_first_answer_in_order() -> None:
    row = {"prompt": "q", "answer": "lelu"}
    assert verify_search("<tool_response>a lake pomo</tool_response><answer>lelu</answer>", row).value == 1.0
    assert verify_search("<answer>pomo</answer>", row).value == 0.0
    for text in ("lelu", "<answer>lelu", ""):
        verdict = verify_search(text, row)
        assert verdict.value == 0.0 and verdict.reason
    assert verify_search("<answer>lelu</answer>", {"prompt": "q", "answer": ""}).failed


def test_the_task_by_name() -> None:
    task = load_task("search,train_size=40,held_out_size=10,hops=2,size=20")
    assert len(task.train) == 40 and len(task.held_out) == 10 and {row["hops"] for row in task.train} == {2}
    assert task.environment is not None and task.tiny_policy is not None and task.notes == {"answer_head": "<answer>"}
    again = load_task("search,train_size=40,held_out_size=10,hops=2,size=20")
    assert [dict(row) for row in again.train] == [dict(row) for row in task.train]
    prose = load_task("search,style=prose,train_size=8,held_out_size=4")
    assert "<tool_call>" in prose.instruction and prose.tiny_policy is None and not prose.notes
    for wrong in ("search,style=verse", "search,hops=3-4", "search,hop=2", "search,train_size=400,size=4"):
        with pytest.raises(ConfigError):
            load_task(wrong)


def test_a_faultless_demonstration_is_right_and_played_back_by_the_environment() -> None:
    rng = random.Random(5)
    for _ in range(30):
        world = make_world(rng, 5)
        question = draw_question(world, (1, 3), rng)
        text = demonstrate(world, question, CLEAN, rng)
        answer = world.follow(question.start, question.relations)[-1].value
        assert verify_search(text, {"answer": answer}).value == 1.0
        environment = search_environment(world)
        pieces = (
            text.replace("</tool_response>", "</tool_response>|").replace("</tool_call>", "</tool_call>|").split("|")
        )
        assert environment.respond(pieces[0:-1:2]) == pieces[1::2]  # what it was told is what the tool answers


def test_noisy_demonstrations_fail_about_half_the_time_and_keep_to_the_turns() -> None:
    rng = random.Random(6)
    right = 0
    for _ in range(400):
        world = make_world(rng, 3)
        question = draw_question(world, (2, 3), rng)
        text = demonstrate(world, question, Habits(), rng)
        right += (
            verify_search(text, {"answer": world.follow(question.start, question.relations)[-1].value}).value == 1.0
        )
        assert text.count("<tool_call>") <= 5 and text.count("<answer>") == 1
    assert 0.4 < right / 400 < 0.65


def test_tags_and_syllables_are_single_tokens_and_text_comes_back() -> None:
    tokenizer = search_tokenizer()

    def pieces(text: str) -> list[str]:
        return [tokenizer.decode([i]) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]

    assert pieces(" star of gita?\n") == [" star", " ", "o", "f", " ", "gi", "ta", "?", "\n"]
    assert pieces("".join(TAGS)) == list(TAGS)
    text = "home of star of gita?\n" + "".join(TAGS) + "a b"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_igpo_gets_the_answer_head_of_the_task() -> None:
    from guerdon.systems.context import Context, build

    task = load_task("search,train_size=8,held_out_size=4")
    system = build("igpo", Context(task, search_tokenizer(), "policy"))
    assert system.signals["gain"].head == "<answer>"
    own = build("igpo:answer_head=now,rewards=gain", Context(task, search_tokenizer(), "policy"))
    assert own.signals["gain"].head == "now"


def test_json_calls_survive_a_round_trip() -> None:
    call = json.dumps({"name": "search", "arguments": {"query": 'the "home" of Ünlü'}})
    assert parse_call(f"<tool_call>{call}</tool_call>") == 'the "home" of Ünlü'
