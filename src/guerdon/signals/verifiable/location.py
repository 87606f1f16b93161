r"""Where the answer stands in the answer part of a completion. Pure text work, linear in a text's length; no sympy.

First rule that applies:

1. the last box, `\boxed{...}` and its like, together with boxes before it that only separators part from it; the last
   `<answer>...</answer>`, if it comes later; either is final: an empty or unclosed one is no answer;
2. "answer" as a field of JSON;
3. GSM8K's `#### 42`;
4. the text as a whole, where it is one expression;
5. what follows the last "answer" (or its word in another language);
6. the last expression of the last sentence that holds one.

A number is never cut out of a longer expression: "x^2 + 53" is read whole. A number that is denied ("not 42") or asked for ("is it 42?")
is none.
"""

from __future__ import annotations

import functools
import re
from itertools import pairwise

from guerdon.signals.verifiable.boxes import (
    BOX,
    Located,
    boxes_in,
    from_boxes,
    last_answer_tag,
    undelimited,
)
from guerdon.signals.verifiable.extraction import before_run_on
from guerdon.signals.verifiable.notation import ALL_REALS
from guerdon.signals.verifiable.prose import MULTIPLIER, Segment, segments, without_markup

MAX_WHOLE_CHARS = 400  # a longer text is not read as one expression
_FINAL = re.compile(r"final answer is:?\s*(.{1,300}?)\.?\s*I hope", re.I | re.S)

_RAISED = {"\u00b2": "2", "\u00b3": "3"}
_UNIT_AFTER = re.compile(
    r"\s*((?:square |sq\.? |cubic )?(?:km|cm|mm|dm|kg|mg|g|m|s|h|ml|l|L|meters?|metres?|centimeters?|kilometers?|millimeters?|inch(?:es)?|feet|foot|ft|"
    r"yards?|miles?|hours?|minutes?|seconds?|days?|weeks?|months?|years?|grams?|kilograms?|pounds?|ounces?|lit(?:er|re)s?|degrees?|dollars?|cents?|euros?|mph|"
    r"units?)(?:\s*\^?\s*[23\u00b2\u00b3](?!\d))?(?:\s*(?:/|per )\s*(?:s|h|hour|second|minute|day)\b)?)(?![\w^*/+=(])(?!\s*[-+*/=^]\s*[\w(])"
)
_NOT = re.compile(
    r"(?:\b(?:not|never|isn't|isnt|nor|neither|cannot be|can't be|aren't|rule out|ruled out|instead of|rather than)|\u4e0d\u662f|\\neq?|\u2260|!=)"
    r"\s*(?:equal(?:s)?(?: to)?|exactly|simply|just|be|a|the)?\s*[\"'(*]*\s*$",
    re.I,
)
_ANSWER = re.compile(
    r"(?<![A-Za-z])(?:answers?|ans)(?![A-Za-z])|\u7b54\u6848|\u7b54\u3048|\uc815\ub2f5|(?<!\w)(?:r[\u00e9e]ponse|antwort|l[\u00f6o]sung|respuesta|resposta|risposta|"
    r"\u043e\u0442\u0432\u0435\u0442|odpowied\u017a|cevap|jawaban|svar|vastaus|v\u00e1lasz|odpov\u011b\u010f|r\u0103spunsul)(?!\w)|"
    r"\u0627\u0644\u0625\u062c\u0627\u0628\u0629|\u0627\u0644\u062c\u0648\u0627\u0628|\u0909\u0924\u094d\u0924\u0930|\u0111\u00e1p (?:\u00e1n|s\u1ed1)",
    re.I,
)  # fmt: skip
_JSON = re.compile(
    r"[\"'](?:final[_ ]?)?(?:answer|result|solution)[\"']\s*:\s*(?:\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'|(-?[\d.,eE+/-]*\d|\[[^\[\]]*\]))",
    re.I,
)
_HASHES = re.compile(r"^[ \t>*]*####[ \t]*(?!#)(\S.*)$", re.M)
_DIRECT = re.compile(
    r"[\s:=*_\"'()\[\]`\u201c\u201d\uff1a\u2192>-]*(?:(?:to (?:the|this) (?:problem|question)|here|must|should|would|will|can|could|therefore|thus|then|hence|"
    r"simply|just|exactly|about|approximately|roughly|clearly|"
    r"indeed|be|is|are|was|were|equals?|equal to|comes? (?:out )?to|becomes|given by|a total of|the|value|number|of|"
    r"est|es|ist|\u00e8|lautet|\u662f|\u4e3a|\u70ba|\u5c31\u662f|\u306f|\ub294|\uc740|adalah|\u00e9|jest|l\u00e0|\u0647\u064a|\u0647\u0648|\u0939\u0948)[\s:=*_\"'(\[`\uff1a\u201c]*)*",
    re.I,
)  # fmt: skip
_LAST_IS = re.compile(
    r"(?:\b(?:is|are|be|was|equals?|equal to|gives?|get|yields?|obtain|becomes?|to)\b|[=:\uff1a])[\s*\"'(]*$", re.I
)
_SENTENCE = re.compile(
    r"(?<=[.!?\u3002\uff01\uff1f])\s+(?=[^\d\s]|\d+\.\s)|\n\s*\n|\n(?=\s*[-*#>|]|\s*\d+[.)]\s)|(?<=[\u3002\uff01\uff1f])"
)
_LABEL = re.compile(
    r"^\s*(?:step\s*)?\(?\d{1,2}[.):]\s+(?=\S)|^\s*(?:step|case|part|question|problem|figure|equation)\s+\(?\d+\)?\s*[:.)]?",
    re.I,
)
_ASIDE = re.compile(
    r"\s*[(\uff08](?=[^()\uff08\uff09]*(?<![\\A-Za-z])[A-Za-z]{3,})(?![^()]*\\frac)[^()\uff08\uff09]{0,120}[)\uff09]"
)
_LIST_JOIN = re.compile(
    r"\s*(?:,|;|,?\s*(?:and|or|und|oder|et|ou|y|\u548c|\u6216|\u3001)(?:\s+(?:maybe|perhaps|possibly|also|even|else|alternatively|rather|equivalently))?,?|&)\s*",
    re.I,
)
_ALTERNATIVE = re.compile(
    r"[\s,.;]*(?:,?\s*(?:or|alternatively|perhaps|maybe|possibly|otherwise))\b[^.\n]{0,40}?$", re.I
)


def locate(text: str) -> Located:
    """The answer in an answer part. Rules: the module's header."""
    boxes = boxes_in(text) if "\\" in text and BOX.search(text) else []
    tag = last_answer_tag(text) if "<" in text else None
    if boxes and (tag is None or boxes[-1].start > tag[0]):
        hope = _FINAL.search(text, boxes[-1].end) if "hope" in text[boxes[-1].end :] else None
        return locate_expression(hope[1]) if hope else from_boxes(text, boxes)
    if tag is not None:
        inner = tag[1].strip()
        return locate_expression(inner) if inner else Located(None, "the answer tag is empty")
    return _in_prose(_before_next_question(text))


def _before_next_question(text: str) -> str:
    """Without the next questions that a policy asked itself once it had answered."""
    answered = _ANSWER.search(text) or _HASHES.search(text)
    return before_run_on(text, answered.end()) if answered else text


def locate_expression(text: str) -> Located:
    """The answer in a text that was cut out already: the whole of it where it is mathematics, else as in prose."""
    if "\\" in text and BOX.search(text):
        return from_boxes(text, boxes_in(text))
    bare = re.sub(r"\\(?:text\w*|mbox|mathrm|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+", "", text)
    if "\\" in text and not re.search(r"[A-Za-z]{3,}", bare) and "\n" not in text.strip():
        return Located(undelimited(text))
    return _in_prose(text)


def _in_prose(text: str) -> Located:
    if "{" in text and (fields := list(_JSON.finditer(text))):
        value = next(g for g in fields[-1].groups() if g is not None)
        return (
            _in_prose(value.replace('\\"', '"').replace("\\\\", "\\"))
            if value.strip()
            else Located(None, "the answer is empty")
        )
    if (
        "####" in text
        and (marks := list(_HASHES.finditer(text)))
        and re.search(r"\d|\\|\$", marks[-1][1])
        and not _ANSWER.search(marks[-1][1])
    ):
        text = marks[-1][1]
    if re.fullmatch(r"\s*-\s+[\d.,/]+\s*", text) and "\n" not in text.strip():
        return Located(text.strip())  # a sign, no bullet: nothing else is there
    clean = without_markup(text).strip()
    if not clean:
        return Located(None, "no answer found")
    if (whole := as_whole(clean)) is not None:
        return Located(whole)
    cues = [cue for cue in _ANSWER.finditer(clean) if clean[cue.start() - 1 : cue.start()] != "{"]
    for cue in reversed(cues[-4:]):
        found = _after(clean, cue)
        if found is not None:
            return found
    return _last_expression(clean)


def as_whole(text: str) -> str | None:
    """A text that is nothing but one expression (with its unit or a label before it), else None."""
    text = text.strip()
    if len(text) > MAX_WHOLE_CHARS or ("\n" in text and not re.fullmatch(r"(\$\$?|\\\[|\\\().*", text, re.S)):
        return None
    bare = text.strip("\"'\u201c\u201d`").rstrip(".\u3002 ") if not text.endswith("...") else text
    bare = re.sub(
        r"^(?:so|thus|hence|therefore|then|ans|final answer|answer|result)\b[\s,:=]*", "", bare, flags=re.I
    ).strip()
    if not bare or re.search(r"[?\u3002\uff1f]|[.!]\s+[A-Z]", bare):
        return None
    found = segments(bare)
    if not found:
        return None
    covered = "".join(
        bare[a.end : b.start]
        for a, b in zip([Segment(0, 0, ""), *found], [*found, Segment(len(bare), len(bare), "")], strict=True)
    )
    rest = re.sub(r"\b(?:and|or)\b|[\s,;$&.]", "", covered, flags=re.I)
    if not rest:
        if len(found) == 1:
            return found[0].text
        joined = [found[0].text]
        for before, after in pairwise(found):
            gap = bare[before.end : after.start]
            joined.append((", " if _LIST_JOIN.fullmatch(gap) else " ") + after.text)
        return "".join(joined) if all(part.startswith(", ") for part in joined[1:]) or "$" not in bare else None
    return None


def _after(text: str, cue: re.Match[str]) -> Located | None:
    """What follows an "answer": in its line, or in the next ones where that holds nothing."""
    rest = text[cue.end() : cue.end() + 1200]
    paragraph_end = 0
    for sentence in _sentences(rest):
        if re.search(r"[?\uff1f]\s*$", sentence):
            if paragraph_end:
                continue
            return None
        found = [s for s in segments(_ASIDE.sub(lambda m: " " * len(m[0]), sentence)) if _stands(s, sentence)]
        if found:
            direct = _DIRECT.match(sentence)
            first = found[0]
            if (direct and direct.end() >= first.start - 1) or paragraph_end or len(found) == 1:
                return _with_list(found, 0, sentence)
            chosen = next(
                (i for i in reversed(range(len(found))) if _LAST_IS.search(sentence[: found[i].start])), len(found) - 1
            )
            first_of_list = chosen
            while first_of_list and _LIST_JOIN.fullmatch(
                sentence[found[first_of_list - 1].end : found[first_of_list].start]
            ):
                first_of_list -= 1
            return _with_list(found, first_of_list, sentence)
        if sentence.strip(" .:*\n\"'") and re.search(r"\w", _DIRECT.sub("", sentence, count=1)):
            break  # words, and no expression: "is unknown"
        paragraph_end += 1
    start = (
        max(text.rfind("\n", 0, cue.start()), text.rfind(". ", 0, cue.start()), text.rfind("? ", 0, cue.start())) + 1
    )
    before = text[start : cue.start()]
    if re.search(r"\b(?:is|are|as|:)\b[^.]*$", before) and (
        found := [s for s in segments(before) if _stands(s, before)]
    ):
        return _with_list(found, len(found) - 1, before)
    return None


def _sentences(text: str) -> list[str]:
    return [part for part in _SENTENCE.split(text) if part and part.strip()]


def _stands(segment: Segment, text: str) -> bool:
    """Whether an expression is put forward: not denied, not the number of a step, not a lone letter in prose."""
    before = text[: segment.start]
    if _NOT.search(before[-40:]):
        return False
    if re.search(
        r"(?:^|\W)(?:step|case|part|question|problem|equation|eq\.?|section|figure|fig\.?|table|chapter|example|method|option|round|version)\s*#?\s*$",
        before[-14:],
        re.I,
    ):
        return False
    if re.fullmatch(r"[A-Za-z]", segment.text) and segment.end - segment.start == 1:
        return bool(re.search(r"(?:[:=]|\b(?:is|answer))\s*$", before)) and segment.text not in "aI"
    return True


def _with_list(found: list[Segment], first: int, sentence: str) -> Located:
    """An expression with those it is listed with, its percent sign, multiplier or unit, and alternatives that hedge it."""
    parts = [found[first]]
    for segment in found[first + 1 :]:
        gap = sentence[parts[-1].end : segment.start]
        if _LIST_JOIN.fullmatch(gap) or _ALTERNATIVE.fullmatch(gap):
            parts.append(segment)
        else:
            break
    answer = _with_unit(parts[0], sentence)
    for before, part in pairwise(parts):
        # "3/8, or 0.375" may say one thing twice: equality looks at the word
        alternative = re.search(r"(?<![A-Za-z])or(?![A-Za-z])", sentence[before.end : part.start], re.I)
        answer += f"{' or ' if alternative else ', '}{_with_unit(part, sentence)}"
    return Located(answer)


def _with_unit(segment: Segment, sentence: str) -> str:
    text, rest = _value(segment.text), sentence[segment.end : segment.end + 60]
    if re.search(r"[\u2013\u2014]", text) and re.fullmatch(r"[\d.]+\s*[\u2013\u2014]\s*[\d.]+", text):
        return text
    if percent := re.match(r"\s*(\\?%|percent(?:age)?\b|pct\b|per cent\b|\uff05)", rest, re.I):
        return text if "%" in text else f"{text}\\%" if percent else text
    if multiplier := re.match(rf"\s*({MULTIPLIER})s?\b", rest, re.I):
        return f"{text} {multiplier[1]}"
    if clock := re.match(r"\s*([ap])\.?m\b\.?", rest, re.I):
        return f"{text} {clock[1]}m"
    if re.fullmatch(r"[-+]?[\d.,\s/]+|.*\\frac.*|.*\d", text) and (unit := _UNIT_AFTER.match(rest)):
        name, power = re.fullmatch(r"(.*?)\s*\^?\s*([23\u00b2\u00b3]?)", unit[1].strip()).groups()  # type: ignore[union-attr]
        return f"{text} \\text{{{name}}}" + (f"^{_RAISED.get(power, power)}" if power else "")
    return text


def _value(text: str) -> str:
    return undelimited(text)


def _last_expression(text: str) -> Located:
    """The last expression of the last sentence that puts one forward."""
    sentences = _sentences(text)
    for sentence in reversed(sentences[-40:]):
        if re.search(r"[?\uff1f]\s*[\"')\]]*\s*$", sentence):
            continue
        label = _LABEL.match(sentence)
        body = (
            sentence[label.end() :]
            if label and (len(sentences) > 1 or re.search(r"\d|\\|\$", sentence[label.end() :]))
            else sentence
        )
        plain = _ASIDE.sub(lambda found: " " * len(found[0]), body)
        found = [s for s in segments(plain) if _stands(s, plain)] or [s for s in segments(body) if _stands(s, body)]
        if found:
            last = len(found) - 1
            while last and re.fullmatch(
                r"\s*(?:,?\s*(?:and|or)\s+|,\s*)(?:(?:maybe|perhaps|possibly)\s+)?",
                body[found[last - 1].end : found[last].start],
            ):
                last -= 1
            return _with_list(found, last, body)
        if _NOT.search(body) or (segments(body) and not found):
            return Located(None, "the only values are denied or are numbers of steps")
    return Located(None, "no answer found")


@functools.lru_cache(maxsize=2048)
def reference_expression(text: str) -> str:
    """The expression of a reference: its box, the whole of it, or the answer in a worked solution."""
    text = text.strip()
    if ALL_REALS.fullmatch(text):
        return "\\mathbb{R}"
    if "\\" in text and BOX.search(text):
        boxes = boxes_in(text)
        if boxes[-1].content is None:  # cut off, but there is nothing else to go by
            return undelimited(BOX.sub("", text[boxes[-1].start :], count=1).removeprefix("{"))
        return from_boxes(text, boxes).text or text
    if len(text) <= MAX_WHOLE_CHARS and "\n" not in text and not re.search(r"[.!?]\s+[A-Z]", text):
        return undelimited(text)
    return locate(text).text or text


def locate_words(text: str) -> str | None:
    """The answer in a completion where the reference is words: what a box, a tag or "answer is" holds, or a short text as a whole."""
    boxes = boxes_in(text) if BOX.search(text) else []
    tag = last_answer_tag(text)
    if boxes and (tag is None or boxes[-1].start > tag[0]):
        return from_boxes(text, boxes).text
    if tag is not None:
        text = tag[1]
    if fields := list(_JSON.finditer(text)):
        return next(g for g in fields[-1].groups() if g is not None)
    if (marks := list(_HASHES.finditer(text))) and not _ANSWER.search(marks[-1][1]):
        text = marks[-1][1]
    clean = without_markup(text).strip()
    if cues := list(_ANSWER.finditer(clean)):
        rest = clean[cues[-1].end() :]
        rest = re.sub(
            r"^[\s:=*\"'\uff1a-]*(?:(?:is|are|was|be|would be|must be|should be|est|es|ist|\u662f|\u4e3a|\u306f)\b)?[\s:*=\"'\uff1a]*(?:that\s+)?",
            "",
            rest,
            flags=re.I,
        )
        first = re.split(r"(?<=[\w)}$])[.!?\u3002](?:\s|$)|\n", rest.strip(), maxsplit=1)[0]
        if first.strip():
            return undelimited(first.strip())
    lines = [line for line in clean.splitlines() if line.strip()]
    last = lines[-1].strip() if lines else ""
    return undelimited(last.rstrip(".")) if last and len(last) <= 200 else None


__all__ = ["Located", "as_whole", "locate", "locate_expression", "locate_words", "reference_expression"]
