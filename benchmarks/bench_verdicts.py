"""How often a right answer is paid and a wrong one is not, whatever way a model ends its answer; math-verify beside it.

    guerdon bench verdicts --json PATH        or        python benchmarks/bench_verdicts.py [PATH]

Measured: (1) a matrix of ways to end an answer x values x right and wrong, through `Math()` and through math-verify alone;
(2) the corpus of the package reward-doctor through `Math()`; (3) the cases kept with the tests, each through its own reward;
(4) the facts of math-verify's own tests, in both verifiers. Lists of what went wrong are in the JSON.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guerdon import signals
from guerdon.rollouts import Rollouts

RIGHT_BAR, ERROR_BAR, CASES_BAR = 0.95, 0.05, 0.95
CASES = Path(__file__).parent.parent / "tests" / "signals" / "verdict_cases"

VALUES: tuple[tuple[str, str, str, str, str], ...] = (
    # as written in prose, as LaTeX, the reference; another value in prose and as LaTeX
    ("53", "53", "53", "35", "35"),
    ("-7", "-7", "-7", "7", "7"),
    ("1,048", "1{,}048", "1048", "1,084", "1{,}084"),
    ("3/8", "\\frac{3}{8}", "\\frac{3}{8}", "8/3", "\\frac{8}{3}"),
    ("2.75", "2.75", "2.75", "27.5", "27.5"),
)

# P = the value in prose, L = in LaTeX. Each is a way in which models end an answer, seen in public outputs and bug reports.
ENDINGS: tuple[str, ...] = (
    # bare and in a sentence
    "P",
    "P.",
    " P \n",
    "The answer is P.",
    "The answer is P",
    "The answer is: P",
    "The final answer is P!",
    "Answer: P",
    "answer = P",
    "ANSWER: P",
    "Final answer: P.",
    "Final Answer\nP",
    "Result = P",
    "Total: P",
    "Total:P",
    "So the result is P, as required.",
    "Thus x = P.",
    "Hence, we get x=P",
    "Therefore n = P is the only solution.",
    "The answer is P (see above).",
    "The answer is P (rounded).",
    "The answer is P, which is what we wanted to show.",
    "The answer is P; nothing else fits.",
    "The answer is P.\n(QED)",
    "The answer is P. QED",
    "The answer is P.\n\nI hope this helps!",
    "The answer is P.\nLet me know if you have questions.",
    "The answer is P.\n\n* check by hand",
    "The answer is P.\n\n- checked twice",
    "The answer is P – done.",
    "The answer is 'P'.",
    'The answer is "P".',
    "The answer is “P”.",
    "The answer is `P`.",
    "The answer is (P).",
    "The answer is [P].",
    "The answer is exactly P.",
    "It equals P in total.",
    "We find that it is equal to P.",
    "#### P",
    "#### P\n",
    "2 + 2 = 4 and then\n#### P",
    "> P",
    "=> P",
    "→ P",
    "∴ P",
    "⇒ x = P",
    # markdown
    "**P**",
    "*P*",
    "__P__",
    "_P_",
    "***P***",
    "`P`",
    "```\nP\n```",
    "The answer is **P**.",
    "The answer is **P**",
    "The answer is *P*.",
    "**The answer is P.**",
    "**Answer: P**",
    "**Answer:** P",
    "**Answer**: P",
    "**Final Answer:** P",
    "**Final Answer:**\n\nP",
    "**Final Answer**: **P**",
    "### Final Answer\n\nP",
    "### Final Answer\n\n**P**",
    "### Final Answer: P",
    "## Answer\nP",
    "---\n\n**P**",
    "- P",
    "* **P**",
    "1. First we add.\n2. Then we get P.",
    "- Sum: P",
    "✅ Final Answer: **P**",
    "Final Answer: P ✅",
    "✔ P",
    "🎉 The answer is **P**! 🎉",
    "| quantity | value |\n| --- | --- |\n| answer | P |",
    # LaTeX
    "$L$",
    "$$L$$",
    "$$\nL\n$$",
    "\\(L\\)",
    "\\[L\\]",
    "\\[\nL\n\\]",
    "The answer is $L$.",
    "The answer is \\(L\\).",
    "The answer is **$L$**.",
    "Thus $x = L$.",
    "\\[ x = L \\]",
    "\\boxed{L}",
    "$\\boxed{L}$",
    "$$\\boxed{L}$$",
    "\\[\\boxed{L}\\]",
    "\\[\n\\boxed{L}\n\\]",
    "The answer is $\\boxed{L}$.",
    "**Answer:** $\\boxed{L}$",
    "\\boxed{ L }",
    "\\boxed{$L$}",
    "\\boxed{\\text{P}}",
    "\\boxed{\\mathbf{L}}",
    "\\boxed{x = L}",
    "\\boxed{L}.",
    "\\fbox{L}",
    "\\boxed{\\displaystyle L}",
    "\\begin{align*}\nx &= 1 + 1 \\\\\n&= L\n\\end{align*}",
    "$x = 4 - 2 = L$",
    "$\\mathbf{L}$",
    "$\\mathrm{Answer} = L$",
    "The final answer is: $\\boxed{L}$. I hope it is correct.",
    # tags, reasoning, HTML
    "<answer>P</answer>",
    "<answer> P </answer>",
    "<answer>\nP\n</answer>",
    "<answer>$L$</answer>",
    "<answer>**P**</answer>",
    "<answer>\\boxed{L}</answer>",
    "<think>Let me see.</think>P",
    "<think>Let me see: 12 + 1 = 13.</think>\n\nThe answer is P.",
    "<think>\\boxed{12}, no.</think>\n\\boxed{L}",
    "Let me see.</think>\n\n**P**",
    "<think>Let me see.</think><answer>P</answer>",
    "<b>P</b>",
    "The answer is <strong>P</strong>.",
    "<p>The answer is P</p>",
    "P<br>",
    # other languages
    "答案：P",
    "答案是P。",
    "所以答案为 P。",
    "答えは P です。",
    "La réponse est P.",
    "Die Antwort ist P.",
    "La respuesta es **P**.",
    "Ответ: P.",
    "정답: P",
    # JSON and code
    '{"answer": "P"}',
    'Answer: {"answer": "P"}',
    '```json\n{"answer": "P"}\n```',
    "answer = P  # by the rule above",
)

REASONING = "First we add: 12 + 25 = 37, which is not yet it.\n\n"


@dataclass(frozen=True)
class Cell:
    """One answer of the matrix and whether it is right."""

    completion: str
    reference: str
    right: bool
    ending: str


def matrix(endings: Sequence[str] = ENDINGS) -> list[Cell]:
    """Every ending x value: right; with another value; and with another value behind a right intermediate one."""
    cells = []
    for ending in endings:
        for prose, latex, reference, other_prose, other_latex in VALUES:
            wrong = _filled(ending, other_prose, other_latex)
            cells.append(Cell(REASONING + _filled(ending, prose, latex), reference, True, ending))
            cells.append(Cell(REASONING + wrong, reference, False, ending))
            cells.append(Cell(f"At first I got {prose}, but that was a slip.\n\n{wrong}", reference, False, ending))
    return cells


def _filled(ending: str, prose: str, latex: str) -> str:
    """The ending with the value in the places of the single capitals P and L."""
    return re.sub(r"(?<![A-Za-z])[PL](?![A-Za-z])", lambda mark: prose if mark[0] == "P" else latex, ending)


def ours(pairs: Sequence[tuple[str, Any]]) -> list[float]:
    """`Math()`'s values of (completion, reference) pairs; NaN = the instrument failed."""
    rollouts = Rollouts.from_texts(
        [""] * len(pairs),
        [completion for completion, _ in pairs],
        group_ids=list(range(len(pairs))),
        columns={"answer": [reference for _, reference in pairs]},
    )
    return [float(value) for value in signals.Math()(rollouts).values[:, 0]]


def peer(pairs: Iterable[tuple[str, Any]]) -> list[float]:
    """math-verify alone, as its documentation says, without its time-outs (which only slow it down)."""
    from math_verify import parse, verify

    return [
        float(
            verify(
                parse(f"${reference}$", parsing_timeout=None), parse(text, parsing_timeout=None), timeout_seconds=None
            )
        )
        for text, reference in pairs
    ]


def measure_matrix(endings: Sequence[str] = ENDINGS) -> dict[str, Any]:
    """Shares of right and wrong answers that are paid, ours and math-verify's, and the cells that went wrong."""
    cells = matrix(endings)
    pairs = [(cell.completion, cell.reference) for cell in cells]
    own, other = ours(pairs), peer(pairs)
    right = [i for i, cell in enumerate(cells) if cell.right]
    wrong = [i for i, cell in enumerate(cells) if not cell.right]
    return {
        "endings": len(endings),
        "right_answers": len(right),
        "wrong_answers": len(wrong),
        "right_paid": sum(own[i] == 1.0 for i in right) / len(right),
        "wrong_paid": sum(own[i] > 0 for i in wrong) / len(wrong),
        "math_verify_right_paid": sum(other[i] == 1.0 for i in right) / len(right),
        "math_verify_wrong_paid": sum(other[i] > 0 for i in wrong) / len(wrong),
        "right_unpaid_cells": [[cells[i].completion, cells[i].reference] for i in right if own[i] != 1.0],
        "wrong_paid_cells": [[cells[i].completion, cells[i].reference] for i in wrong if own[i] > 0],
    }


def measure_corpus() -> dict[str, Any]:
    """False negatives and positives on reward-doctor's corpus, its contested cases apart (its own default)."""
    try:
        from reward_doctor import corpus
    except ImportError:
        return {"skipped": "reward-doctor is not installed: pip install reward-doctor==0.2.0"}
    cases = corpus.load()
    values = ours([(case.completion, case.reference) for case in cases])
    accepted = [value > 0 for value in values]
    negatives = [case.id for case, paid in zip(cases, accepted, strict=True) if case.expect and not paid]
    positives = [case.id for case, paid in zip(cases, accepted, strict=True) if paid and not case.expect]
    return {
        "cases": len(cases),
        "false_negatives": len(negatives) / sum(case.expect for case in cases),
        "false_positives": len(positives) / sum(not case.expect for case in cases),
        "false_negative_ids": negatives,
        "false_positive_ids": positives,
    }


def measure_cases(folder: Path = CASES) -> dict[str, Any]:
    """Cases of every kind kept with the tests, each through the reward it names, as `guerdon score` builds it."""
    from guerdon.cli.score import reward_by_name

    cases = [
        {**case, "id": case.get("id", f"{path.stem}:{number}")}
        for path in sorted(folder.glob("*.jsonl"))
        for number, case in enumerate(_records(path), 1)
        if {"reward", "completion", "expected"} <= case.keys()
    ]
    by_reward: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        by_reward.setdefault(case["reward"], []).append(case)
    failing = []
    for reward, group in by_reward.items():
        _, part = reward_by_name(reward, ())
        rollouts = Rollouts.from_texts(
            [case.get("prompt", "") for case in group],
            [case["completion"] for case in group],
            group_ids=list(range(len(group))),
            columns={"answer": [case.get("answer") for case in group]},
        )
        values = part(rollouts).values[:, 0].tolist()
        failing += [
            {"id": case["id"], "value": value, "expected": case["expected"]}
            for case, value in zip(group, values, strict=True)
            if not _same(value, case["expected"])
        ]
    return {"cases": len(cases), "right": 1 - len(failing) / max(1, len(cases)), "failing": failing}


def measure_facts(path: Path = CASES / "math_verify_facts.jsonl") -> dict[str, Any]:
    """Facts of math-verify's own tests (reference, answer, equal or not): who is right, and where only the other one is."""
    if not path.exists():
        return {"skipped": f"{path.name} is not there"}
    facts = _records(path)
    pairs = [(fact["answer"], fact["reference"]) for fact in facts]
    expected = [bool(fact["expected"]) for fact in facts]
    own = [(value > 0) == right for value, right in zip(ours(pairs), expected, strict=True)]
    other = [(value > 0) == right for value, right in zip(peer(pairs), expected, strict=True)]
    argued = {i for i, fact in enumerate(facts) if fact.get("differs")}
    return {
        "facts": len(facts),
        "right": sum(own) / len(facts),
        "math_verify_right": sum(other) / len(facts),
        "only_math_verify_right": [facts[i] for i in range(len(facts)) if other[i] and not own[i] and i not in argued],
        "only_math_verify_right_argued": sum(other[i] and not own[i] for i in argued),
    }


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _same(value: float, expected: float | None) -> bool:
    return math.isnan(value) if expected is None else abs(value - float(expected)) < 1e-4


def run(json_path: str | Path | None = None) -> dict[str, Any]:
    """Run the benchmark, print one line a measure, and write everything to `json_path` if given.

    Returns:
        right_paid, wrong_paid, math_verify_right_paid, math_verify_wrong_paid: shares of the matrix in [0, 1]; `matrix`, `corpus`,
        `cases`, `math_verify_facts`: the measures whole; `passed`: whether every bar held.
    """
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    cells, corpus, cases, facts = measure_matrix(), measure_corpus(), measure_cases(), measure_facts()
    shares = ("right_paid", "wrong_paid", "math_verify_right_paid", "math_verify_wrong_paid")
    bars = {
        f"at least {RIGHT_BAR:.0%} of the right answers of the matrix paid": cells["right_paid"] >= RIGHT_BAR,
        "no wrong answer of the matrix paid": cells["wrong_paid"] == 0,
        f"at most {ERROR_BAR:.0%} false negatives on the corpus": corpus.get("false_negatives", 0) <= ERROR_BAR,
        f"at most {ERROR_BAR:.0%} false positives on the corpus": corpus.get("false_positives", 0) <= ERROR_BAR,
        f"at least {CASES_BAR:.0%} of the kept cases right": cases["right"] >= CASES_BAR,
        "math-verify alone right only where it is argued": not facts.get("only_math_verify_right"),
    }
    print(
        f"matrix      {cells['endings']} endings, {cells['right_answers']} right answers: paid {cells['right_paid']:.1%} (math-verify {cells['math_verify_right_paid']:.1%})"
    )
    print(
        f"            {cells['wrong_answers']} wrong answers: paid {cells['wrong_paid']:.1%} (math-verify {cells['math_verify_wrong_paid']:.1%})"
    )
    if "skipped" in corpus:
        print(f"corpus      not measured: {corpus['skipped']}")
    else:
        print(
            f"corpus      {corpus['cases']} cases of reward-doctor: {corpus['false_negatives']:.1%} false negatives, {corpus['false_positives']:.1%} false positives"
        )
    print(f"cases       {cases['cases']} kept with the tests: {cases['right']:.1%} right")
    if "skipped" in facts:
        print(f"facts       not measured: {facts['skipped']}")
    else:
        print(
            f"facts       {facts['facts']} of math-verify's tests: {facts['right']:.1%} right (math-verify {facts['math_verify_right']:.1%})"
        )
    for bar, held in bars.items():
        print(f"{'held    ' if held else 'NOT held'}  {bar}")
    result = {
        "name": "verdicts",
        **{key: cells[key] for key in shares},
        "matrix": {key: value for key, value in cells.items() if key not in shares},
        "corpus": corpus,
        "cases": cases,
        "math_verify_facts": facts,
        "bars": bars,
        "passed": all(bars.values()),
    }
    if json_path is not None:
        Path(json_path).parent.mkdir(parents=True, exist_ok=True)
        Path(json_path).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else None)
