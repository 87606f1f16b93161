"""The built-in task "references": small sums whose reference answers are free text of 1 to 12 tokens.

    half "short"    prompt  a3+b5+c4=?\n      reference  12
    half "long"     prompt  a15-b5-c4=?\n     reference  10, 6 euros    (what is left each time, and a word of whoever wrote it)

    a completion    15-b5=10\n
                    10-c4=6\n
                    so 10, 6\n
                    <answer> 10, 6 </answer>

Nothing in the prompt tells the word, and the policy has never seen it: some tokens of the reference are improbable whatever the
reasoning, while the others follow from it. True success is exact match up to the word. This is what a reward from the probability
of a reference has to cope with, and what no rule that compares texts can judge without knowing all the words.

`references_policy()` is a tiny policy that has seen flawed demonstrations of it (see `guerdon.tasks.tiny`).
"""

from __future__ import annotations

import json
import random
import re
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from guerdon.errors import ConfigError, DataError
from guerdon.signals.verifiable.verdict import Verdict, instrument_failure
from guerdon.tasks.base import Row, Task

if TYPE_CHECKING:
    from guerdon.tasks.tiny import TinyConfig

Half = Literal["short", "long"]
HALVES: tuple[Half, Half] = ("short", "long")
WORDS = ("euros", "left", "apples", "in all", "roughly", "miles")
_PROMPT = re.compile(r"a(\d+)([+-])b(\d)\2c(\d)=\?\n?")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_REFERENCE = re.compile(rf"(\d+(?:, \d+)?)(?: (?:{'|'.join(WORDS)}))?")


# --- prompts ---------------------------------------------------------------------------------------------------------


def make_prompt(operands: Sequence[int], half: Half) -> str:
    """The prompt of three numbers: ``a3+b5+c4=?`` (short) or ``a15-b5-c4=?`` (long), and a newline."""
    sign = "+" if half == "short" else "-"
    return sign.join(letter + str(n) for letter, n in zip("abc", operands, strict=True)) + "=?\n"


def parse_prompt(prompt: str) -> tuple[list[int], Half]:
    """The numbers and the half of a prompt of this task. Raises DataError for any other text."""
    match = _PROMPT.fullmatch(prompt)
    if match is None:
        raise DataError(f"not a prompt of the task 'references' (such as 'a15-b5-c4=?'): {prompt!r}")
    return [int(match[1]), int(match[3]), int(match[4])], "short" if match[2] == "+" else "long"


def values_of(prompt: str) -> list[int]:
    """The right values of a prompt's two steps; the second is the total."""
    (first, *others), half = parse_prompt(prompt)
    sign = 1 if half == "short" else -1
    return [first + sign * others[0], first + sign * sum(others)]


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the held-out fifth: a property of its text, so the warm-start cannot have seen it."""
    return zlib.crc32(prompt.encode()) % 5 == 0


def sample_prompt(rng: random.Random, half: Half) -> str:
    """Two numbers from 1 to 5 to add to one from 1 to 9, or to take from one between 11 and 19."""
    first = rng.randint(1, 9) if half == "short" else rng.randint(11, 19)
    return make_prompt([first, rng.randint(1, 5), rng.randint(1, 5)], half)


def reference_of(prompt: str) -> str:
    """The reference: the total, or both values and a word that depends on the prompt in no way a policy could use."""
    answer, half = answer_of(values_of(prompt), parse_prompt(prompt)[1]), parse_prompt(prompt)[1]
    return answer if half == "short" else f"{answer} {WORDS[zlib.crc32(b'word ' + prompt.encode()) % len(WORDS)]}"


def answer_of(values: Sequence[int], half: Half) -> str:
    """What a policy concludes and answers in either half: ``12`` or ``10, 6``."""
    return ", ".join(map(str, values[-1:] if half == "short" else values))


# --- judging ---------------------------------------------------------------------------------------------------------


def verify_reference(completion: str, row: Row) -> Verdict:
    """True success: one answer between tags, and it is the reference with this word, another or none."""
    reference = _REFERENCE.fullmatch(str(row["answer"]))
    if reference is None:
        return instrument_failure(f"the row's answer is neither '12' nor '10, 6 euros': {row['answer']!r}")
    found = _ANSWER.findall(completion)
    if len(found) != 1:
        return Verdict(0.0, f"{len(found)} answers between <answer> and </answer>, expected one")
    given = _REFERENCE.fullmatch(found[0].strip())
    if given is None or given[1] != reference[1]:
        return Verdict(0.0, f"answered {found[0].strip()[:40]!r}, the reference is {row['answer']!r}")
    return Verdict(1.0)


# --- demonstrations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Habits:
    """How the demonstrations are; every field is a probability.

    slip: of a line stating a wrong value. miscopy: of the conclusion differing from the last line. untagged: of the closing tag
    missing.
    """

    slip: float = 0.15
    miscopy: float = 0.04
    untagged: float = 0.03


def solve(prompt: str, habits: Habits, rng: random.Random) -> str:
    """One demonstration: two lines of arithmetic, a conclusion, the answer."""
    (value, *others), half = parse_prompt(prompt)
    sign = "+" if half == "short" else "-"
    lines, values = [], []
    for letter, n in zip("bc", others, strict=True):
        result = value + n if half == "short" else value - n
        if rng.random() < habits.slip:
            result = max(0, result + rng.choice((-2, -1, 1, 2)))
        lines.append(f"{value}{sign}{letter}{n}={result}")
        value = result
        values.append(value)
    if rng.random() < habits.miscopy:
        values[-1] = max(0, value + rng.choice((-1, 1)))
    answer = answer_of(values, half)
    return "\n".join(
        [*lines, f"so {answer}", f"<answer> {answer}" + ("" if rng.random() < habits.untagged else " </answer>")]
    )


# --- the task --------------------------------------------------------------------------------------------------------


def references(*, train_size: int = 320, held_out_size: int = 80, seed: int = 0) -> Task:
    """The built-in task, both halves in turn. Columns: prompt, answer (the reference), half. Same seed, same rows."""
    rng = random.Random(seed)

    def rows(count: int, held_out: bool) -> list[Row]:
        found: dict[str, Row] = {}
        for _ in range(30 * count):
            half = HALVES[len(found) % 2]
            prompt = sample_prompt(rng, half)
            if len(found) < count and is_held_out(prompt) == held_out and prompt not in found:
                found[prompt] = {"prompt": prompt, "answer": reference_of(prompt), "half": half}
        if len(found) < count:
            raise ConfigError(f"there are fewer than {count} different prompts in this split; ask for fewer")
        return list(found.values())

    return Task(
        name="references",
        train=rows(train_size, False),
        held_out=rows(held_out_size, True),
        verify=lambda completions, rows: [verify_reference(c, row) for c, row in zip(completions, rows, strict=True)],
        max_completion_length=72,
        delimiter="\n",
        notes={"format_mode": "R1_nothink"},
    )


# --- the policy ------------------------------------------------------------------------------------------------------


def references_policy(
    seed: int = 0, steps: int = 1500, *, habits: Habits | None = None, config: TinyConfig | None = None
) -> str:
    """Path of a tiny policy warm-started on this task, trained on first use (about four minutes on one thread) and cached."""
    from guerdon.cache import cached_artifact
    from guerdon.tasks import tiny

    habits, config = habits or Habits(), config or tiny.TinyConfig()
    settings = {"seed": seed, "steps": steps, "habits": asdict(habits), "model": asdict(config)}

    def build(directory: Path) -> None:
        tokenizer = tiny.char_tokenizer()
        model, losses = _warm_start(tokenizer, seed, steps, habits, config)
        card: dict[str, Any] = {**settings, "parameters": sum(p.numel() for p in model.parameters())}
        card["loss_first"], card["loss_last"] = losses[0], sum(losses[-20:]) / len(losses[-20:])
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        (directory / "card.json").write_text(json.dumps(card, indent=2) + "\n")

    return str(cached_artifact("references-policy", settings, [tiny, sys.modules[__name__]], build))


def _warm_start(tokenizer: Any, seed: int, steps: int, habits: Habits, config: TinyConfig) -> tuple[Any, list[float]]:
    """A fresh policy trained on demonstrations, none of a held-out prompt.

    For the first 40 % of the steps only their lines of arithmetic; then, up to 75 %, whole ones without flaws; flawed ones from there
    on. Copying the last line into conclusion and answer takes as long to learn as the arithmetic.
    """
    from guerdon.tasks import tiny

    rng = random.Random(seed)
    model: Any = tiny.new_model(tokenizer, config, seed)
    clean = Habits(slip=0.0, miscopy=0.0, untagged=0.0)

    def demonstration(step: int) -> tuple[str, str]:
        while is_held_out(prompt := sample_prompt(rng, rng.choice(HALVES))):
            pass
        whole = solve(prompt, habits if step >= 0.75 * steps else clean, rng)
        return prompt, "\n".join(whole.split("\n")[: 2 if step < 0.4 * steps else None])

    losses = tiny.teach(
        model,
        tokenizer,
        demonstration,
        steps=steps,
        rows=6,
        width=160,
        lr=2e-3,
        description="warm-starting the policy of the task 'references'",
    )
    return model, losses
