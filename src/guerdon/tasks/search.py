"""The built-in task "search": questions of several hops over made-up facts, behind a BM25 index.

    a fact        gita star pomo                             a film's star
    a question    home of star of gita?\n                    the answer is two searches away
    a rollout     <tool_call>gita star</tool_call>           the policy
                  <tool_response>gita star pomo</tool_response>      the tool
                  <tool_call>pomo home</tool_call>           the policy, which could not have asked this before
                  <tool_response>pomo home lelu</tool_response>
                  <answer>lelu</answer>

There are three layers of names (films, people, places) and a fourth of things; each relation leads from one layer to the next, so no
question can be answered from its own words, a wrong relation leads elsewhere, and what a search finds is the next search's subject.
Retrieval is lexical and returns one fact: a query that names another subject or relation finds another fact, or none.

style="plain" is as above, for the tiny policy; style="prose" writes facts and questions in English sentences, calls in JSON and asks for
thoughts, for chat models. Facts depend on the seed alone and are the same for training and held-out questions, which differ.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from guerdon.errors import ConfigError
from guerdon.extras import require
from guerdon.signals.verifiable.tagged_answer import tagged_answer_reward
from guerdon.signals.verifiable.verdict import Verdict, instrument_failure
from guerdon.tasks.base import Row, Task
from guerdon.tasks.environment import ToolEnvironment

Style = Literal["plain", "prose"]
STYLES = ("plain", "prose")
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
RELATIONS = (("star", "poet", "crew"), ("home", "club", "work"), ("lake", "king", "dish"))
INSTRUCTION = (
    'You can search a collection of facts. Reason between <think> and </think>, then either search with <tool_call>{"name": "search", '
    '"arguments": {"query": "..."}}</tool_call>, or give the final answer, a name, between <answer> and </answer>.'
)
NOTHING = "nothing found"
_WORD = re.compile(r"\w+")


# --- the world -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """`subject`'s `relation` is `value`."""

    subject: str
    relation: str
    value: str

    def text(self, style: Style) -> str:
        if style == "plain":
            return f"{self.subject} {self.relation} {self.value}"
        return f"The {self.relation} of {self.subject.capitalize()} is {self.value.capitalize()}."


@dataclass(frozen=True)
class World:
    """layers: names by layer. facts: (subject, relation) -> fact."""

    layers: tuple[tuple[str, ...], ...]
    facts: dict[tuple[str, str], Fact] = field(repr=False)

    def follow(self, start: str, relations: Sequence[str]) -> list[Fact]:
        """The facts along a chain of relations."""
        chain: list[Fact] = []
        for relation in relations:
            chain.append(self.facts[chain[-1].value if chain else start, relation])
        return chain


def make_world(rng: random.Random, size: int = 40) -> World:
    """`size` names in each of four layers, and a fact for each name of the first three and each relation of its layer."""
    names: dict[str, None] = {}
    while len(names) < 4 * size:
        names["".join(rng.choice(letters) for letters in (CONSONANTS, VOWELS) * 2)] = None
    every = list(names)
    layers = tuple(tuple(every[i * size : (i + 1) * size]) for i in range(4))
    facts = {
        (subject, relation): Fact(subject, relation, rng.choice(layers[depth + 1]))
        for depth, relations in enumerate(RELATIONS)
        for subject in layers[depth]
        for relation in relations
    }
    return World(layers, facts)


@dataclass(frozen=True)
class Question:
    """The chain `relations` (in the order they are followed) from `start`."""

    start: str
    relations: tuple[str, ...]

    def text(self, style: Style) -> str:
        around = list(reversed(self.relations))
        if style == "plain":
            return f"{' of '.join([*around, self.start])}?\n"
        return f"What is the {' of the '.join(around)} of {self.start.capitalize()}?"


def draw_question(world: World, hops: tuple[int, int], rng: random.Random) -> Question:
    """A chain of hops[0]..hops[1] relations that ends in any layer it can end in."""
    count = rng.randint(*hops)
    first = rng.randint(0, len(RELATIONS) - count)
    relations = tuple(rng.choice(RELATIONS[first + hop]) for hop in range(count))
    return Question(rng.choice(world.layers[first]), relations)


# --- retrieval -------------------------------------------------------------------------------------------------------


class BM25:
    """A lexical index: the `k` best documents of each query, equal scores in the corpus' order; documents that share no word never."""

    def __init__(self, documents: Sequence[str], k: int = 1) -> None:
        bm25s = require("bm25s", extra="tasks")
        self.documents, self.k = list(documents), k
        self._index = bm25s.BM25()
        self._index.index([_words(document) for document in self.documents], show_progress=False)

    def search(self, query: str) -> list[str]:
        words = _words(query)
        if not words:
            return []
        scores = self._index.get_scores(words)
        best = (-scores).argsort(kind="stable")[: self.k]
        return [self.documents[i] for i in best if scores[i] > 0]

    def __call__(self, queries: Sequence[str]) -> list[str]:
        """What the tool answers: the found documents, a line each."""
        return ["\n".join(self.search(query)) or NOTHING for query in queries]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


# --- the task --------------------------------------------------------------------------------------------------------


def verify_search(completion: str, row: Row) -> Verdict:
    """True success: tags in order, and the words of the first answer are the reference's."""
    if not str(row.get("answer") or "").strip():
        return instrument_failure("the row has no answer")
    verdict = tagged_answer_reward(completion, [str(row["answer"])], "em", format_penalty=0.0)
    return verdict if verdict.value else Verdict(0.0, verdict.reason)


def search_environment(world: World, style: Style = "plain", *, max_turns: int = 6) -> ToolEnvironment:
    """The facts of a world behind a BM25 index."""
    index = BM25([fact.text(style) for fact in world.facts.values()])
    if style == "plain":
        return ToolEnvironment(index, "text", max_turns, turn_tokens=24)
    return ToolEnvironment(index, "json", max_turns, turn_tokens=200)


def search(
    *,
    style: Style = "plain",
    hops: tuple[int, int] = (2, 3),
    size: int = 40,
    train_size: int = 512,
    held_out_size: int = 128,
    max_turns: int = 6,
    seed: int = 0,
) -> Task:
    """The built-in task. Columns: prompt, answer, hops.

    Args:
        style: "plain" or "prose", see the head of this file.
        hops: fewest and most of a question, within 1..3.
        size: names in each layer.
        train_size, held_out_size: numbers of different questions; held-out ones are never among the others.
        max_turns: of a rollout, the answer included.
        seed: of facts and questions.
    """
    if style not in STYLES:
        raise ConfigError(f"style={style!r}: use 'plain' or 'prose'")
    low, high = hops
    if not 1 <= low <= high <= len(RELATIONS):
        raise ConfigError(f"hops={hops}: within 1-{len(RELATIONS)}, the smaller number first")
    world = make_world(random.Random(seed), size)
    rng = random.Random(seed + 1)

    def rows(count: int, held_out: bool) -> list[Row]:
        found: dict[str, Row] = {}
        for _ in range(60 * count):
            question = draw_question(world, hops, rng)
            prompt = question.text(style)
            if len(found) < count and is_held_out(prompt) == held_out and prompt not in found:
                answer = world.follow(question.start, question.relations)[-1].value
                found[prompt] = {"prompt": prompt, "answer": answer, "hops": len(question.relations)}
        if len(found) < count:
            raise ConfigError(
                f"there are fewer than {count} different questions on this side; ask for fewer, or size={2 * size}"
            )
        return list(found.values())

    plain = style == "plain"
    return Task(
        name="search" if plain else "search,style=prose",
        train=rows(train_size, False),
        held_out=rows(held_out_size, True),
        verify=lambda completions, rows: [verify_search(c, row) for c, row in zip(completions, rows, strict=True)],
        max_completion_length=40 * max_turns if plain else 300 * max_turns,
        instruction="" if plain else INSTRUCTION,
        notes={"answer_head": "<answer>"} if plain else {},
        environment=search_environment(world, style, max_turns=max_turns),
        tiny_policy=_tiny_policy if plain else None,
    )


def is_held_out(prompt: str) -> bool:
    """Whether a question belongs to the held-out fifth: a property of its text."""
    return zlib.crc32(prompt.encode()) % 5 == 0


def _tiny_policy() -> str:
    from guerdon.tasks.search_policy import search_policy

    return search_policy()


def options_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Options as the one-line spec gives them: a single number of hops is a range."""
    hops = settings.get("hops")
    return {**settings, "hops": (hops, hops)} if isinstance(hops, int) else settings
