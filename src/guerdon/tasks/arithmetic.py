"""The built-in task "sums": add up single digits, one partial sum per line.

    prompt      a3+b5+c9+d2=?\n
    solution    3+b5=8\n         a step: running value + next operand = new running value
                8+c9=17\n
                ok so far\n      filler: says nothing new ("ok so far", "ok", "so 17 is 17")
                17+d2=19\n
                #19              the answer, the last line

It is small enough for a policy of under a million parameters and yet has what makes reward designs differ: a wrong step
can be followed by a right answer (luck, or a second error that cancels the first), lines can be filler, and there is no end
to the filler one can write. Every line can be judged exactly, given the lines before it (`label_steps`), which gives process
reward models their training data and their held-out accuracy. Operands carry letters so that the next one can be looked
up rather than counted out, which a tiny model learns several times faster.

One step is one line, so the delimiter is a single newline, which is one character and therefore one token of the
tokenizer in `tasks.tiny`; the answer ends with the end-of-sequence token, not with a newline.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from guerdon.errors import ConfigError, DataError
from guerdon.signals.verifiable.verdict import Verdict, instrument_failure
from guerdon.tasks.base import Row, Task

DELIMITER = "\n"
StepKind = Literal["correct", "wrong", "filler"]

_STEP = re.compile(r"([0-9]{1,9})\+([a-i])([0-9])=([0-9]{1,9})")
_ANSWER = re.compile(r"#([0-9]{1,9})")
_RESTATE = re.compile(r"so ([0-9]{1,9}) is ([0-9]{1,9})")
_FILLER, _NOD = "ok so far", "ok"
LETTERS = "abcdefghi"
LARGEST = (
    5  # of the operands drawn here: sums stay below 21, so that the tiny policy knows its sums well, not by a hair
)
HELD_OUT_SHARE = 5  # one prompt in so many


# --- prompts ---------------------------------------------------------------------------------------------------------


def make_prompt(operands: Sequence[int]) -> str:
    """The prompt of a sum of 2 to 9 digits: ``a3+b5+c9+d2=?`` and a newline."""
    return "+".join(letter + str(n) for letter, n in zip(LETTERS, operands, strict=False)) + "=?\n"


def parse_prompt(prompt: str) -> list[int]:
    """The operands of a prompt of this task. Raises DataError for any other text."""
    operands = [int(digit) for digit in re.findall(r"[0-9]", prompt)]
    if not 2 <= len(operands) <= len(LETTERS) or prompt.strip() != make_prompt(operands).strip():
        raise DataError(f"not a prompt of the task 'sums' (such as 'a3+b5+c9=?'): {prompt!r}")
    return operands


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the held-out fifth: a property of its text, the same for every seed and every use,
    so that neither warm-start nor reward-model training can have seen it."""
    return zlib.crc32(prompt.encode()) % HELD_OUT_SHARE == 0


def sample_operands(rng: random.Random, terms: tuple[int, int] = (3, 4)) -> list[int]:
    """terms[0]..terms[1] digits from 1 to 5."""
    return [rng.randint(1, LARGEST) for _ in range(rng.randint(*terms))]


def sample_prompts(count: int, rng: random.Random, *, held_out: bool, terms: tuple[int, int] = (3, 4)) -> list[str]:
    """`count` different prompts of one side of the split, with terms[0]..terms[1] digits from 1 to 5."""
    room = room_for(terms, held_out=held_out)
    if count > room:
        side, size = ("held-out", "held_out_size") if held_out else ("training", "train_size")
        raise ConfigError(
            f"{count} different {side} prompts asked for, but sums of {terms[0]} to {terms[1]} operands have about {room}; write {size}={room}"
        )
    found: dict[str, None] = {}
    while len(found) < count:
        prompt = make_prompt(sample_operands(rng, terms))
        if is_held_out(prompt) == held_out:
            found[prompt] = None
    return list(found)


def room_for(terms: tuple[int, int], *, held_out: bool) -> int:
    """How many different prompts of one side can be asked for: nine in ten of those there are, so that drawing them ends."""
    low, high = terms
    if not 2 <= low <= high <= 9:
        raise ConfigError(f"terms={terms}: a sum has 2 to 9 operands, the smaller number first")
    share = sum(LARGEST**n for n in range(low, high + 1)) // HELD_OUT_SHARE
    return int((share if held_out else (HELD_OUT_SHARE - 1) * share) * 0.9)


# --- judging ---------------------------------------------------------------------------------------------------------


def verify_sum(completion: str, row: Row) -> Verdict:
    """True success: the last line is ``#`` and the right total. Text after the answer means the answer is not final."""
    given = row["answer"]
    right = {str(r) for r in (given if isinstance(given, list | tuple) else [given])}
    if not right or not all(re.fullmatch(r"[0-9]+", r) for r in right):
        return instrument_failure(f"the row's answer is not a total: {given!r}")
    last = completion.rstrip("\n").rsplit("\n", 1)[-1]
    match = _ANSWER.fullmatch(last)
    if match is None:
        return Verdict(0.0, f"the last line is not an answer: {last[:40]!r}")
    if int(match[1]) not in {int(r) for r in right}:
        return Verdict(0.0, f"answered {match[1]}, the total is {' or '.join(sorted(right))}")
    return Verdict(1.0)


def label_steps(prompt: str, steps: Sequence[str]) -> list[StepKind]:
    """What each line is, judged against the prompt and the lines before it.

    A sum line is correct if it adds the next operand to the value reached so far, rightly. The answer is correct if all
    operands have been used and it states the value reached. A line that only restates is filler. Everything else
    (also an unfinished, empty or second answer line) is wrong. The value reached is what the last sum line *states*,
    right or wrong, so one slip makes one wrong line. It follows that a solution with an answer and no wrong line has
    the right answer, while a right answer does not imply that no line is wrong (a lucky answer).
    """
    operands = parse_prompt(prompt)
    value, used, answered = operands[0], 1, False
    kinds: list[StepKind] = []
    for step in steps:
        kind: StepKind = "wrong"
        if match := _STEP.fullmatch(step):
            a, b, c = int(match[1]), int(match[3]), int(match[4])
            due = not answered and used < len(operands) and match[2] == LETTERS[used] and b == operands[used]
            if due and a == value and a + b == c:
                kind = "correct"
            value, used = c, used + 1
        elif match := _ANSWER.fullmatch(step):
            if not answered and used == len(operands) and int(match[1]) == value:
                kind = "correct"
            answered = True
        elif step in (_FILLER, _NOD) or (
            (match := _RESTATE.fullmatch(step)) and int(match[1]) == int(match[2]) == value
        ):
            kind = "filler"
        kinds.append(kind)
    return kinds


def locate_errors(prompt: str, steps: Sequence[str]) -> list[int | None]:
    """For each sum line or answer, the character (the delimiter counts) where it leaves the one right line of its place; None
    where it does not, and for lines of which that cannot be said."""
    operands = parse_prompt(prompt)
    value, used = operands[0], 1
    places: list[int | None] = []
    for step in steps:
        due = None
        if match := _STEP.fullmatch(step):
            if used < len(operands):
                due = f"{value}+{LETTERS[used]}{operands[used]}={value + operands[used]}"
            value, used = int(match[4]), used + 1
        elif _ANSWER.fullmatch(step) and used == len(operands):
            due = f"#{value}"
        pairs = zip(step + DELIMITER, (due or step) + DELIMITER, strict=False)
        places.append(next((i for i, (given, right) in enumerate(pairs) if given != right), None))
    return places


def split_solution(completion: str) -> list[str]:
    """The lines of a completion; no empty line for a newline at its very end."""
    lines = completion.split(DELIMITER)
    return lines[:-1] if lines[-1] == "" else lines


# --- demonstrations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """How flawed sampled solutions are; every field is a probability.

    wrong_sum: of a sum line stating a wrong total. wrong_operand: of a sum line adding a wrong digit.
    wrong_answer: of the answer differing from the value reached. lucky: of an answer after a wrong line being the right
    total all the same. early: of answering before all operands are used. filler: of a filler line before each line
    (drawn again after each, so runs occur). garbage: of a malformed, empty or cut line before each line.
    after: of a line following the answer (drawn again after each). nod: of the shortest filler, "ok", before each line (drawn again after
    each). near: of a wrong number being at most 3 off; others are at
    least 3 off, which a small policy can learn to avoid.
    """

    wrong_sum: float = 0.0
    wrong_operand: float = 0.0
    wrong_answer: float = 0.0
    lucky: float = 0.0
    early: float = 0.0
    filler: float = 0.0
    garbage: float = 0.0
    after: float = 0.0
    near: float = 0.0
    nod: float = 0.0


NO_NOISE = Noise()


def solve(operands: Sequence[int], noise: Noise, rng: random.Random) -> list[str]:
    """One step-by-step solution as its lines; with `NO_NOISE`, the right one."""
    lines: list[str] = []
    value, slipped = operands[0], False
    last = len(operands)
    if rng.random() < noise.early:
        last = rng.randint(1, len(operands) - 1)
    for letter, operand in zip(LETTERS[1:], operands[1:last], strict=False):
        lines += _interjections(value, noise, rng)
        b = _other_than(operand, rng, 1, LARGEST) if rng.random() < noise.wrong_operand else operand
        total = value + b
        if rng.random() < noise.wrong_sum:
            total = _slip(total, noise, rng)
        slipped |= total != value + operand
        lines.append(f"{value}+{letter}{b}={total}")
        value = total
    lines += _interjections(value, noise, rng)
    answer = value
    if slipped and rng.random() < noise.lucky:
        answer = sum(operands)
    elif rng.random() < noise.wrong_answer:
        answer = _slip(value, noise, rng)
    lines.append(f"#{answer}")
    while rng.random() < noise.after:
        again = (_filler_line(value, rng), _filler_line(value, rng), f"#{answer}", f"{value}+b1={value + 1}")
        lines.append(rng.choice(again))
    return lines


def _interjections(value: int, noise: Noise, rng: random.Random) -> list[str]:
    lines: list[str] = []
    while rng.random() < noise.filler:
        lines.append(_filler_line(value, rng))
    while noise.nod and rng.random() < noise.nod:
        lines.append(_NOD)
    if rng.random() < noise.garbage:
        whole = (
            f"{value}+{rng.choice(LETTERS[:5])}{rng.randint(1, LARGEST)}={value + 1}",
            _filler_line(value, rng),
            f"so {value} is {value + 1}",
        )
        line = rng.choice(whole)
        lines.append(rng.choice(("", line[: rng.randint(0, len(line) - 1)], line[::-1], f"{value}")))
    return lines


def _filler_line(value: int, rng: random.Random) -> str:
    return _FILLER if rng.random() < 0.5 else f"so {value} is {value}"


def _slip(total: int, noise: Noise, rng: random.Random) -> int:
    if noise.near and rng.random() < noise.near:
        return rng.choice([n for n in range(max(1, total - 3), total + 4) if n != total])
    return rng.choice([n for n in range(max(1, total - 15), total + 16) if abs(n - total) >= 3])


def _other_than(n: int, rng: random.Random, low: int, high: int) -> int:
    return rng.choice([m for m in range(low, high + 1) if m != n])


# --- the task --------------------------------------------------------------------------------------------------------


def sums(
    *,
    train_size: int | None = None,
    held_out_size: int | None = None,
    terms: tuple[int, int] = (3, 4),
    seed: int = 0,
) -> Task:
    """The built-in task. Columns: prompt, answer (the total, as text). Same seed, same rows.

    train_size, held_out_size: different prompts of each side; default 512 and 128, or as many as short sums have.
    """
    rng = random.Random(seed)
    train_size = min(512, room_for(terms, held_out=False)) if train_size is None else train_size
    held_out_size = min(128, room_for(terms, held_out=True)) if held_out_size is None else held_out_size

    def rows(count: int, held_out: bool) -> list[Row]:
        prompts = sample_prompts(count, rng, held_out=held_out, terms=terms)
        return [{"prompt": p, "answer": str(sum(parse_prompt(p)))} for p in prompts]

    return Task(
        name="sums",
        train=rows(train_size, False),
        held_out=rows(held_out_size, True),
        verify=lambda completions, rows: [verify_sum(c, row) for c, row in zip(completions, rows, strict=True)],
        max_completion_length=64,
        delimiter=DELIMITER,
    )
