"""What can be said of a completion that reasons and then answers: whether it keeps to its layout, and its answer's ROUGE-1."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from guerdon.segment.reasoning import ChainLayout, layout_of
from guerdon.signals.text import TextSignal
from guerdon.signals.verifiable.references import reference_values
from guerdon.signals.verifiable.verdict import Verdict, instrument_failure, shown

_WORD = re.compile(r"[a-z0-9]+")


def rouge1_f1(prediction: str, reference: str) -> float:
    """Unigram F1 in [0, 1] with clipped counts, on lower-cased runs of a-z and 0-9 (the tokens of the rouge-score package).

    P = overlap / |prediction|, R = overlap / |reference|, F = 2PR / (P + R); 0 where either side is empty or nothing overlaps.
    """
    given, expected = _WORD.findall(prediction.lower()), _WORD.findall(reference.lower())
    overlap = sum((Counter(given) & Counter(expected)).values())
    return 2 * overlap / (len(given) + len(expected)) if overlap else 0.0


def Rouge(*, reference: str = "answer", layout: str | ChainLayout | Sequence[str] | None = None) -> TextSignal:
    """ROUGE-1 F1 of the answer against the best of its references; 0 with the reason where the layout is not kept.

    Args:
        reference: data column with the reference, or a list of equally right ones.
        layout: where the answer stands, see `segment.reasoning.layout_of`; None = the completion is the answer.
    """
    form = None if layout is None else layout_of(layout)

    def check(texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Verdict]:
        return [one(text, cell) for text, cell in zip(texts, columns[reference], strict=True)]

    def one(text: str, cell: Any) -> Verdict:
        references = [str(value) for value in reference_values(cell) if str(value).strip()]
        if not references:
            return instrument_failure(f"no usable reference in this row: {shown(cell)}")
        if form is not None:
            parsed = form.parse(text)
            if not parsed.ok:
                return Verdict(0.0, parsed.why)
            text = text[slice(*parsed.answer)]
        return Verdict(max(rouge1_f1(text, value) for value in references))

    return TextSignal(check, (reference,), "rouge1", f"reference={reference!r}, layout={form!r}")


def LayoutFormat(*, layout: str | ChainLayout | Sequence[str] = "think") -> TextSignal:
    """1 where the completion keeps to the layout, else 0 with the reason."""
    form = layout_of(layout)

    def check(texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Verdict]:
        return [Verdict(float(parsed.ok), parsed.why) for parsed in map(form.parse, texts)]

    return TextSignal(check, (), "layout_format", f"layout={form!r}")
