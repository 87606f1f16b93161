"""Reasoning patterns: how many phrases of reasoning a text holds, whatever it concludes (RPR, arXiv 2505.22653).

Rewarding phrases surfaces habits a model already has; it is no judge of reasoning and can be stuffed. Substrings count by default,
as in the official code: "enthusiasm awaits the henceforth" has three phrases. `word_boundary=True` wants whole words.

Left out: phrase lists for other languages than English; such texts score 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from guerdon.errors import ConfigError
from guerdon.options import checked
from guerdon.signals.text import TextSignal
from guerdon.signals.verdict import Verdict
from guerdon.signals.verifiable.extraction import AnswerWatch, Extract, extractor

PhraseSet = Literal["math", "rm"]
ReadText = Literal["all", "think"]
SELF_DIALOGUE = "user: "

# Facts of the official code: its 40 phrases, misspelling and trailing spaces included, in its order.
MATH_PHRASES: tuple[str, ...] = (
    "i need to", "we need to", "wait", "alternatively", "let me check", "let me see", "let's focus on", "we know that",
    "we can observe ", "we can see ", "let me try", "let's try", "let us try", "first, ", "firstly, ", "next, ", "finally, ",
    "let us first", "let's first", "let me first", "try again", "still not", "not working", "not correct", "does not work",
    "doesn't work", "makes sence", "since we ", "because we ", "consequently", "as a result", "thus", "therefore", "hence",
    "so that", "thereby", "if we", "given there ", "for instance ", "for example ",
)  # fmt: skip
RM_PHRASES: tuple[str, ...] = (
    *MATH_PHRASES, "1. ", "2. ", "3. ", "4. ", "step 1 ", "step 2 ", "step 3. ", "step 4 ", "considering the", "i'll", "i will",
    "i would", "i should",
)  # fmt: skip
_SETS: dict[str, tuple[str, ...]] = {"math": MATH_PHRASES, "rm": RM_PHRASES}


class ThinkAnswer(NamedTuple):
    """think, answer: the texts between the tags as they are, or both None."""

    think: str | None
    answer: str | None


def think_and_answer(response: str) -> ThinkAnswer:
    """The texts of the LAST <think>, </think>, <answer> and </answer>; both None unless all four are there, in that order and
    with at least one character between the tags of each pair (arXiv 2505.22653, official code).
    """
    places = [response.rfind(tag) for tag in ("<think>", "</think>", "<answer>", "</answer>")]
    if min(places) < 0:
        return ThinkAnswer(None, None)
    think, think_end, answer, answer_end = places
    think, answer = think + len("<think>"), answer + len("<answer>")
    if think_end <= think or answer_end <= answer or think_end >= places[2]:
        return ThinkAnswer(None, None)
    return ThinkAnswer(response[think:think_end], response[answer:answer_end])


def count_phrases(text: str, phrases: Sequence[str], *, word_boundary: bool = False) -> int:
    """How many DIFFERENT phrases occur in the lower-cased text, each once; as substrings, or as whole words."""
    lowered = text.lower()
    if not word_boundary:
        return sum(phrase in lowered for phrase in phrases)
    return sum(
        re.search(rf"(?<!\w){re.escape(phrase)}" + (r"(?!\w)" if phrase[-1].isalnum() else ""), lowered) is not None
        for phrase in phrases
    )


def ngram_repetition_ratio(text: str, n: int = 20) -> float:
    """Distinct n-grams of words that occur at least twice / all n-grams, in [0, 1/2]; 0 for a text of fewer than n words.

    `layout.repeated_fraction` counts repeats instead: a text of one n-gram over and over is near 1 there and near 0 here.
    """
    if n < 1:
        raise ConfigError(f"n={n} must be at least 1")
    words = text.split()
    total = len(words) - n + 1
    if total < 1:
        return 0.0
    counts = Counter(tuple(words[i : i + n]) for i in range(total))
    return sum(times > 1 for times in counts.values()) / total


def phrases_of(phrase_set: PhraseSet | Sequence[str]) -> tuple[str, ...]:
    """The phrases of a set, or the given ones, which must be lower case and not empty."""
    if isinstance(phrase_set, str):
        if phrase_set not in _SETS:
            raise ConfigError(f"phrase_set={phrase_set!r}: use one of {sorted(_SETS)}, or a list of phrases")
        return _SETS[phrase_set]
    given = tuple(phrase_set)
    wrong = [phrase for phrase in given if not phrase or phrase != phrase.lower()]
    if not given or wrong:
        raise ConfigError(f"phrases must be lower-case texts: {wrong or 'none given'}")
    return given


def reasoning_pattern_reward(
    text: str,
    phrase_set: PhraseSet | Sequence[str] = "math",
    *,
    divisor: float = 20.0,
    n: int = 20,
    self_dialogue: bool | None = None,
    word_boundary: bool = False,
) -> float:
    """max(0, min(1, c / divisor) - repetition - u), in [0, 1].

    c: `count_phrases`; repetition: `ngram_repetition_ratio` of the lower-cased text; u: number of "user: " in it.

    Args:
        text: the reasoning; empty gives 0.
        phrase_set: "math" (40 phrases), "rm" (53), or phrases in lower case.
        divisor: 20 in the code; the paper's formula has the number of phrases, 40.
        n: of the n-grams.
        self_dialogue: subtract u, against a model that writes its own next questions; None = for "math" only, as in the code.
        word_boundary: count whole words only.

    Source: arXiv 2505.22653 and its official code.
    """
    if divisor <= 0:
        raise ConfigError(f"divisor={divisor} must be positive")
    phrases = phrases_of(phrase_set)
    lowered = text.lower()
    score = min(1.0, count_phrases(lowered, phrases, word_boundary=word_boundary) / divisor)
    score -= ngram_repetition_ratio(lowered, n)
    if phrase_set == "math" if self_dialogue is None else self_dialogue:
        score -= lowered.count(SELF_DIALOGUE)
    return max(0.0, score)


@checked
def ReasoningPatterns(
    *,
    phrase_set: PhraseSet | Sequence[str] = "math",
    read: ReadText = "all",
    answer: Extract | None = None,
    divisor: float = 20.0,
    n: int = 20,
    word_boundary: bool = False,
) -> TextSignal:
    """Signal: `reasoning_pattern_reward` of each completion; what cannot be read is the policy's doing and scores 0.

    Args:
        read: "all" of the completion, or what stands between the last <think> tags ("think"; 0 unless think and answer tags are
            both well-formed, `think_and_answer`).
        answer: a completion in which this rule finds no answer scores 0 ("boxed", "tag", ...; `extraction.extractor`).
        phrase_set, divisor, n, word_boundary: see `reasoning_pattern_reward`.
    """
    if read not in ("all", "think"):
        raise ConfigError(f"read={read!r}: use 'all' or 'think'")
    rule = extractor(answer) if answer is not None else None

    def score(text: str) -> Verdict:
        part = think_and_answer(text).think if read == "think" else text
        if part is None:
            return Verdict(0.0, "think and answer tags are not well-formed")
        if rule is not None and not rule(text):
            return Verdict(
                0.0, f"no answer found (extract={answer!r})" if isinstance(answer, str) else "no answer found"
            )
        return Verdict(reasoning_pattern_reward(part, phrase_set, divisor=divisor, n=n, word_boundary=word_boundary))

    score("")  # refuses bad options here
    reasoning_pattern_reward("", phrase_set, divisor=divisor, n=n)

    watch = AnswerWatch(answer, "no pattern is rewarded and no verdict turned round", option="answer")

    def check(texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Verdict]:
        if rule is not None:
            watch([rule(text) for text in texts], "reasoning patterns")
        return [score(text) for text in texts]

    named = getattr(answer, "__name__", "function") if callable(answer) else answer
    shown = phrase_set if isinstance(phrase_set, str) else f"{len(phrase_set)} phrases"
    settings = (
        f"phrase_set={shown!r}, read={read!r}, answer={named!r}, divisor={divisor!r}, word_boundary={word_boundary!r}"
    )
    return TextSignal(check, (), "reasoning_patterns", settings)
