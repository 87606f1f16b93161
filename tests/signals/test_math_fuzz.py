"""2,000 fuzzed answers through the math signal: no hang, no crash, no wrong answer scored right, every NaN with a reason.

GUERDON_FUZZ=20000 runs more of them (default 2000).
"""

from __future__ import annotations

import math
import os
import random
import string
import time
from typing import Literal

from guerdon.rewards import Rewards
from guerdon.rollouts import Rollouts
from guerdon.signals import Math

COUNT = int(os.environ.get("GUERDON_FUZZ", "2000"))
TIMEOUT_S = 2.0
WORKERS = 2
REFERENCE = "73914"
# Values no fuzzed text below contains: whatever is scored right although it is not one of RIGHT is a lie.
RIGHT = [
    "73914",
    "\\boxed{73,914}",
    "The answer is 73914.",
    "$73914$",
    "\\boxed{\\frac{147828}{2}}",
    "It is $73900+14$",
    "\\boxed{7.3914e4}",
    "<b>x</b> \\boxed{73914}",
]
DIGITS = "0125"  # no 7, 3, 9, 4: digits alone cannot make the reference

HANGS = [
    "$\\sum_{k=1}^{1000000000} \\frac{\\sin(k)}{k}$",
    "$\\binom{4000000000}{400000000}$",
]
TOWERS = [
    "10**10**10",
    "$10^{10^{10^{10}}}$",
    "\\boxed{9999999!!!}",
    "\\boxed{2^{2^{2^{2^{2^{2}}}}}}",
    "$((((100!)!)!)!)$",
]

LATEX_TEXTS = r"\frac{ \sqrt[ } { \boxed{ $ \left( \right] \begin{matrix} \\ & ^ _ 1 2 5 x \ \text{ \cdot = | \pm , \%"
PIECES = LATEX_TEXTS.split()


def broken_latex(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 40)))


def digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice(DIGITS) for _ in range(count))


def fuzzed(rng: random.Random) -> str:
    kind = rng.randrange(16)
    if kind == 0:
        return broken_latex(rng)
    if kind == 1:
        return f"\\boxed{{{broken_latex(rng)}}}"
    if kind == 2:
        return f"{digits(rng, 2)}e{digits(rng, rng.randint(1, 9))}"
    if kind == 3:
        depth = rng.choice([5, 40, 3000])
        return "\\boxed{" + "{" * depth + digits(rng, 2) + "}" * rng.choice([depth, depth - 1]) + "}"
    if kind == 4:
        return rng.choice(
            ["x ", "12 ", "{", "\\frac{1}{2}", "\\boxed{1} ", "$1$ ", "1+", "(", "answer is ", "\n"]
        ) * rng.choice([50, 30_000])
    if kind == 5:
        return "\x00".join([digits(rng, 3), "\\boxed{\x002\x00}", "\x00"][: rng.randint(1, 3)])
    if kind == 6:
        return (
            "\u202e"
            + "العدد هو "
            + "".join(rng.choice("٠١٢٥") for _ in range(3))
            + "\u202c \u05d0\u05d1 "
            + digits(rng, 1)
        )
    if kind == 7:
        planes = [(1, 0x2FF), (0x2000, 0x2BFF), (0x1F300, 0x1F6FF), (0xD800, 0xD800)]
        text = "".join(chr(rng.randint(*rng.choice(planes))) for _ in range(rng.randint(1, 80)))
        return text.translate({ord(digit): None for digit in "7394"})
    if kind == 8:
        return (
            "The answer is "
            + rng.choice(["", "-", "+", "$", "\\("])
            + digits(rng, rng.randint(1, 5))
            + rng.choice(["", ".", "%", " km", "x", "^2", "/0", "e5", "!", "$"])
        )
    if kind == 9:
        return (
            "\\boxed{"
            + rng.choice(
                [
                    "",
                    " ",
                    "\\text{none}",
                    "\\infty",
                    "x=1",
                    "1,2,5",
                    "(0,1]",
                    "\\emptyset",
                    "1/0",
                    "0/0",
                    "\\sqrt{-1}",
                    "i",
                    "\\log 0",
                    "[[1]]",
                    "\\{\\}",
                ]
            )
            + "}"
        )
    if kind == 10:
        return " ".join(
            rng.choice(
                [
                    "so",
                    "therefore",
                    "\\boxed{1}",
                    "\\boxed{2}",
                    "$5$",
                    "answer:",
                    "final answer is",
                    "I hope",
                    "=",
                    "and",
                    "or",
                ]
            )
            for _ in range(20)
        )
    if kind == 11:
        return "".join(rng.choice(string.ascii_letters + " +-*/^()=.,!") for _ in range(rng.randint(1, 60)))
    if kind == 12:
        return (
            "__import__('os').system('exit 1')"
            if rng.random() < 0.5
            else "$\\text{__import__('os')._exit(0)}$ exec(1/0)"
        )
    if kind == 13:
        return rng.choice(
            [
                "",
                " ",
                "\n\n",
                "\\",
                "$",
                "$$",
                "\\boxed",
                "\\boxed{",
                "\\boxed{}",
                "%",
                "-",
                ".",
                "\\frac",
                "∞",
                "√2",
                "½",
                "π",
                "①",
                "Ⅻ",
            ]
        )
    if kind == 14:
        return (
            f"\\int_0^{{{digits(rng, 1)}}} x^{{{digits(rng, 2)}}} dx"
            if rng.random() < 0.2
            else f"$\\binom{{{digits(rng, 2)}}}{{{digits(rng, 1)}}}$"
        )
    return digits(rng, rng.choice([1, 20, 400, 6000])) + rng.choice(["", ".", "." + digits(rng, 5)])


def test_fuzzed_answers_never_hang_never_lie() -> None:
    rng = random.Random(2)
    texts = [fuzzed(rng) for _ in range(COUNT)] + HANGS + TOWERS
    rng.shuffle(texts)
    right = set(rng.sample(range(len(texts)), len(texts) // 20))
    texts = [rng.choice(RIGHT) if i in right else text for i, text in enumerate(texts)]
    signal = Math(reference="truth", timeout_s=TIMEOUT_S, workers=WORKERS)
    rollouts = Rollouts.from_texts([""] * len(texts), texts, {"truth": [REFERENCE] * len(texts)})

    start = time.monotonic()
    rewards = signal(rollouts)
    elapsed = time.monotonic() - start

    values = rewards.values[:, 0].tolist()
    failed = [i for i, value in enumerate(values) if math.isnan(value)]
    distinct_failed = len({texts[i] for i in failed})
    assert elapsed < 60 + distinct_failed * (TIMEOUT_S + 3) / WORKERS, (elapsed, distinct_failed)
    assert [texts[i] for i, value in enumerate(values) if value == 1.0 and i not in right] == [], (
        "a wrong answer was scored right"
    )
    assert [(texts[i], values[i], rewards.reasons.get((i, 0))) for i in right if values[i] != 1.0] == []
    assert all(rewards.reasons.get((i, 0)) for i in range(len(texts)) if values[i] != 1.0), (
        "a failing value without a reason"
    )
    assert {value for value in values if not math.isnan(value)} == {0.0, 1.0}
    assert len(failed) < len(texts) // 20, "gibberish must be a number, not an escape: " + repr(
        [texts[i][:60] for i in failed][:20]
    )


def test_towers_of_powers_are_refused_before_they_are_computed() -> None:
    signal = Math(timeout_s=5.0, workers=WORKERS)
    rewards = signal(Rollouts.from_texts([""] * len(TOWERS), TOWERS, {"answer": ["5"] * len(TOWERS)}))
    assert rewards.values[:, 0].tolist() == [0.0] * len(TOWERS)
    assert all(rewards.reasons[(i, 0)] for i in range(len(TOWERS)))
    assert math.isnan(signal(Rollouts.from_texts([""], ["x^2"], {"answer": [TOWERS[1]]})).values[0, 0].item())


def test_what_hangs_is_unknown_by_default_and_wrong_on_request() -> None:
    def rewards(on_timeout: Literal["nan", "zero"], answer: str, reference: str) -> Rewards:
        signal = Math(timeout_s=1.0, workers=WORKERS, on_timeout=on_timeout)
        return signal(Rollouts.from_texts([""], [answer], {"answer": [reference]}))

    default = rewards("nan", HANGS[0], "5")
    assert math.isnan(default.values[0, 0].item()) and "no verdict within 1 s" in default.reasons[(0, 0)]
    strict = rewards("zero", HANGS[0], "5")
    assert strict.values[0, 0].item() == 0.0 and "counted as wrong" in strict.reasons[(0, 0)]
    # A reference that hangs by itself is the data's fault whatever the option says.
    assert math.isnan(rewards("zero", "5 km", HANGS[1]).values[0, 0].item())
