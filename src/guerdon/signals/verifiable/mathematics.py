"""Is a mathematical answer right? math-verify's parser and comparison, made safe to call on anything a policy writes.

Order of work: take the answer part (`answer_part`), extract the answer where a rule is given, cap the text (`answer_window`), find the
expression in it (`location`), compare words and plain numbers here (`fast`), then one pool task for each different (answer, reference)
pair of the whole batch (`equality`). What counts as equal: docs/verdicts.md.

Time-outs. A check that exceeds its time says nothing about the answer, so it is NaN by default. But a policy could learn to
write sums that never end to have its failures dropped: `on_timeout="zero"` calls such an answer wrong, provided that the
reference alone can be evaluated in time. The same option covers a worker killed by the answer and an exception while comparing.
Numbers with more digits than are worth computing (10^10^10) are refused before they are computed.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from guerdon.options import checked
from guerdon.signals.verifiable.answer_part import AnswerPart, Reasoning, answering
from guerdon.signals.verifiable.extraction import Extract, answer_window, extractor
from guerdon.signals.verifiable.fast import fast_verdict, quick_verdict
from guerdon.signals.verifiable.location import (
    Located,
    locate,
    locate_expression,
    locate_words,
    reference_expression,
)
from guerdon.signals.verifiable.pool import WorkerPool, shared_pool
from guerdon.signals.verifiable.quantities import same_words, special, words_of
from guerdon.signals.verifiable.references import read_references
from guerdon.signals.verifiable.verdict import Verdict, any_of, instrument_failure, shown

OnTimeout = Literal["nan", "zero"]
_PROBE = "918273/645546"  # a number nobody has as a reference, so that the comparison has to evaluate both
_WORKER = Path(__file__).with_name("worker.py")


@checked
@dataclass(frozen=True)
class MathOptions:
    """How mathematical answers are read and compared.

    Attributes:
        extract: where the answer is; None = the rules of `location` on the whole answer part (a box, an answer tag, "the answer is",
            the last expression). See `extraction.extractor`.
        max_chars: of a longer answer part only its last `max_chars` characters are read, and what follows its last `\\boxed`,
            answer tag or "answer" before them. Longer references and extracted answers count as broken and as wrong.
        timeout_s: seconds for one pair; a batch takes at most timeout_s x (pairs that hang) / workers longer.
        on_timeout: "nan" or "zero", see the module's header.
        fast: use the fast path where it knows.
        workers: processes at most; None = CPUs, at most 8.
        memory_mb: address space of one worker.
        reasoning: what of a completion is read, see `answer_part.answer_part`.
    """

    extract: Extract | None = None
    max_chars: int = 8192
    timeout_s: float = 5.0
    on_timeout: OnTimeout = "nan"
    fast: bool = True
    workers: int | None = None
    memory_mb: int = 2048
    reasoning: Reasoning = "drop"

    def __post_init__(self) -> None:
        if self.on_timeout not in ("nan", "zero"):
            raise ValueError(f"on_timeout={self.on_timeout!r}: use 'nan' or 'zero'")
        if self.max_chars < 1 or self.timeout_s <= 0:
            raise ValueError(f"max_chars={self.max_chars} and timeout_s={self.timeout_s} must be positive")
        self.answering()

    def answering(self) -> Callable[[str], AnswerPart]:
        """Completion -> the answer in it."""
        rule = extractor(self.extract) if self.extract is not None else None
        return answering(rule, self.reasoning, self.extract)

    def pool(self) -> WorkerPool:
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError('math-verify is needed to check mathematics: pip install "guerdon[verify]"')
        return shared_pool(_WORKER, workers=self.workers, timeout_s=self.timeout_s, memory_mb=self.memory_mb)


def check_math(
    completions: Sequence[str], references: Sequence[Any], options: MathOptions | None = None
) -> list[Verdict]:
    """Verdicts of a batch: 1.0 right, 0.0 wrong or no answer (with a reason), NaN where the instrument failed (with a reason).

    Args:
        completions: B texts.
        references: B references: text, number, or a list of acceptable ones.
        options: see `MathOptions`.

    Raises:
        ImportError: math-verify is not installed and is needed.
        WorkerStartError: no worker process can be started.
    """
    options = options or MathOptions()
    if len(completions) != len(references):
        raise ValueError(f"{len(completions)} completions for {len(references)} references")
    find = options.answering()
    rows: list[Verdict | list[Verdict | tuple[str, str]]] = []
    verdicts: dict[tuple[str, str], Verdict | None] = {}
    for completion, reference in zip(completions, references, strict=True):
        row = _pairs(completion, reference, find, options)
        rows.append(row)
        for pair in row if isinstance(row, list) else ():
            if not isinstance(pair, Verdict) and pair not in verdicts:
                verdicts[pair] = _quick(pair) if options.fast else None
    unknown = [pair for pair, verdict in verdicts.items() if verdict is None]
    if unknown:
        verdicts.update(zip(unknown, _slow(unknown, options), strict=True))
    return [row if isinstance(row, Verdict) else any_of([_of(pair, verdicts) for pair in row]) for row in rows]


def _of(pair: Verdict | tuple[str, str], verdicts: dict[tuple[str, str], Verdict | None]) -> Verdict:
    verdict = pair if isinstance(pair, Verdict) else verdicts[pair]
    assert verdict is not None  # the pool answered whatever was left
    return verdict


def verify_math(completion: str, reference: Any, options: MathOptions | None = None) -> Verdict:
    """`check_math` for one completion."""
    return check_math([completion], [reference], options)[0]


def _pairs(
    completion: str, reference: Any, find: Callable[[str], AnswerPart], options: MathOptions
) -> Verdict | list[Verdict | tuple[str, str]]:
    """What decides a row: (expression, reference) pairs and the verdicts that need no comparison of expressions."""
    values, problem = read_references(reference, "math")
    if problem is not None:
        return instrument_failure(problem)
    texts = [str(value).strip() for value in values]
    if any(len(text) > options.max_chars for text in texts):
        return instrument_failure(f"a reference is longer than max_chars={options.max_chars}")
    # The rules are linear, so they see the whole text; only what they find is capped.
    answer, why = find(completion)
    if answer is None:
        return Verdict(0.0, why)
    if options.extract is not None and len(answer) > options.max_chars:
        return Verdict(
            0.0, f"the extracted answer has {len(answer)} characters, more than max_chars={options.max_chars}"
        )
    window = answer_window(answer, options.max_chars)
    located: Located | None = None
    out: list[Verdict | tuple[str, str]] = []
    for text in texts:
        if options.fast and (right := fast_verdict(window, text)) is not None:
            out.append(_verdict(right, window[-40:], text))
            continue
        if located is None:
            located = locate_expression(window) if options.extract is not None else locate(window)
        out.append(_pair(located, window, text, options.extract is not None))
    if located is not None and located.text is None and len(window) < len(answer):
        cut = f"; the last {options.max_chars} characters of {len(answer)} were read (max_chars)"
        return [Verdict(v.value, f"{v.reason}{cut}") if isinstance(v, Verdict) and v.value == 0 else v for v in out]
    return out


def _pair(located: Located, window: str, reference: str, extracted: bool) -> Verdict | tuple[str, str]:
    """The expressions to compare, or the verdict where the reference is words or there is no expression."""
    expected = reference_expression(reference)
    words = words_of(expected)
    if words is not None and len(words.strip("(). :")) > 1:
        said = window if extracted and len(window) <= 300 else locate_words(window)
        if said is not None and same_words(words_of(said) or said, words):
            return Verdict(1.0)
        return Verdict(0.0, f"read {shown(said)}, which is not {shown(words)}" if said else "no answer found")
    if words is not None and located.text is None and (said := locate_words(window)) is not None:
        return said, expected
    kind = special(expected)
    if words is None and (kind is not None or re.search(r"[A-Za-z]{3}", expected)):
        # Dates, times and quantities in parts are read whole: a search for the last expression would find the 5 of "March 5".
        said = (window if extracted else locate_words(window) or "").strip(" .\n")
        if said.split() == expected.split():
            return Verdict(1.0)
        if kind is not None and special(said) is not None:
            return said, expected
    if located.text is None:
        return Verdict(0.0, located.reason)
    return located.text, expected


def _verdict(right: bool, answer: str, reference: str) -> Verdict:
    return Verdict(1.0) if right else Verdict(0.0, f"read {shown(answer)}, which is not {shown(reference)}")


def _quick(pair: tuple[str, str]) -> Verdict | None:
    right = quick_verdict(*pair)
    return None if right is None else _verdict(right, *pair)


def _slow(pairs: Sequence[tuple[str, str]], options: MathOptions) -> list[Verdict]:
    """Every pair through the pool at once."""
    pool = options.pool()
    replies = pool.map([{"answer": answer, "reference": reference} for answer, reference in pairs])
    verdicts = [
        instrument_failure(reply["failed"]) if "failed" in reply else Verdict(float(reply["value"]), reply["reason"])
        for reply in replies
    ]
    if options.on_timeout == "zero":
        failed = [i for i, verdict in enumerate(verdicts) if verdict.failed]
        # The reference against a plain number: where that works, the failure was the answer's doing.
        alone = pool.map([{"answer": _PROBE, "reference": pairs[i][1]} for i in failed])
        for i, reply in zip(failed, alone, strict=True):
            if "failed" not in reply:
                verdicts[i] = Verdict(0.0, f"{verdicts[i].reason}; counted as wrong (on_timeout='zero')")
    return verdicts
