"""The verifiable signals: factories with keyword-only options, each returning a `TextSignal`.

All read references from `rollouts.columns[reference]`. A missing column is an error that names the columns there are; a missing
value in a row is NaN with a reason; a list means that any of its items is right.

Verifiers read the answer part of a completion (`answer_part`; `reasoning="keep"` = the whole text); formats, lengths and repetition
are properties of the whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from guerdon.errors import ConfigError
from guerdon.options import checked, require_range
from guerdon.signals.text import TOKENS, TextSignal
from guerdon.signals.verifiable import choice, layout, text_match
from guerdon.signals.verifiable.answer_part import Reasoning, answering
from guerdon.signals.verifiable.extraction import Extract, extractor, tagged_or_all
from guerdon.signals.verifiable.mathematics import MathOptions, OnTimeout, check_math
from guerdon.signals.verifiable.numeric import numeric_match, parse_number
from guerdon.signals.verifiable.references import Kind, read_references
from guerdon.signals.verifiable.verdict import Verdict, any_of, instrument_failure


def _settings(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in options.items())


def _unless_default(reasoning: Reasoning) -> dict[str, Any]:
    return {} if reasoning == "drop" else {"reasoning": reasoning}


@checked
def Math(
    *,
    reference: str = "answer",
    extract: Extract | None = None,
    max_chars: int = 8192,
    timeout_s: float = 5.0,
    on_timeout: OnTimeout = "nan",
    fast: bool = True,
    workers: int | None = None,
    memory_mb: int = 2048,
    reasoning: Reasoning = "drop",
) -> TextSignal:
    """1.0 where math-verify finds the answer equal to the reference, else 0.0; never hangs. Options: see `MathOptions`.

    The batch goes to the worker pool at once and identical (answer, reference) pairs are verified once.
    """
    options = MathOptions(extract, max_chars, timeout_s, on_timeout, fast, workers, memory_mb, reasoning)

    def check(texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Verdict]:
        return check_math(texts, columns[reference], options)

    return TextSignal(
        check,
        (reference,),
        "math",
        _settings({"reference": reference, "extract": extract, "on_timeout": on_timeout, **_unless_default(reasoning)}),
    )


def _compared(
    name: str,
    reference: str,
    extract: Extract | None,
    compare: Callable[[str, Any], Verdict],
    options: Mapping[str, Any],
    reasoning: Reasoning,
    kind: Kind,
) -> TextSignal:
    """A signal that extracts an answer and compares it with each acceptable reference."""
    find = answering(extractor(extract) if extract is not None else None, reasoning, extract)
    options = {**options, **_unless_default(reasoning)}

    def check(texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Verdict]:
        return [one(text, cell) for text, cell in zip(texts, columns[reference], strict=True)]

    def one(text: str, cell: Any) -> Verdict:
        references, problem = read_references(cell, kind)
        if problem is not None:
            return instrument_failure(problem)
        answer, why = find(text)
        if answer is None:
            # The references still have to be sound: a broken one is the data's fault even where nothing was answered.
            broken = any_of([compare("", item) for item in references])
            return broken if broken.failed else Verdict(0.0, why)
        return any_of([compare(answer, item) for item in references])

    return TextSignal(check, (reference,), name, _settings({"reference": reference, "extract": extract, **options}))


@checked
def Exact(
    *,
    reference: str = "answer",
    extract: Extract | None = None,
    ignore_case: bool = False,
    ignore_whitespace: bool = True,
    reasoning: Reasoning = "drop",
) -> TextSignal:
    """1.0 where the (extracted) text equals the reference. See `text_match.exact_match`."""

    def compare(answer: str, item: Any) -> Verdict:
        same = partial(text_match.exact_match, ignore_case=ignore_case, ignore_whitespace=ignore_whitespace)
        verdict, tagged = same(answer, str(item)), tagged_or_all(answer)
        return verdict if verdict.value or extract is not None or tagged == answer else same(tagged, str(item))

    options = {"ignore_case": ignore_case, "ignore_whitespace": ignore_whitespace}
    return _compared("exact", reference, extract, compare, options, reasoning, "exact")


@checked
def Numeric(
    *,
    reference: str = "answer",
    extract: Extract | None = "last_number",
    rtol: float = 0.0,
    atol: float = 1e-6,
    reasoning: Reasoning = "drop",
) -> TextSignal:
    """1.0 where the (extracted) number is within tolerance of the reference. See `numeric.numeric_match`."""
    numeric_match("0", "0", rtol=rtol, atol=atol)  # refuses bad tolerances here, not in the middle of a run

    def compare(answer: str, item: Any) -> Verdict:
        verdict = numeric_match(answer, item, rtol=rtol, atol=atol)
        if verdict.value == 0.0 and extract == "last_number" and answer.endswith("%") and "%" not in str(item):
            # "The answer is 50%." where the reference left the sign out; a share below 1 would not have done so.
            value = parse_number(answer)
            share = value is None or abs(value * 100) < 1
            return verdict if share else numeric_match(answer.rstrip("\\% "), item, rtol=rtol, atol=atol)
        return verdict

    return _compared("numeric", reference, extract, compare, {"rtol": rtol, "atol": atol}, reasoning, "number")


@checked
def MultipleChoice(*, reference: str = "answer", letters: str = "ABCDE", reasoning: Reasoning = "drop") -> TextSignal:
    """1.0 where the chosen letter is the reference's. Rules of extraction: `choice.choice_letter`."""

    def compare(answer: str, item: Any) -> Verdict:
        return choice.multiple_choice(answer, item if isinstance(item, int) else str(item), letters=letters)

    return _compared("multiple_choice", reference, None, compare, {"letters": letters}, reasoning, "choice")


@checked
def QA(
    *,
    reference: str = "answer",
    extract: Extract | None = None,
    metric: Literal["f1", "exact"] = "f1",
    rule: Literal["words", "squad"] = "words",
    reasoning: Reasoning = "drop",
) -> TextSignal:
    """F1 of words in [0, 1] or exact match, the best over a row's references.

    Args:
        reference: the data column, or a dotted path into one.
        extract: where the answer is; None = the last `<answer>` of the answer part, or all of it.
        metric: "f1" or "exact".
        rule: "words" (`words`: any script, signs that decide stay), or "squad": SQuAD v1.1's own (`text_match.squad_normalise`).
        reasoning: see `answer_part.answer_part`.
    """
    if metric not in ("f1", "exact"):
        raise ValueError(f"metric={metric!r}: use 'f1' or 'exact'")
    if rule not in ("words", "squad"):
        raise ValueError(f"rule={rule!r}: use 'words' or 'squad'")

    def compare(answer: str, item: Any) -> Verdict:
        if extract is None and rule == "words":
            answer = tagged_or_all(answer)
        return text_match.qa_match(answer, str(item), metric=metric, rule=rule)

    options = {"metric": metric, **({} if rule == "words" else {"rule": rule})}
    return _compared("qa", reference, extract, compare, options, reasoning, "text")


def _layout_signal(name: str, score: Callable[[str], float], failing: str, options: Mapping[str, Any]) -> TextSignal:
    def check(texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Verdict]:
        return [Verdict(value, None if value == 1.0 else failing) for value in map(score, texts)]

    return TextSignal(check, (), name, _settings(options))


def AnswerTag() -> TextSignal:
    """1.0 where exactly one non-blank <answer>...</answer> is there, else 0.0."""
    return _layout_signal(
        "answer_tag", layout.answer_tag_format, "not exactly one <answer>...</answer> with content", {}
    )


@checked
def ThinkFormat(
    *,
    mode: Literal["think", "R1", "R1_nothink"] = "R1",
    opened_by_prompt: bool = False,
    rule: Literal["filled", "rlpr"] = "filled",
) -> TextSignal:
    """1.0 where the tags are laid out as the mode asks, else 0.0. Reads the whole text, not the answer part.

    Args:
        mode: "R1" = <think>, </think>, <answer>, </answer>; "R1_nothink" = the answer tags; "think" = <think>reasoning</think>answer.
        opened_by_prompt: the chat template already wrote <think>.
        rule: "filled" = no part may be empty and white space may come first (`layout.filled_format`, `layout.think_format`);
            "rlpr" = as RLPR published it (`layout.format_reward`): empty tags are paid, a leading line break is not.
    """
    if rule not in ("filled", "rlpr"):
        raise ValueError(f"rule={rule!r}: use 'filled' or 'rlpr'")
    if mode == "think":
        if rule == "rlpr":
            raise ValueError(
                "rule='rlpr' is of the modes 'R1' and 'R1_nothink': RLPR has no layout without answer tags"
            )
        return _layout_signal(
            "think_format",
            lambda text: layout.think_format(text, opened_by_prompt=opened_by_prompt),
            "not <think>reasoning</think>answer",
            {"mode": mode, "opened_by_prompt": opened_by_prompt},
        )
    if opened_by_prompt and mode == "R1_nothink":
        raise ValueError(f"opened_by_prompt applies to modes with <think>, not to {mode!r}")
    score = layout.format_reward if rule == "rlpr" else layout.filled_format
    score("", mode)  # refuses an unknown mode here
    opening = "<think>" if opened_by_prompt else ""
    options = {
        "mode": mode,
        **({"opened_by_prompt": True} if opening else {}),
        **({"rule": rule} if rule != "filled" else {}),
    }
    return _layout_signal(
        "think_format", lambda text: score(opening + text, mode), f"not the tag layout {mode}", options
    )


@checked
def Length(
    *,
    target: int | None = None,
    cap: int | None = None,
    buffer: int = 0,
    unit: Literal["token", "char", "word"] = "token",
) -> TextSignal:
    """A penalty in [-1, 0] for length, towards a target or above a cap. See `layout.length_reward`."""
    if unit not in ("token", "char", "word"):
        raise ConfigError(f"unit={unit!r}: use 'token', 'char' or 'word'")
    require_range(0, above=True, target=target, cap=cap)
    require_range(0, buffer=buffer)
    if (target is None) == (cap is None) or (cap is not None and buffer >= cap):
        raise ConfigError(f"target={target}, cap={cap}, buffer={buffer}: give a target, or a cap above its buffer")
    layout.length_reward(0, target=target, cap=cap, buffer=buffer)  # refuses contradictory options here

    def check(texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Verdict]:
        lengths = (
            columns[TOKENS]
            if unit == "token"
            else [len(text) if unit == "char" else layout.word_count(text) for text in texts]
        )
        values = [layout.length_reward(length, target=target, cap=cap, buffer=buffer) for length in lengths]
        return [
            Verdict(value, f"{length} {unit}s" if value else None)
            for value, length in zip(values, lengths, strict=True)
        ]

    given = {"target": target} if target is not None else {"cap": cap, "buffer": buffer}
    return TextSignal(check, (), "length", _settings({**given, "unit": unit}), counts_tokens=unit == "token")


@checked
def Repetition(
    *,
    rule: Literal["window", "ngram", "rlpr"] = "window",
    window_size: int = 10,
    max_repetitions: int = 10,
    n: int = 4,
) -> TextSignal:
    """A penalty in [-1, 0] for repetition. In text without blanks characters take the place of words (`layout.pieces`).

    Args:
        rule: "window" = -1 if any window of `window_size` words occurs `max_repetitions` times (`layout.repeats_itself`); "ngram" =
            minus the fraction of n-grams that repeat an earlier one; "rlpr" = the window as RLPR published it
            (`layout.repetition_penalty`: words are split at white space and "_" alone).
        window_size, max_repetitions: of the window.
        n: words of an n-gram.
    """
    if rule not in ("window", "ngram", "rlpr"):
        raise ValueError(f"rule={rule!r}: use 'window', 'ngram' or 'rlpr'")

    def score(text: str) -> float:
        if rule == "ngram":
            return -layout.repeated_fraction(text, n)
        window = layout.repetition_penalty if rule == "rlpr" else layout.repeats_itself
        return float(window(text, window_size, max_repetitions))

    score("")  # refuses bad sizes here

    def check(texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Verdict]:
        return [Verdict(value, "repeats itself" if value else None) for value in map(score, texts)]

    options = {"window_size": window_size, "max_repetitions": max_repetitions} if rule != "ngram" else {"n": n}
    return TextSignal(check, (), "repetition", _settings({"rule": rule, **options}))
