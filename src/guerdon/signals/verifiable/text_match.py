"""Comparing texts: exact match, question answering (SQuAD)."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from typing import Literal

from guerdon.signals.verifiable.verdict import Verdict, shown
from guerdon.signals.verifiable.words import same_words, words_f1

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(answer: str, reference: str, *, ignore_case: bool = False, ignore_whitespace: bool = True) -> Verdict:
    """1.0 if the two texts are equal after Unicode NFC normalisation, else 0.0.

    Args:
        ignore_case: compare case-folded.
        ignore_whitespace: strip both ends and treat any run of white space as one space.
    """

    def normal(text: str) -> str:
        text = unicodedata.normalize("NFC", text)
        text = " ".join(text.split()) if ignore_whitespace else text
        return text.casefold() if ignore_case else text

    same = normal(answer) == normal(reference)
    return Verdict(1.0) if same else Verdict(0.0, f"{shown(answer)} is not {shown(reference)}")


def squad_normalise(text: str) -> str:
    """SQuAD v1.1: lower case, ASCII punctuation out, the articles a/an/the out, white space to single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def qa_exact_match(answer: str, reference: str) -> Verdict:
    """1.0 if the two are equal after SQuAD normalisation (Rajpurkar et al. 2016, official evaluation script)."""
    same = squad_normalise(answer) == squad_normalise(reference)
    return Verdict(1.0) if same else Verdict(0.0, f"{shown(answer)} is not {shown(reference)}")


def qa_f1(answer: str, reference: str) -> Verdict:
    """Token-level F1 in [0, 1] after SQuAD normalisation: tokens are counted with multiplicity.

    Where either side has no token left (SQuAD v2 script) the score is 1.0 if both have none, else 0.0.
    """
    given, expected = squad_normalise(answer).split(), squad_normalise(reference).split()
    if not given or not expected:
        return Verdict(1.0) if given == expected else Verdict(0.0, "no words left to compare")
    common = sum((Counter(given) & Counter(expected)).values())
    if not common:
        return Verdict(0.0, f"no word in common with {shown(reference)}")
    return Verdict(2 * common / (len(given) + len(expected)))


def qa_match(
    answer: str, reference: str, *, metric: Literal["f1", "exact"] = "f1", rule: Literal["words", "squad"] = "words"
) -> Verdict:
    """How well a short answer agrees with a reference.

    Args:
        metric: "f1" in [0, 1], or "exact", 0 or 1.
        rule: "words" = `words.words_f1` and `words.same_words`; "squad" = `qa_f1` and `qa_exact_match`, SQuAD v1.1's own.
    """
    if rule == "squad":
        return qa_f1(answer, reference) if metric == "f1" else qa_exact_match(answer, reference)
    value = words_f1(answer, reference) if metric == "f1" else float(same_words(answer, reference))
    if value:
        return Verdict(value)
    return Verdict(0.0, f"{shown(answer)} {'has no word of' if metric == 'f1' else 'is not'} {shown(reference)}")


__all__ = [
    "exact_match",
    "qa_exact_match",
    "qa_f1",
    "qa_match",
    "squad_normalise",
]
