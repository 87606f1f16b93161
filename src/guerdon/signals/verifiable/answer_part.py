r"""The answer part of a completion: what every verifier reads, and nothing else does.

    <think>First \boxed{12}, no.</think> The answer is 48.      ->  The answer is 48.
    First \boxed{12}, no.</think> The answer is 48.             ->  the same: the prompt opened the reasoning
    <think>First \boxed{12}, no. Then                           ->  no answer: the reasoning never ended

Three steps, all of them linear in the text's length:

1. Turns. Where the text holds a chat template's own marks, only the last turn of the assistant counts.
2. What tools wrote between their tags is left out.
3. Reasoning. The answer is what follows the LAST end of reasoning. Kinds of reasoning marks are the table `REASONING`, gpt-oss's
   channels beside it. A mark between quotes or backticks is a mention and marks nothing.

A text without any of these marks is its own answer part, so the steps may be taken twice. Formats (`ThinkFormat`, `AnswerTag`) and
lengths are properties of the whole text and do not come here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from guerdon.signals.conversation import last_words

Reasoning = Literal["drop", "keep", "opened"]
REASONING_OPTIONS = ("drop", "keep", "opened")

# kind of mark -> (regular expression of the opening mark, of the closing one). Any case.
_NAMES = r"(?:seed:|longcat_|jet_|mm:)?think(?:ing)?|thoughts?|reasoning|scratchpad|analysis"
REASONING: Mapping[str, tuple[str, str]] = {
    "tag": (rf"<\s*(?P<name>{_NAMES})(?:\s[^<>]*)?>", rf"<\s*/\s*(?P<end>{_NAMES})\s*>"),
    "of_thought": (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # Sky-T1, OpenThinker
    "bracket": (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    "triangle": ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi
    "start_end": (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
    "bar": (r"<\|think(?:ing)?(?:_start)?\|>", r"<\|(?:/think(?:ing)?|think(?:ing)?_end|end_think(?:ing)?)\|>"),
    "inner": (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    "channel": (r"<\|channel>thought", r"<channel\|>"),  # Gemma 4
    "unused": (r"<unused94>", r"<unused95>"),  # MedGemma
    "process": (r"Here(?: is|'s) my thought process:", r"Here(?: is|'s) my response:"),  # Granite 3
}
_MARK = re.compile("|".join(f"(?P<{kind}_o>{o})|(?P<{kind}_c>{c})" for kind, (o, c) in REASONING.items()), re.I)
_FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
# gpt-oss decoded without its special tokens: "analysisWe add ...assistantfinalThe answer is 48."
_BARE_ANALYSIS = re.compile(r"\s*analysis(?=[A-Z0-9\"'(\\$])")
_BARE_FINAL = "assistantfinal"

# Marks of chat templates that stand before a turn; the group is who speaks.
_TURN = re.compile(
    r"<\|im_start\|>[ \t]*(\w+)[^\S\n]*\n?"
    r"|<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>"
    r"|<(?:start_of_turn|\|turn)>[ \t]*(\w+)[ \t]*\n?"
    r"|<[|\uff5c](user|assistant|system|developer|tool|observation|ipython|environment|function)[|\uff5c]>"
    r"|<\|start\|>(\w+)(?:[^\w<][^<]*)?(?=<\|(?:channel|message)\|>)"
    r"|(?P<inst>\[INST\])|(?P<reply>\[/INST\])",
    re.I,
)
_TURN_END = re.compile(
    r"<\|(?:im_end|eot_id|eom_id|endoftext|end_of_text|return|eot)\|>|<end_of_turn>|<turn\|>"
    "|<\uff5cend\u2581of\u2581sentence\uff5c>"
)
_STREAM_END = re.compile(r"\s*</s>\s*\Z")  # at the end only: elsewhere it closes a struck-out text
_SOLUTION = re.compile(r"<\|(?:begin|end)_of_solution\|>|<\|(?:START|END)_RESPONSE\|>|</?(?:response|solution)>", re.I)
# What tools wrote, in the words of the common templates and of search agents.
_TOOL_NAMES = (
    r"tool_(?:response|result|output)s?|function_(?:response|result|output)s?|information|observation|interpreter"
)
_TOOL = re.compile(
    rf"<(?P<tool>{_TOOL_NAMES})>|(?P<mistral>\[TOOL_RESULTS\])|(?P<fence>^```output\b)"
    "|(?P<deepseek><\uff5ctool\u2581outputs?\u2581begin\uff5c>)",
    re.I | re.M,
)


class AnswerPart(NamedTuple):
    """The answer part of a completion.

    Attributes:
        text: without white space around it; None where the policy wrote no answer.
        reason: why there is none.
    """

    text: str | None
    reason: str | None = None


def answer_part(completion: str, *, reasoning: Reasoning = "drop") -> AnswerPart:
    """What of a completion is its answer. Rules: the module's header.

    Args:
        completion: the text of a completion.
        reasoning: "drop" = only what follows the last end of reasoning; "opened" = the same, and the prompt has opened it, so that
            a text without an end of reasoning holds no answer; "keep" = the whole text, reasoning and tools included.

    Raises:
        ValueError: another word for `reasoning`.
    """
    if reasoning not in REASONING_OPTIONS:
        raise ValueError(f"reasoning={reasoning!r}: use one of {', '.join(map(repr, REASONING_OPTIONS))}")
    if reasoning == "keep":
        return AnswerPart(completion)
    text = completion
    if any(mark in text for mark in "<[\u25c1`") or "analysis" in text or "Here" in text:
        if _FINAL_CHANNEL.search(text) or "<|channel|>" in text:
            return _final_channel(text)
        text = without_tools(last_words(_turns_in(text)))
        after = _after_reasoning(text)
        if isinstance(after, AnswerPart):
            return after
        text, ended = after
        text = _SOLUTION.sub("", text)
    else:
        ended = False
    if reasoning == "opened" and not ended:
        return AnswerPart(None, "the reasoning the prompt opened never ends, so there is no answer")
    if text.strip():
        return AnswerPart(completion if text == completion else text.strip())
    return AnswerPart(None, "nothing after the reasoning" if ended else "the completion is empty")


def _after_reasoning(text: str) -> tuple[str, bool] | AnswerPart:
    """(text after the last end of reasoning, whether there was one), or no answer where reasoning never ends."""
    bare = _BARE_ANALYSIS.match(text)
    if bare:
        end = text.rfind(_BARE_FINAL)
        if end < 0:
            return AnswerPart(None, "the analysis channel is never followed by a final one, so there is no answer")
        return text[end + len(_BARE_FINAL) :], True
    running: list[str] = []
    start, ended = 0, False
    for mark in _MARK.finditer(text):
        if _is_mention(text, mark):
            continue
        group = str(mark.lastgroup if mark.lastgroup not in ("name", "end") else f"tag_{'oc'[mark.lastgroup == 'end']}")
        kind, side = group.rsplit("_", 1)
        kind = (mark["name"] or mark["end"] or kind).lower()
        if side == "o":
            if kind not in running:
                running.append(kind)
            continue
        # A closing mark ends its kind and what was opened inside it; one that nothing opened ends the prompt's, or whatever runs.
        del running[running.index(kind) if kind in running else 0 :]
        start, ended = mark.end(), True
    if running:
        return AnswerPart(None, f"the reasoning opened with {running[0]!r} never ends, so there is no answer")
    return text[start:], ended


def _is_mention(text: str, mark: re.Match[str]) -> bool:
    """Whether a mark stands between quotes or backticks: it is spoken of, not used."""
    before, after = text[mark.start() - 1 : mark.start()], text[mark.end() : mark.end() + 1]
    return (before, after) in {("`", "`"), ('"', '"'), ("'", "'"), ("\u201c", "\u201d"), ("\u2018", "\u2019")}


def _final_channel(text: str) -> AnswerPart:
    """gpt-oss: the message of the last final channel."""
    finals = list(_FINAL_CHANNEL.finditer(text))
    if not finals:
        return AnswerPart(None, "no message in the final channel, so there is no answer")
    rest = text[finals[-1].end() :]
    end = _CHANNEL_END.search(rest)
    rest = (rest[: end.start()] if end else rest).strip()
    return AnswerPart(rest) if rest else AnswerPart(None, "nothing in the final channel")


def without_tools(text: str) -> str:
    """The text without what tools wrote: `<tool_response>...</tool_response>` and its like become a line break."""
    kept, at, scanned = [], 0, 0
    last: dict[
        re.Pattern[str], int
    ] = {}  # where each closing mark stands last, so that missing ones are looked for once
    while mark := _TOOL.search(text, scanned):
        closing = _tool_end(mark)
        if closing not in last:
            last[closing] = max((found.start() for found in closing.finditer(text)), default=-1)
        end = closing.search(text, mark.end()) if last[closing] >= mark.end() else None
        if end is None and (ended := _next_end(text, mark.end())) is not None:
            scanned = ended  # a tool's tag in reasoning that goes on after it: spoken of, not used
            continue
        kept += [text[at : mark.start()], "\n"]
        at = scanned = end.end() if end else len(text)
    return text if not kept else "".join((*kept, text[at:]))


def _tool_end(mark: re.Match[str]) -> re.Pattern[str]:
    """What ends the tool's text that `mark` began."""
    if mark["tool"]:
        return re.compile(rf"</{mark['tool']}>", re.I)
    if mark["fence"]:
        return re.compile(r"^```\s*$", re.M)
    return re.compile(r"\[/TOOL_RESULTS\]" if mark["mistral"] else "<\uff5ctool\u2581outputs?\u2581end\uff5c>")


def _next_end(text: str, start: int) -> int | None:
    """Where the next end of reasoning after `start` ends."""
    for mark in _MARK.finditer(text, start):
        if mark.lastgroup == "end" or str(mark.lastgroup).endswith("_c"):
            return mark.end()
    return None


# -- who says what -----------------------------------------------------------------------------------------------------------


def _turns_in(text: str) -> list[tuple[str, str]]:
    """(role, text) of the turns inside one text; what stands before the first mark of a turn is the assistant's."""
    turns, role, at = [], "assistant", 0
    for mark in _TURN.finditer(text):
        turns.append((role, text[at : mark.start()]))
        role = "user" if mark["inst"] else "assistant" if mark["reply"] else next(g for g in mark.groups() if g).lower()
        at = mark.end()
    turns.append((role, text[at:]))
    return [(role, _STREAM_END.sub("", _TURN_END.split(said, maxsplit=1)[0])) for role, said in turns]


def answering(
    extract: Callable[[str], str | None] | None, reasoning: Reasoning, name: object = None
) -> Callable[[str], AnswerPart]:
    """`answer_part`, and then a rule of extraction in it.

    Args:
        extract: text -> the answer in it, or None; None = the answer part is the answer.
        reasoning: see `answer_part`.
        name: of the rule, for the reason.
    """
    answer_part("", reasoning=reasoning)  # refuses another word here, not in the middle of a run
    if isinstance(name, str) and _MARK.search(name):
        reasoning = "keep"  # "after:</think>" looks for the mark itself

    def answer(completion: str) -> AnswerPart:
        part = answer_part(completion, reasoning=reasoning)
        if part.text is None or extract is None:
            return part
        found = extract(part.text)
        if found is None or not found.strip():
            return AnswerPart(
                None, f"no answer found (extract={name!r})" if isinstance(name, str) else "no answer found"
            )
        return AnswerPart(found)

    return answer


__all__ = ["REASONING", "AnswerPart", "Reasoning", "answer_part", "answering", "without_tools"]
