r"""What is voted on: a completion's answer as a text, as written or tidied. "" = no answer; blank answers have no vote.

Votes compare strings: 1/2, 0.5 and \frac{1}{2} are three answers unless `normalise="math"`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from guerdon.errors import ConfigError
from guerdon.signals.verifiable.extraction import Extract, extractor
from guerdon.signals.verifiable.math_strings import tidy_math

_BOX = "\\boxed"


def boxed_as_written(text: str) -> str:
    r"""Content of the last `\boxed{...}`, spaces kept; "" where there is none or it never closes.

    As the official code of Co-rewarding has it (arXiv 2508.00410), oddities included: an `\fbox` is found there and then read as no answer,
    and a text with "\boxed " (a space instead of a brace) anywhere gives what follows the last one up to the next dollar sign. For another
    rule use extract="boxed", which reads `\fbox` as well.
    """
    spaced = f"{_BOX} "
    if spaced in text:
        return text[text.rfind(spaced) + len(spaced) :].partition("$")[0]
    start = text.rfind(_BOX)
    begin = start + len(_BOX)
    if start < 0 or not text.startswith("{", begin):
        return ""
    depth = 0
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin + 1 : place]
    return ""


def answer_rule(extract: Extract, normalise: Any = None) -> Callable[[str], str]:
    """A function completion -> answer, "" where there is none.

    Args:
        extract: "boxed_as_written", or whatever `extraction.extractor` takes ("boxed", "tag", "after:MARKER", a function, ...).
        normalise: None = compare as written; "math" = one way of writing for many (`tidy_math`, as it is where that cannot); a function.

    Raises:
        ConfigError: another word.
    """
    find: Callable[[str], str | None]
    try:
        find = boxed_as_written if extract == "boxed_as_written" else extractor(extract)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    tidy = normaliser(normalise)

    def answer(text: str) -> str:
        found = find(text)
        return tidy(found) if found and found.strip() else ""

    return answer


def normaliser(normalise: Any) -> Callable[[str], str]:
    """The rule named by a `normalise` option."""
    if normalise is None:
        return lambda text: text
    if normalise == "math":
        return _tidied
    if not callable(normalise):
        raise ConfigError(f"normalise={normalise!r}: use None, 'math' or a function of the answer")
    return normalise


def _tidied(text: str) -> str:
    try:
        return tidy_math(text)
    except ValueError:  # a form the rules do not foresee is compared as it is
        return text


def answer_codes(answers: Sequence[str | None], known: dict[str, int] | None = None) -> Tensor:
    """[B] int64: equal numbers for equal answers, -1 for blank ones.

    known: the numbers given so far, extended in place, so that several batches agree.
    """
    known = {} if known is None else known
    codes = [known.setdefault(answer, len(known)) if answer and answer.strip() else -1 for answer in answers]
    return torch.tensor(codes, dtype=torch.long)
