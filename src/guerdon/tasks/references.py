"""The built-in task "references": small sums whose reference answers are free text of 1 to 12 tokens.

    half "short"    prompt  a3+b5+c4=?\n      reference  12
    half "long"     prompt  a15-b5-c4=?\n     reference  it is 6     (or "6 left", "leaving 6", ...: somebody's wording)

    a completion    15-b5=10\n
                    10-c4=6\n
                    so 6 remain\n                    the conclusion, in one of the wordings
                    <answer> 6 remain </answer>      the answer, mostly in the wording of the conclusion

The references of the long half were worded by others: nothing in the prompt says how, so a completion that is right may still
word its answer otherwise. True success is exact match up to the wording. This is what a reward from the probability of a reference
has to cope with, and what no rule that compares texts can judge without knowing all the wordings.

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
WORDINGS = ("{} left", "it is {}", "{} remain", "we keep {}", "leaving {}", "the rest: {}")
_PROMPT = re.compile(r"a(\d+)([+-])b(\d)\2c(\d)=\?\n?")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


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


def total_of(prompt: str) -> int:
    """The right value of a prompt."""
    (a, b, c), half = parse_prompt(prompt)
    return a + b + c if half == "short" else a - b - c


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the held-out fifth: a property of its text, so the warm-start cannot have seen it."""
    return zlib.crc32(prompt.encode()) % 5 == 0


def sample_prompt(rng: random.Random, half: Half) -> str:
    """Two numbers from 1 to 5 to add to one from 1 to 9, or to take from one between 11 and 19."""
    first = rng.randint(1, 9) if half == "short" else rng.randint(11, 19)
    return make_prompt([first, rng.randint(1, 5), rng.randint(1, 5)], half)


def reference_of(prompt: str) -> str:
    """The reference: the number, or the number in a wording that depends on the prompt in no way a policy could use."""
    half = parse_prompt(prompt)[1]
    total = str(total_of(prompt))
    return (
        total if half == "short" else WORDINGS[zlib.crc32(b"wording " + prompt.encode()) % len(WORDINGS)].format(total)
    )


# --- judging ---------------------------------------------------------------------------------------------------------


def verify_reference(completion: str, row: Row) -> Verdict:
    """True success: one answer between tags, and it is the reference in this or another wording."""
    numbers = re.findall(r"\d+", str(row["answer"]))
    if len(numbers) != 1:
        return instrument_failure(f"the row's answer holds {len(numbers)} numbers, expected one: {row['answer']!r}")
    found = _ANSWER.findall(completion)
    if len(found) != 1:
        return Verdict(0.0, f"{len(found)} answers between <answer> and </answer>, expected one")
    given = found[0].strip()
    if given not in {numbers[0], *(wording.format(numbers[0]) for wording in WORDINGS)}:
        return Verdict(0.0, f"answered {given[:40]!r}, the reference is {row['answer']!r}")
    return Verdict(1.0)


# --- demonstrations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Habits:
    """How the demonstrations are; every field is a probability.

    slip: of a line stating a wrong value. miscopy: of the conclusion differing from the last line. own_words: of the answer's wording being
    that of the conclusion (else any). untagged: of the closing tag missing.
    """

    slip: float = 0.15
    miscopy: float = 0.04
    own_words: float = 0.9
    untagged: float = 0.03


def solve(prompt: str, habits: Habits, rng: random.Random) -> str:
    """One demonstration: two lines of arithmetic, a conclusion, the answer."""
    (value, *others), half = parse_prompt(prompt)
    sign = "+" if half == "short" else "-"
    lines = []
    for letter, n in zip("bc", others, strict=True):
        result = value + n if half == "short" else value - n
        if rng.random() < habits.slip:
            result = max(0, result + rng.choice((-2, -1, 1, 2)))
        lines.append(f"{value}{sign}{letter}{n}={result}")
        value = result
    if rng.random() < habits.miscopy:
        value = max(0, value + rng.choice((-1, 1)))
    wording = "{}" if half == "short" else rng.choice(WORDINGS)
    lines.append(f"so {wording.format(value)}")
    if half == "long" and rng.random() >= habits.own_words:
        wording = rng.choice(WORDINGS)
    lines.append(f"<answer> {wording.format(value)}" + ("" if rng.random() < habits.untagged else " </answer>"))
    return "\n".join(lines)


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
    import torch

    from guerdon.tasks.tiny import Schedule, adamw, new_model, pack_rows, progress

    rng = random.Random(seed)
    model = new_model(tokenizer, config, seed)
    clean = Habits(slip=0.0, miscopy=0.0, own_words=habits.own_words, untagged=0.0)
    schedule = Schedule(2e-3, steps, 30)
    optimizer = adamw(model.parameters(), schedule.lr, 0.01)
    losses = []
    model.train()
    for step in progress(steps, "warm-starting the policy of the task 'references'"):
        now = habits if step >= 0.75 * steps else clean
        lines = 2 if step < 0.4 * steps else None

        def demonstration(now: Habits = now, lines: int | None = lines) -> tuple[str, str]:
            while is_held_out(prompt := sample_prompt(rng, rng.choice(HALVES))):
                pass
            return prompt, "\n".join(solve(prompt, now, rng).split("\n")[:lines])

        packed = pack_rows(tokenizer, demonstration, 6, 160)
        schedule.apply(optimizer, step)
        logits = model(
            input_ids=packed.ids, attention_mask=packed.attention, position_ids=packed.positions, use_cache=False
        ).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), packed.targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return model.eval(), losses
