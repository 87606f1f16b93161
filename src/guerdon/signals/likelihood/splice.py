"""The reference in the place of the policy's own answer: what is kept of a completion, what follows it, which part is scored.

| splice | kept as sampled | then | scored |
| --- | --- | --- | --- |
| "answer" | up to the first "<answer" | "> REF </answer>" | REF |
| "verifree" | the same | "> \\boxed{REF} </answer>" | all of it |
| "R1", "R1_opened", "R1_nothink" | nothing: RLPR tokenises the spliced text in one piece | reasoning, "<answer>", REF, "</answer>" | REF |
| "append" | the whole response | "\\n\\nThe answer is REF" | REF |
| "nover" | up to the first "</think>" | "\\n\\n<answer>\\nREF\\n</answer>" | all but the first line break |

VeriFree ends what is kept before the ">" because many tokenizers merge ">" with what follows it; what is kept stays the ids the
policy sampled, and what follows is tokenised by itself.

Sources: VeriFree (arXiv 2505.21493) and RLPR (2506.18254), official code; NOVER (2505.16022), official code `calculate_perplexity`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from guerdon.errors import ConfigError
from guerdon.options import checked

Mode = Literal["R1", "R1_opened", "R1_nothink"]
_TAGS: dict[str, tuple[str, ...]] = {
    "R1": ("<think>", "</think>", "<answer>"),
    "R1_opened": ("</think>", "<answer>"),
    "R1_nothink": ("<answer>",),
}


@dataclass(frozen=True)
class Splice:
    """A response with its answer swapped for the reference.

    Attributes:
        text: what follows the kept part; "" where the response cannot be spliced.
        start, end: characters of `text` that are scored, end exclusive.
        why: why it cannot be spliced; "" where it can.
        kept: characters of the response that stay as they were sampled, before `text`.
        reasoning: characters of the response that are not its answer.
    """

    text: str
    start: int
    end: int
    why: str = ""
    kept: int = 0
    reasoning: int = 0


Splicer = Callable[[str, str], Splice]


@checked
@dataclass(frozen=True)
class TagSplice:
    """Keep a response up to the first `tag`, and go on with lead + before + reference + after.

    Attributes:
        tag: the last thing that is kept. A response without it cannot be spliced.
        before, after: around the reference.
        scored: "reference" alone, or "all" of before, reference and after.
        lead: first characters, never scored.
    """

    tag: str = "<answer"
    before: str = "> "
    after: str = " </answer>"
    scored: Literal["reference", "all"] = "reference"
    lead: str = ""

    def __call__(self, response: str, reference: str) -> Splice:
        place = response.find(self.tag)
        if place < 0:
            return Splice("", 0, 0, f"no {self.tag!r} in the response")
        kept = place + len(self.tag)
        text = f"{self.lead}{self.before}{reference}{self.after}"
        start = len(self.lead) + (len(self.before) if self.scored == "reference" else 0)
        end = len(text) - (len(self.after) if self.scored == "reference" else 0)
        return Splice(text, start, end, kept=kept, reasoning=kept)


@dataclass(frozen=True)
class AppendSplice:
    """Keep the whole response, and let `cue` ask for the answer: for models that keep to no layout.

    The answer they have given stays where it is, so the reference is also the likelier the more it repeats that answer.
    """

    cue: str = "\n\nThe answer is "

    def __call__(self, response: str, reference: str) -> Splice:
        text = f"{self.cue}{reference}"
        return Splice(text, len(self.cue), len(text), kept=len(response), reasoning=len(response))


def splice_reference(response: str, reference: str, mode: Mode = "R1") -> Splice:
    """Swap the text after <answer> for the reference, RLPR's rules.

    Valid iff there is exactly one <answer>, in mode "R1" also exactly one <think> and one </think>, in the order <think>, </think>,
    <answer>, and something that is not blank after <answer>. In mode "R1_opened" the prompt has written the <think>, and none may follow.
    A missing </answer> does not matter. Kept: everything up to <answer>, and the model's own white space after it (one space if none);
    then reference, space, </answer>.
    """
    if mode not in _TAGS:
        raise ConfigError(f"mode={mode!r}: use one of {', '.join(_TAGS)}")
    tags = _TAGS[mode]
    if mode == "R1_opened" and "<think>" in response:
        return Splice("", 0, 0, "<think> occurs again after the prompt has opened it")
    for tag in tags:
        if response.count(tag) != 1:
            return Splice("", 0, 0, f"{tag} occurs {response.count(tag)} times, expected once")
    places = [response.index(tag) for tag in tags]
    if places != sorted(places):
        return Splice("", 0, 0, f"the tags are not in the order {' '.join(tags)}")
    head, answer = response.split("<answer>")
    own = answer.removesuffix("</answer>")
    if not own.strip():
        return Splice("", 0, 0, "nothing after <answer>")
    lead = answer[: len(answer) - len(answer.lstrip(" \n\t\r"))] or " "
    before = f"{head}<answer>{lead}"
    text = f"{before}{reference} </answer>"
    return Splice(text, len(before), len(before) + len(reference), reasoning=len(head) + len("<answer>"))


@checked
@dataclass(frozen=True)
class RLPRSplice:
    """`splice_reference` in one of its modes."""

    mode: Mode = "R1"

    def __post_init__(self) -> None:
        splice_reference("", "", self.mode)  # refuses an unknown mode here

    def __call__(self, response: str, reference: str) -> Splice:
        return splice_reference(response, reference, self.mode)


SPLICES: dict[str, Splicer] = {
    "answer": TagSplice(),
    "verifree": TagSplice(before="> \\boxed{", after="} </answer>", scored="all"),
    "nover": TagSplice("</think>", "\n<answer>\n", "\n</answer>", scored="all", lead="\n"),
    "append": AppendSplice(),
    "R1": RLPRSplice("R1"),
    "R1_opened": RLPRSplice("R1_opened"),
    "R1_nothink": RLPRSplice("R1_nothink"),
}


def splicer(splice: str | Splicer) -> Splicer:
    """A splice by name, or the callable itself. Raises ConfigError for an unknown name."""
    if not isinstance(splice, str):
        return splice
    if splice not in SPLICES:
        raise ConfigError(
            f"splice={splice!r}: use one of {', '.join(SPLICES)}, or a callable (response, reference) -> Splice"
        )
    return SPLICES[splice]
