r"""One rule for "the answer of a completion" where nobody said how answers are marked: extract="final".

    <think>12? no.</think> So it is 48. The answer is **48**.      ->  48
    Add them up.\n\nFinal answer: $\frac{1}{2}$                     ->  \frac{1}{2}
    2 + 3 = 5\n#### 5                                              ->  5
    The sum is \boxed{5}, as claimed.                              ->  5

Read in the answer part (`answer_part`), the first that is there: the last box, the last answer tags, the rest of the line after the last ####,
what the last "the answer is ..." states, the last line that is not blank. A box or a pair of tags with nothing in it is no answer.
"""

from __future__ import annotations

import re

from guerdon.segment.text import split_sentences
from guerdon.signals.verifiable.answer_part import answer_part
from guerdon.signals.verifiable.extraction import after_marker, last_boxed, last_tag

# "The answer is", "Final answer:", "answer = ", in a few languages; what follows on the line is the answer.
_STATED = re.compile(
    r"(?:\banswers?\b|\br[ée]ponse\b|\brespuesta\b|\bantwort\b|\bответ\b|答案)\**\s*(?:is|are|was|est|es|ist|lautet|为|是)?\s*[:：=]?\**\s*(?P<answer>[^\n]*)",
    re.IGNORECASE,
)
_SAYS = re.compile(r"(?:is|are|was|est|es|ist|lautet|为|是|[:：=])\W*$", re.IGNORECASE)


def final_answer(completion: str) -> str | None:
    """The answer of a completion by the rules above; None where there is none."""
    part = answer_part(completion).text
    if part is None:
        return None
    if "\\boxed" in part or "\\fbox" in part:
        return last_boxed(part) or None
    tagged = last_tag(part)
    if tagged is not None:
        return tagged or None
    marked = after_marker(part, "####")
    if marked:
        return _bare(marked) or None
    stated = _last_stated(part)
    if stated:
        return stated
    lines = [line for line in part.splitlines() if line.strip()]
    return (_bare(lines[-1]) or lines[-1].strip()) if lines else None


def _last_stated(part: str) -> str | None:
    """What the last sentence of the kind "the answer is ..." says; a mere mention of the word states nothing."""
    for match in reversed(list(_STATED.finditer(part))):
        lead = part[match.start() : match.start("answer")]
        if not _SAYS.search(lead) or not match["answer"].strip():
            continue
        text = match["answer"]
        sentences = split_sentences(text)
        bare = _bare(text[: sentences[0][1] + 1] if sentences else text)
        if bare:
            return bare
    return None


def _bare(text: str) -> str:
    """Without emphasis, dollars and the full stop around it."""
    text = text.strip()
    while True:
        stripped = text.strip("*_` \t").removesuffix(".").removesuffix("。").strip()
        if len(stripped) > 2 and stripped[0] == stripped[-1] == "$":
            stripped = stripped.strip("$").strip()
        if stripped == text:
            return text
        text = stripped
