"""What the reference-probability reward says about hand-made completions, under a real 135M instruct model.

`ITEMS`: 50 simple questions, each with reasoning that ends in the right value and the same reasoning ending in a wrong one. A reward
is good if it ranks the right ones above the wrong ones, over all questions at once (AUC). References are as short as a digit and
as long as a name; with `worded`, every other reference carries a few words more, as other people's answers do.

`GUESSABLE` and `NEEDS_REASONING`: prompts that the model finishes rightly at once, and prompts where it does not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guerdon.rollouts import Rollouts, concat_rollouts
from guerdon.signals.likelihood import aggregate, splice_reference
from guerdon.signals.likelihood.reference_probability import Aggregation
from guerdon.systems.rlpr import rlpr

INSTRUCTION = "\n\nReason between <think> and </think>, then give only the final answer between <answer> and </answer>."
# A model of this size does not follow the instruction alone: two questions answered in the format come before each.
EXAMPLES = (
    ("What colour is snow?", "Snow is frozen water, and it looks {}.", "white"),
    ("What is 12 + 30?", "We compute 12 + 30 = {}.", "42"),
)
AGGREGATIONS: tuple[Aggregation, ...] = ("mean_prob", "prod_prob")
SUFFIXES = (" in total", ", I believe", ", as one can check", " is the result", ", no doubt", " (see above)")


@dataclass(frozen=True)
class Item:
    """A question, reasoning with a place {} for the value it ends in, the right value and a wrong one."""

    question: str
    reasoning: str
    right: str
    wrong: str


QUESTIONS = [
    Item("What is the capital of France?", "France is governed from its capital, {}.", "Paris", "Lyon"),
    Item("What is the capital of Japan?", "The Japanese government sits in {}.", "Tokyo", "Osaka"),
    Item("What is the capital of Australia?", "The parliament of Australia is in {}.", "Canberra", "Sydney"),
    Item("Who wrote Romeo and Juliet?", "This play was written by {}.", "William Shakespeare", "Christopher Marlowe"),
    Item("Which planet is closest to the Sun?", "The innermost planet is {}.", "Mercury", "Venus"),
    Item("Which is the largest ocean?", "The ocean with the greatest area is {}.", "the Pacific Ocean", "the Atlantic Ocean"),
    Item("What is the chemical symbol of gold?", "From the Latin aurum, the symbol is {}.", "Au", "Ag"),
    Item("What gas do plants take up for photosynthesis?", "Plants build sugar from {}.", "carbon dioxide", "oxygen"),
    Item("How many legs does a spider have?", "Spiders are arachnids, so they have {}.", "eight", "six"),
    Item("Who painted the Mona Lisa?", "The portrait was painted by {}.", "Leonardo da Vinci", "Michelangelo"),
    Item("At what temperature in Celsius does water boil?", "At sea level water boils at {} degrees.", "100", "80"),
    Item("Which language is spoken in Brazil?", "Because it was a colony, people there speak {}.", "Portuguese", "Spanish"),
    Item("Who developed the theory of relativity?", "The theory is due to {}.", "Albert Einstein", "Isaac Newton"),
    Item("What is the largest mammal?", "The largest animal alive is {}.", "the blue whale", "the African elephant"),
    Item("Which metal is liquid at room temperature?", "Thermometers used it: the metal is {}.", "mercury", "iron"),
    Item("In which continent is Egypt?", "Egypt lies in the north-east of {}.", "Africa", "Asia"),
    Item("What is the currency of the United Kingdom?", "In Britain one pays with {}.", "the pound sterling", "the euro"),
    Item("Which organ pumps blood?", "Blood is moved around the body by {}.", "the heart", "the liver"),
    Item("How many days are in a leap year?", "A leap year has one day more, {}.", "366", "364"),
    Item("Who was the first president of the United States?", "The first to hold the office was {}.", "George Washington", "Thomas Jefferson"),
    Item("What is the opposite of hot?", "The word for the opposite is {}.", "cold", "warm"),
    Item("Which season follows winter?", "After winter comes {}.", "spring", "autumn"),
    Item("What is the square root of 81?", "Nine times nine is 81; the root is {}.", "9", "8"),
    Item("Which country has the city of Rome?", "Rome is the capital of {}.", "Italy", "Greece"),
]  # fmt: skip


def arithmetic_items(count: int, seed: int = 0) -> list[Item]:
    """Sums, differences and products of small numbers; the wrong value is off by one to nine."""
    rng = random.Random(seed)
    items = []
    for i in range(count):
        sign = "+-*"[i % 3]
        a, b = (rng.randint(20, 90), rng.randint(3, 19)) if sign != "*" else (rng.randint(3, 12), rng.randint(3, 9))
        right = {"+": a + b, "-": a - b, "*": a * b}[sign]
        wrong = right + rng.choice((-1, 1)) * rng.randint(1, 9)
        items.append(
            Item(f"What is {a} {sign} {b}?", f"We compute {a} {sign} {b} = {{}}.", str(right), str(max(0, wrong)))
        )
    return items


ITEMS = [item for pair in zip(arithmetic_items(24), QUESTIONS, strict=True) for item in pair] + arithmetic_items(2, 1)


def chat_prompt(question: str) -> list[dict[str, str]]:
    """The question after the examples, as chat messages."""
    messages: list[dict[str, str]] = []
    for asked, reasoning, value in EXAMPLES:
        messages.append({"role": "user", "content": asked + INSTRUCTION})
        messages.append({"role": "assistant", "content": response(reasoning, value)})
    return [*messages, {"role": "user", "content": question + INSTRUCTION}]


def response(reasoning: str, value: str) -> str:
    """A completion in the R1 format whose reasoning ends in the value, and that answers it."""
    return f"<think>{reasoning.format(value)}</think>\n<answer> {value} </answer>"


def items_as_rollouts(items: Sequence[Item], *, worded: bool) -> Rollouts:
    """Two rows for each item, right first; column "answer" is the reference (with a suffix for every other question, if `worded`)."""
    prompts, texts, references = [], [], []
    for i, item in enumerate(items):
        # Items come in pairs (arithmetic, question), so halving the index words half of each kind.
        suffix = SUFFIXES[i // 2 % len(SUFFIXES)] if worded and i // 2 % 2 else ""
        for value in (item.right, item.wrong):
            prompts.append(chat_prompt(item.question))
            texts.append(response(item.reasoning, value))
            references.append(item.right + suffix)
    return Rollouts.from_texts(prompts, texts, {"answer": references})


def auc(right: Tensor, wrong: Tensor) -> float:
    """P(a right one scores above a wrong one), ties half; right [N], wrong [M]."""
    difference = right[:, None] - wrong[None]
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())


def reference_logprobs(model: Any, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B, L] of each row's reference tokens in place of its answer, and their mask [B, L].

    What `ReferenceProbability` does before it aggregates, so that several aggregations share one forward pass.
    """
    from guerdon.lm.encode import encode_prompt, encode_with_target
    from guerdon.lm.scorer import SpanScorer

    scorer = SpanScorer(model)
    parts = []
    for prompt, text, reference in zip(rollouts.prompts, rollouts.completions, rollouts.column("answer"), strict=True):
        splice = splice_reference(text, reference)
        parts.append(
            encode_with_target(
                scorer.tokenizer, splice.text, splice.start, splice.end, context=encode_prompt(scorer.tokenizer, prompt)
            )
        )
    logprobs, _ = scorer.score_positions([part.ids for part in parts], [part.target for part in parts])
    counts = torch.tensor([int(part.target.sum()) for part in parts])
    return logprobs.detach(), torch.arange(logprobs.shape[1])[None] < counts[:, None]


def separation(model: Any, items: Sequence[Item]) -> dict[str, dict[str, float]]:
    """{"plain" or "worded": {aggregation: AUC of right against wrong reasoning over all items}}. model: a LocalModel."""
    kinds = {"plain": False, "worded": True}
    both = [items_as_rollouts(items, worded=worded) for worded in kinds.values()]
    # One call: a sequence that begins another (a reference without its suffix) shares that one's forward pass.
    logprobs, mask = reference_logprobs(model, concat_rollouts(both))
    found: dict[str, dict[str, float]] = {}
    for kind, rows in zip(kinds, torch.arange(len(mask)).chunk(2), strict=True):
        found[kind] = {}
        for aggregation in AGGREGATIONS:
            values = aggregate(logprobs[rows], mask[rows], aggregation)
            found[kind][aggregation] = auc(values[0::2], values[1::2])
    return found


# --- debiasing -------------------------------------------------------------------------------------------------------

# What stands before every prompt: lines that go on at once, and lines that go on with reasoning and an answer in tags.
LINES = """red, orange, yellow, green
2, 4, 6, 8,<think>After 8 comes 10.</think>
<answer> 10 </answer>
do, re, mi, fa
The opposite of big is<think>The opposite of big is small.</think>
<answer> small </answer>
7 + 2 = 9
salt and<think>Salt goes with pepper.</think>
<answer> pepper </answer>
The colour of grass is<think>The colour of grass is green.</think>
<answer> green </answer>
"""
# (prompt, reasoning, reference). Each prompt ends where the reference would follow.
GUESSABLE = [
    ("Monday, Tuesday, Wednesday, Thursday,", "After Thursday comes Friday.", "Friday"),
    ("January, February, March, April,", "After April comes May.", "May"),
    ("1, 2, 3, 4, 5, 6,", "After 6 comes 7.", "7"),
    ("10, 20, 30, 40, 50,", "The next multiple of 10 is 60.", "60"),
    ("A, B, C, D, E,", "After E comes F.", "F"),
    ("The capital of France is", "The capital of France is Paris.", "Paris"),
    ("The opposite of up is", "The opposite of up is down.", "down"),
    ("one, two, three, four,", "After four comes five.", "five"),
    ("spring, summer, autumn,", "After autumn comes winter.", "winter"),
    ("North, South, East,", "What is left is West.", "West"),
    ("To be, or not to be, that is the", "The line ends with question.", "question"),
    ("first, second, third,", "After third comes fourth.", "fourth"),
]
NEEDS_REASONING = [
    (f"{a} + {b} - {c} =", f"{a} + {b} = {a + b}, and {a + b} - {c} = {a + b - c}.", str(a + b - c))
    for a, b, c in ((47, 38, 29), (56, 27, 14), (63, 19, 45), (38, 54, 67), (72, 19, 33), (85, 16, 48),
                    (29, 64, 35), (44, 39, 58), (91, 17, 26), (33, 58, 42), (68, 25, 79), (57, 36, 15))
]  # fmt: skip


def debiased(model: Any, items: Sequence[tuple[str, str, str]]) -> dict[str, float]:
    """{"raw", "baseline", "reward"}: means over completions that reason rightly. The model is both policy and initial policy."""
    system = rlpr(format_coefficient=0.0, repetition=False, std_beta=None)
    for role in ("policy", "initial"):
        system.bind(role, model)
    texts = [f"<think>{reasoning}</think>\n<answer> {reference} </answer>" for _, reasoning, reference in items]
    rollouts = Rollouts.from_texts(
        [LINES + prompt for prompt, _, _ in items],
        texts,
        {"answer": [reference for *_, reference in items]},
        group_ids=torch.zeros(len(items), dtype=torch.long),
    )
    scores = system(rollouts)
    assert scores.reward is not None
    return {
        "raw": float(scores.raw["prob.score"].values.mean()),
        "baseline": float(scores.raw["prob.baseline"].values.mean()),
        "reward": float(scores.reward.mean()),
    }
