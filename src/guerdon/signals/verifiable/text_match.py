"""Comparing texts: exact match, multiple choice, question answering (SQuAD)."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from typing import Literal

from guerdon.signals.verifiable.extraction import last_boxed, last_tag
from guerdon.signals.verifiable.verdict import Verdict, instrument_failure, shown

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


def choice_letter(text: str, letters: str = "ABCDE") -> str | None:
    r"""The chosen letter of a multiple-choice answer, upper case; None where none is found.

    Rules, first that applies: (1) content of the last \boxed or <answer> tag, if it is a letter, "(B)", "B." or "B) text"; such a
    content that names no letter ends the search; (2) the last "answer is B", "answer: (B)", "option B", "choice B" (emphasis
    marks allowed; an "A" or "I" before a lower-case word is prose); (3) the whole text is a letter, "(B)", "B." or starts with "B) " or "B. "; (4) the last line is only a letter in
    one of these forms. Lower case counts in (1) and (3), where nothing but the letter is there; a lone "A" in prose never counts.
    """
    group = "".join(re.escape(letter) for letter in letters.upper())
    marked = last_boxed(text)
    marked = last_tag(text) if marked is None else marked
    alone = re.compile(rf"(?:\\text\s*\{{)?[(\[*_\s]*([{group}])[)\]*_.:\s}}]*", re.IGNORECASE)
    labelled = re.compile(rf"[(\[*_\s]*([{group}])[)\]*_]*[.):\]]\s+\S.*", re.DOTALL)
    if marked is not None:
        found = alone.fullmatch(marked) or labelled.fullmatch(marked)
        return found[1].upper() if found else None
    tail = text[-4096:]
    said = re.findall(
        rf"(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*(?i:option\s+)?[(\[*_\s]*([{group}])(?![A-Za-z'’])(?!(?<=[AI])\s+[a-z])",
        tail,
    )
    if said:
        return str(said[-1])
    stripped = text.strip()
    found = alone.fullmatch(stripped) or labelled.fullmatch(stripped)
    if not found and stripped:
        found = alone.fullmatch(stripped.splitlines()[-1].strip())
        found = found if found and found[1].isupper() else None
    return found[1].upper() if found else None


def multiple_choice(completion: str, reference: str | int, *, letters: str = "ABCDE") -> Verdict:
    """1.0 if `choice_letter` finds the reference's letter; no letter found is 0.0; a reference outside `letters` is NaN.

    Args:
        reference: a letter ("B", "(B)") or a 0-based index.
    """
    if isinstance(reference, int):
        expected = letters[reference].upper() if 0 <= reference < len(letters) else None
    else:
        bare = reference.strip().strip("().[]*: ").upper()
        expected = bare if len(bare) == 1 and bare in letters.upper() else None
    if expected is None:
        return instrument_failure(f"the reference {shown(reference)} is none of the letters {letters}")
    given = choice_letter(completion, letters)
    if given is None:
        return Verdict(0.0, "no choice letter found")
    return Verdict(1.0) if given == expected else Verdict(0.0, f"chose {given}, not {expected}")


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


def qa_match(answer: str, reference: str, *, metric: Literal["f1", "exact"] = "f1") -> Verdict:
    """`qa_f1` or `qa_exact_match`."""
    return qa_f1(answer, reference) if metric == "f1" else qa_exact_match(answer, reference)


__all__ = [
    "choice_letter",
    "exact_match",
    "multiple_choice",
    "qa_exact_match",
    "qa_f1",
    "qa_match",
    "squad_normalise",
]
