"""Cutting the text itself: by regular expression, sentence, tag and turn. All spans are (start, end) INCLUSIVE characters."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch

from guerdon.errors import CapabilityError, ConfigError
from guerdon.options import checked
from guerdon.rollouts import Rollouts
from guerdon.segment.placement import CharSpan, place
from guerdon.spans import Spans


def tile_at(text: str, ends: Iterable[int]) -> list[CharSpan]:
    """Spans that tile `text`, one ending before each position of `ends` (ascending) and the last with the text.

    Positions 0, len(text) and repeated ones cut nothing off; an empty text has no spans.
    """
    cuts = sorted({end for end in ends if 0 < end < len(text)})
    return [(s, e - 1) for s, e in zip([0, *cuts], [*cuts, len(text)], strict=True) if e > s]


def ends_of_content(text: str, ends: Iterable[int]) -> list[int]:
    """Ends of pieces without those of white space alone: it belongs to the piece before it, or to the first one.

    A policy that prints blank lines makes no steps by it.
    """
    kept: list[int] = []
    begin = 0
    for end in ends:
        if text[begin:end].strip():
            kept.append(end)
        elif kept:
            kept[-1] = end
        begin = end
    if kept and not text[kept[-1] :].strip():
        kept[-1] = len(text)
    return kept


def split_text(text: str, delimiter: str) -> list[CharSpan]:
    """Pieces that end with `delimiter` (it belongs to the piece it ends), and the rest; non-overlapping from the left.

    White space alone is no piece, see `ends_of_content`. A line break in the delimiter is also one of two characters (CR LF).
    """
    pattern = re.escape(delimiter).replace("\\\n", "\n").replace("\n", r"\r?\n")
    return tile_at(text, ends_of_content(text, [match.end() for match in re.finditer(pattern, text)]))


@checked
@dataclass(frozen=True)
class ByRegex:
    """Spans by a regular expression.

    Attributes:
        pattern: of Python's `re`. Compiled with no flags; write (?s), (?m) or (?i) into it.
        mode: "split": every match ENDS a span and belongs to it; the spans tile the completion (a zero-width match, such
            as a lookahead, cuts where it stands). "match": every non-empty match IS a span, what is between them is in none.
        group: in mode "match", which group is the span; matches where it took no part or is empty are left out.
        name: of the segmentation.

    Raises:
        ConfigError: the pattern does not compile, or has no such group.
    """

    pattern: str
    mode: Literal["split", "match"] = "split"
    group: int | str = 0
    name: str = "regex"

    def __post_init__(self) -> None:
        if self.mode not in ("split", "match"):
            raise ConfigError(f"mode={self.mode!r}: use 'split' or 'match'")
        try:
            compiled = re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"pattern {self.pattern!r} does not compile: {error}") from error
        groups = {*range(compiled.groups + 1), *compiled.groupindex}
        if self.group not in groups:
            raise ConfigError(
                f"pattern {self.pattern!r} has no group {self.group!r} (it has {sorted(map(str, groups))})"
            )

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def cut(self, text: str) -> list[CharSpan]:
        if self.mode == "split":
            return tile_at(text, (match.end() for match in self._regex.finditer(text)))
        found = (match.span(self.group) for match in self._regex.finditer(text))
        return [(start, end - 1) for start, end in found if end > start]

    def __call__(self, rollouts: Rollouts) -> Spans:
        rows = [self.cut(text) for text in rollouts.completions]
        return place(rows, rollouts, self.name, tiling=self.mode == "split")


@checked
@dataclass(frozen=True)
class ByTag:
    """What stands between <tag> and </tag>, one span for each pair, in order; empty pairs have none.

    A tag is closed by the next closing tag, so of nested ones the outer opening and the inner closing tag make a pair.

    Attributes:
        tag: its name, without brackets.
        include_tags: let the span hold the tags too.
        unclosed: an opening tag that is never closed (a truncated completion): "span" = up to the end, "drop" = no span.
        opened: the prompt already holds the opening tag (chat templates that prefill <think>): the completion then starts
            inside it. Ignored in a row where an opening tag comes before the first closing one.
        name: of the segmentation; default the tag.
    """

    tag: str
    include_tags: bool = False
    unclosed: Literal["span", "drop"] = "span"
    opened: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.:-]+", self.tag):
            raise ConfigError(f"tag={self.tag!r}: give the name alone, such as 'think'")
        if self.unclosed not in ("span", "drop"):
            raise ConfigError(f"unclosed={self.unclosed!r}: use 'span' or 'drop'")

    def cut(self, text: str) -> list[CharSpan]:
        opening, closing = f"<{self.tag}>", f"</{self.tag}>"
        first_open, first_close = text.find(opening), text.find(closing)
        inside = self.opened and (first_open < 0 or 0 <= first_close < first_open)
        outer, inner = (0, 0) if inside else (first_open, first_open + len(opening))
        spans: list[tuple[int, int]] = []  # half-open
        while outer >= 0:
            close = text.find(closing, inner)
            if close < 0:
                if self.unclosed == "span":
                    spans.append((outer if self.include_tags else inner, len(text)))
                break
            spans.append((outer, close + len(closing)) if self.include_tags else (inner, close))
            outer = text.find(opening, close + len(closing))
            inner = outer + len(opening)
        return [(start, end - 1) for start, end in spans if end > start]

    def __call__(self, rollouts: Rollouts) -> Spans:
        rows = [self.cut(text) for text in rollouts.completions]
        return place(rows, rollouts, self.name or self.tag, tiling=False)


@dataclass(frozen=True)
class ByTurn:
    """Turns of a conversation inside one completion.

    Attributes:
        header: None = each run of `policy_mask` is a turn (tool output between them belongs to none; rollouts with tokens
            only). Otherwise a regular expression of what stands before each turn, such as r"<\\|im_start\\|>(?P<role>\\w+)\\n";
            a turn goes from the header's end to the next header, text before the first header is a turn of `first_role`.
        role: keep only turns whose header's group "role" (or group 1) is this. None = all.
        first_role: who speaks before the first header.
        name: of the segmentation.
    """

    header: str | None = None
    role: str | None = None
    first_role: str = "assistant"
    name: str = "turns"

    def __post_init__(self) -> None:
        if self.header is not None:
            try:
                groups = re.compile(self.header).groups
            except re.error as error:
                raise ConfigError(f"header {self.header!r} does not compile: {error}") from error
            if self.role is not None and not groups:
                raise ConfigError(
                    f"role={self.role!r} needs a group in the header {self.header!r} that captures who speaks"
                )

    def cut(self, text: str) -> list[CharSpan]:
        assert self.header is not None
        spans, at, speaker = [], 0, self.first_role
        for match in re.finditer(self.header, text):
            spans.append((at, match.start(), speaker))
            at, speaker = match.end(), self._speaker(match)
        spans.append((at, len(text), speaker))
        return [(s, e - 1) for s, e, who in spans if e > s and self.role in (None, who)]

    @staticmethod
    def _speaker(match: re.Match[str]) -> str:
        named = match.groupdict().get("role")
        return named or (match.group(1) or "" if match.re.groups else "")

    def __call__(self, rollouts: Rollouts) -> Spans:
        if self.header is not None:
            rows = [self.cut(text) for text in rollouts.completions]
            return place(rows, rollouts, self.name, tiling=False)
        if not rollouts.has_tokens:
            raise CapabilityError(
                "turns of texts without tokens need to know what stands before each: give ByTurn a header, such as "
                r"ByTurn(r'<\|im_start\|>(\w+)\n', role='assistant')"
            )
        return policy_runs(rollouts, self.name)


def policy_runs(rollouts: Rollouts, name: str = "turns") -> Spans:
    """Each run of tokens that the policy sampled, in order."""
    assert rollouts.policy_mask is not None
    policy = rollouts.policy_mask
    padded = torch.nn.functional.pad(policy.int(), (1, 1))
    step = padded.diff(dim=1)
    starts, ends = (step == 1)[:, :-1], (step == -1)[:, 1:]
    counts = starts.sum(1)
    width = int(counts.max()) if len(counts) else 0
    index = torch.arange(policy.shape[1], device=policy.device).expand(policy.shape)

    def positions(marks: torch.Tensor) -> torch.Tensor:
        return torch.where(marks, index, policy.shape[1]).sort(1).values[:, :width]

    mask = torch.arange(width, device=policy.device)[None] < counts[:, None]
    return Spans(torch.where(mask, positions(starts), 0), torch.where(mask, positions(ends), -1), mask, "token", name)


# What never ends a sentence when a full stop follows; lower case, without that full stop.
_ABBREVIATIONS = """
    mr mrs ms dr prof sr jr st mt rev hon gen col lt sgt capt vs etc e.g i.e eg ie cf al fig figs eq
    eqs sec ch no nos vol vols pp p ed eds approx dept est inc ltd co corp jan feb mar apr jun jul aug
    sep sept oct nov dec ph.d m.d u.s u.k a.m p.m resp thm lem def prop cor w.r.t s.t i.i.d
"""
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())

# A full stop, exclamation or question mark (with closing quotes and brackets) and white space; a CJK one needs no space.
# Possessive, and only at the head of a run: a hundred thousand dots take linear time.
_STOP = re.compile(
    r"""(?<![.!?…])(?P<stop>[.!?…]++)["'”’)\]}»*_]*+(?P<space>\s++)|[。！？]++[」』”’）]*+\s*+|\n[ \t\r]*+\n\s*+"""
)
# Formulas: what stops inside one ends no sentence. Inline dollars stay on their line and touch what they hold, unlike prices.
_FORMULA = re.compile(r"\\\[|\\\(|\$\$|\\begin\{(\w+\*?)\}|(?<![\\$\w])\$(?=[^\s$])[^$\n]*+(?<=\S)\$(?!\d)")
_CLOSING = {"\\[": "\\]", "\\(": "\\)", "$$": "$$"}
# After the "!" of a factorial: the formula or the clause goes on.
_AFTER_FACTORIAL = re.compile(
    r"[-=+*/<>^|%,;:)\]}\u00b7\u00d7\u00f7\u2212\u2248\u2264\u2265\u2260\u2208]|\\(?:cdot|times|div|le|ge|ne|approx)|[^\W\d_]"
)
_FACTORIAL = re.compile(r"(?:(?<=\d)|(?<=[)}\]])|(?<=\b[A-Za-z]))!{1,2}\s")
_WORD_BEFORE = re.compile(r"[^\s(\[{\"'“‘«]+$")


def split_sentences(text: str, abbreviations: frozenset[str] = ABBREVIATIONS) -> list[CharSpan]:
    """Sentences that tile `text`; white space belongs to the sentence it follows.

    A sentence ends at . ! ? … (with closing quotes or brackets) before white space, at 。！？, and at a blank line. A single
    full stop does NOT end one after an abbreviation, an initial ("J. Smith"), a list number at the start of a line
    ("2. Then"), or before a lower-case letter. Decimals ("3.14") have no white space and are never cut; nor is a factorial that
    goes on ("5! = 120"). A formula is never cut; one that ends with a stop ends its sentence. Left out: headings without a stop,
    abbreviations that do end a sentence ("... at 5 p.m. He ...").
    """
    formulas = _formulas(text)
    ends = [end for start, stop in formulas if (end := _end_with_formula(text, start, stop))]
    starts = [start for start, _ in formulas]
    for match in _STOP.finditer(text):
        at = bisect.bisect_right(starts, match.start()) - 1
        if at >= 0 and match.start() < formulas[at][1]:
            continue
        if _is_factorial(text, match):
            continue
        if match["stop"] == "." and "\n" not in match["space"].strip(" \t\r") and _goes_on(text, match, abbreviations):
            continue
        ends.append(match.end())
    return tile_at(text, ends)


def _formulas(text: str) -> list[tuple[int, int]]:
    """[start, end) of the formulas of a text, those that never close left out."""
    found: list[tuple[int, int]] = []
    at, missing = 0, set[str]()  # each closing mark that is nowhere is looked for once
    for match in _FORMULA.finditer(text) if "$" in text or "\\" in text else ():
        closing = f"\\end{{{match[1]}}}" if match[1] else _CLOSING.get(match[0], "")
        if match.start() < at or closing in missing:
            continue
        end = text.find(closing, match.end()) if closing else match.end()
        if end < 0:
            missing.add(closing)
            continue
        at = end + len(closing)
        found.append((match.start(), at))
    return found


def _end_with_formula(text: str, start: int, stop: int) -> int | None:
    """Where a sentence ends that ends with the stop inside the formula text[start:stop]; None where it goes on."""
    held = text[start:stop].rstrip("$").removesuffix("\\]").removesuffix("\\)").rstrip()
    end = stop + len(text[stop:]) - len(text[stop:].lstrip())
    following = text[end : end + 1]
    return end if held.endswith((".", "!", "?")) and end > stop and not following.islower() else None


def _is_factorial(text: str, match: re.Match[str]) -> bool:
    """Whether "!" is a sign of the formula that goes on after it, and no stop."""
    if match["stop"] not in ("!", "!!") or not _FACTORIAL.match(text, match.start("stop")):
        return False
    following = _AFTER_FACTORIAL.match(text, match.end())
    return following is not None and not following[0].isupper()


def _goes_on(text: str, match: re.Match[str], abbreviations: frozenset[str]) -> bool:
    """Does the sentence go on after this full stop?"""
    following = text[match.end() : match.end() + 1]
    if following.islower():
        return True
    window = max(0, match.start() - 48)
    newline = text.rfind("\n", window, match.start())
    found = _WORD_BEFORE.search(text, max(newline + 1, window), match.start())
    word = found[0] if found else ""
    on_this_line = text[max(newline + 1, window) : match.start() - len(word)]
    starts_line = (newline >= 0 or window == 0) and not on_this_line.strip(" \t*-#>")
    list_number = word.isdigit() and starts_line
    initial = len(word) == 1 and word.isalpha() and word.isupper() and word != "I"
    return list_number or initial or word.lower() in abbreviations


@dataclass(frozen=True)
class BySentence:
    """Sentences, by the rules of `split_sentences`. They tile the completion.

    Attributes:
        extra_abbreviations: more words after which a full stop ends nothing, without that full stop, any case.
        name: of the segmentation.
    """

    extra_abbreviations: tuple[str, ...] = field(default=())
    name: str = "sentences"

    def __call__(self, rollouts: Rollouts) -> Spans:
        known = ABBREVIATIONS | {word.lower().rstrip(".") for word in self.extra_abbreviations}
        return place([split_sentences(text, known) for text in rollouts.completions], rollouts, self.name, tiling=True)
