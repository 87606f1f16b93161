"""The tiny policy of the task "search": characters, and one token for each tag, relation and syllable; warm-started on noisy dialogues.

Every demonstration has a world of its own, so that no fact of any task can be learned by heart: what there is to learn is to search and
to read. Demonstrators follow a wrong relation, search for the wrong name, search again for what they know, answer too early, or
forget a closing tag; a policy that imitates them has all of it to unlearn. The tool's lines are in the loss of the warm-start (a fact
repeats its query, which teaches copying soonest); in training on rewards they never are.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from guerdon.tasks.search import CONSONANTS, NOTHING, RELATIONS, VOWELS, Question, World, draw_question, make_world

if TYPE_CHECKING:
    from pathlib import Path

    from guerdon.tasks.tiny import TinyConfig

TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<answer>", "</answer>")


@dataclass(frozen=True)
class Habits:
    """How demonstrators search; every field is a probability, those of the first four at each search.

    wrong_relation: another relation of the layer. wrong_name: the name they began with. again: the same search once more.
    early: answering with the last name found. untagged: of a closing answer tag missing.
    recover: of going on rightly after a search that led elsewhere, instead of from there.
    """

    wrong_relation: float = 0.25
    wrong_name: float = 0.1
    again: float = 0.08
    early: float = 0.2
    untagged: float = 0.04
    recover: float = 0.4


CLEAN = Habits(0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def demonstrate(world: World, question: Question, habits: Habits, rng: random.Random, max_turns: int = 6) -> str:
    """One dialogue, tool lines included."""
    lines: list[str] = []
    name, hop = question.start, 0
    while hop < len(question.relations) and len(lines) < 2 * (max_turns - 1):
        if lines and rng.random() < habits.early:
            break
        relation, subject = question.relations[hop], name
        if rng.random() < habits.wrong_relation:
            relation = rng.choice([r for layer in RELATIONS if relation in layer for r in layer])
        if rng.random() < habits.wrong_name:
            subject = question.start
        if lines and rng.random() < habits.again:
            lines += lines[-2:]
            continue
        fact = world.facts.get((subject, relation))
        lines += [f"<tool_call>{subject} {relation}</tool_call>"]
        lines += [f"<tool_response>{fact.text('plain') if fact else NOTHING}</tool_response>"]
        right = subject == name and relation == question.relations[hop]
        if fact is not None and (right or rng.random() >= habits.recover):
            name, hop = fact.value, hop + 1
    closing = "" if rng.random() < habits.untagged else "</answer>"
    return "".join([*lines, f"<answer>{name}{closing}"])


def search_tokenizer() -> Any:
    """The character tokenizer of `tasks.tiny` with a token more for each tag, relation and syllable: a name is two tokens.

    Copying a name is what this task is made of, and copying four letters takes a model of this size several times longer to learn.
    """
    from guerdon.tasks.tiny import char_tokenizer

    tokenizer = char_tokenizer()
    syllables = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]
    tokenizer.add_tokens([*TAGS, *[f" {word}" for layer in RELATIONS for word in layer], *syllables])
    return tokenizer


def search_policy(
    seed: int = 0, steps: int = 1200, *, habits: Habits | None = None, config: TinyConfig | None = None
) -> str:
    """Path of the warm-started policy, trained on first use (one to two minutes on one thread) and cached."""
    from guerdon.cache import cached_artifact
    from guerdon.tasks import environment, search, tiny

    habits, config = habits or Habits(), config or tiny.TinyConfig(96, 3, 4, 256)
    settings = {"seed": seed, "steps": steps, "habits": asdict(habits), "model": asdict(config)}

    def build(directory: Path) -> None:
        tokenizer = search_tokenizer()
        model, losses = _warm_start(tokenizer, seed, steps, habits, config)
        card: dict[str, Any] = {**settings, "parameters": sum(p.numel() for p in model.parameters())}
        card["loss_first"], card["loss_last"] = losses[0], sum(losses[-20:]) / len(losses[-20:])
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        (directory / "card.json").write_text(json.dumps(card, indent=2) + "\n")

    sources = [tiny, search, environment, sys.modules[__name__]]
    return str(cached_artifact("search-policy", settings, sources, build))


def _warm_start(tokenizer: Any, seed: int, steps: int, habits: Habits, config: TinyConfig) -> tuple[Any, list[float]]:
    """A fresh policy trained on dialogues, faultless ones for the first 35 % of the steps.

    That is enough to search and to read without a fault; the rest, and a learning rate that is still high there, is what it takes to imitate
    the habits and nothing besides.
    """
    from guerdon.tasks import tiny

    rng = random.Random(f"search policy {seed}")
    model: Any = tiny.new_model(tokenizer, config, seed)

    def demonstration(step: int) -> tuple[str, str]:
        world = make_world(rng, 3)
        question = draw_question(world, (1, 3) if step < 0.15 * steps else (2, 3), rng)
        return question.text("plain"), demonstrate(world, question, habits if step >= 0.35 * steps else CLEAN, rng)

    losses = tiny.teach(
        model,
        tokenizer,
        demonstration,
        steps=steps,
        rows=8,
        width=128,
        description="warm-starting the policy of the task 'search'",
    )
    return model, losses
