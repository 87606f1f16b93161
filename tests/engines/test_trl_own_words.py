"""Whose words: what a tool wrote is in no signal, no step score and no truth, on the way from the trainer's ids to the verifier's text."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_kit import Letters, dataset, grpo_config, plain_system, save_tiny, tokenizer

from guerdon.credit import GroupNorm, MinReturn, ToTokens
from guerdon.engines.trl import CreditTrainer, Evaluator
from guerdon.engines.trl.batch import Sampled, build_rollouts
from guerdon.errors import CapabilityError
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Clock, Rollouts
from guerdon.segment import ByDelimiter
from guerdon.signals import Length, Math, Numeric, RewardModel, StepClassifier, TaggedAnswer, text_signal
from guerdon.spans import Spans
from guerdon.system import System

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
WIDE = tokenizer(string.printable)
Piece = tuple[str, bool]  # (text, the policy wrote it)


def conversation(*rows: Sequence[Piece], answer: str = "42") -> Rollouts:
    """Rollouts as the engine makes them, one for each list of pieces."""
    ids, own = [], []
    for row in rows:
        pieces = [(WIDE(text, add_special_tokens=False)["input_ids"], mine) for text, mine in row]
        ids.append([i for piece, _ in pieces for i in piece])
        own.append([int(mine) for piece, mine in pieces for _ in piece])
    return build_rollouts(
        Sampled([WIDE("what?")["input_ids"]] * len(rows), ids, own), ["what?"] * len(rows), {"answer": [answer] * len(rows)}, tokenizer=WIDE,
        stop_ids={1}, cap=10**6, group_size=len(rows), rank=0, clock=Clock(),
    )  # fmt: skip


ASKS, TOOL, DONE = ("I ask the tool.\n", True), ("RESULT \\boxed{42}\n<answer>42</answer>\n", False), ("ok done", True)


def test_three_views_of_a_completion() -> None:
    rollouts = conversation([ASKS, TOOL, DONE], [("all mine", True)], [TOOL], [ASKS, TOOL], [TOOL, DONE, TOOL, DONE])
    assert rollouts.last_turns == ["ok done", "all mine", "", "I ask the tool.\n", "ok done"]
    assert rollouts.policy_texts == ["I ask the tool.\nok done", "all mine", "", "I ask the tool.\n", "ok doneok done"]
    for text, masked in zip(rollouts.completions, rollouts.masked_texts, strict=True):
        assert len(text) == len(masked) and "RESULT" not in masked
    assert rollouts.masked_texts[0].index("ok done") == rollouts.completions[0].index("ok done")


def test_a_row_whose_foreign_words_cannot_be_told_is_refused() -> None:
    ids = torch.zeros(1, 3, dtype=torch.long)
    known = {"completion_ids": ids, "completion_mask": torch.ones(1, 3, dtype=torch.bool)}
    rollouts = Rollouts(["q"], ["abc"], **known, policy_mask=torch.tensor([[True, False, True]]))
    with pytest.raises(CapabilityError, match="decode_offsets_batch"):
        Math()(Rollouts(["q"], ["abc"], **known, policy_mask=rollouts.policy_mask, columns={"answer": ["1"]}))
    assert Rollouts(["q"], ["abc"], **known).last_turns == ["abc"], "one author: no offsets needed"


@pytest.mark.parametrize(
    "signal",
    [Math(), Numeric(), TaggedAnswer(), text_signal(lambda text, answer: float(answer in text), columns=["answer"])],
    ids=["math", "numeric", "tagged", "own function"],
)
def test_an_answer_of_the_tool_is_not_paid_and_one_of_the_policy_is(signal: Any) -> None:
    right = ("so \\boxed{42} <answer>42</answer>", True)
    rollouts = conversation([ASKS, TOOL, DONE], [ASKS, TOOL], [TOOL], [ASKS, TOOL, right], [right], [right, TOOL, DONE])
    # The last one said it, looked again, and then said something else: its last words count.
    assert signal(rollouts, Scores.empty(rollouts)).values[:, 0].clamp(min=0).tolist() == [0, 0, 0, 1, 1, 0]


def test_lengths_count_what_the_policy_wrote() -> None:
    rollouts = conversation([ASKS, TOOL, DONE], [("x" * 23, True)])
    penalties = Length(cap=30, buffer=20)(rollouts, Scores.empty(rollouts)).values[:, 0].tolist()
    assert -1 < penalties[0] == penalties[1] < 0


# -- steps -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [ByDelimiter(WIDE, "\n"), ByDelimiter(None, "\n")], ids=["tokens", "text"])
def test_no_step_holds_words_of_both(rule: Any) -> None:
    rollouts = conversation([("I call", True), ("doc one\ndoc", False), (" so\n42", True)])
    text, spans = rollouts.completions[0], rule(rollouts).to_lists()[0]
    assert [text[start : end + 1] for start, end in spans] == ["I call", "doc one\n", "doc", " so\n", "42"]


class EveryStep:
    """-1 for every step, or a failure of the instrument in steps that a tool wrote."""

    scope, level = "row", "steps"

    def __init__(self, tool: float) -> None:
        self.tool = tool

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        spans = rollouts.segment("steps")
        values = torch.full(spans.start.shape, -1.0)
        values[0, 1] = self.tool
        return Rewards(values, spans)


class EveryToken:
    """One value a token, tokens of the tool included."""

    scope, level = "row", "token"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        assert rollouts.policy_mask is not None
        return Rewards.tokens(torch.where(rollouts.policy_mask, 1.0, 100.0), rollouts)


@pytest.mark.parametrize("tool", [-50.0, 50.0, float("nan")])
def test_steps_and_tokens_of_the_tool_are_neither_paid_nor_punished(tool: float) -> None:
    rollouts = conversation([("a\n", True), ("bad\n", False), ("b", True)], [("c\n", True), ("d", True)])
    system = System(
        {"s": EveryStep(tool)}, [MinReturn("s"), ToTokens("s", "whole")], segments={"steps": ByDelimiter(WIDE, "\n")}
    )
    scores = system(rollouts)
    assert scores.raw["s"].mask.tolist() == [[True, False, True], [True, True, False]]
    assert scores.keep.tolist() == [True, True], "what an instrument says of a tool's step fails nobody"
    assert float(scores.reward[0]) == float(scores.reward[1])
    tokens = System({"t": EveryToken()}, [ToTokens("t")])(rollouts)
    assert tokens.reward.tolist() == [3.0, 3.0]


def test_a_process_reward_model_reads_the_tool_and_scores_the_policy() -> None:
    from transformers import LlamaConfig, LlamaForTokenClassification

    settings = dict(
        vocab_size=len(WIDE), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForTokenClassification(LlamaConfig(**settings, num_labels=2, initializer_range=0.5)).eval()
    pieces = [("I search\n", True), ("doc one\ndoc two\n", False), ("so 42", True)]
    other = [pieces[0], ("nothing\nfound by it\n", False), pieces[2]]
    rollouts = conversation(pieces, other)
    rollouts = rollouts.with_spans(steps=ByDelimiter(WIDE, "\n")(rollouts))
    rewards = StepClassifier(model, tokenizer=WIDE)(rollouts)
    assert rewards.mask.tolist() == [[True, False, False, True]] * 2
    assert float(rewards.values[0, 0]) == pytest.approx(float(rewards.values[1, 0]))
    assert float(rewards.values[0, 3]) != pytest.approx(float(rewards.values[1, 3]), abs=1e-6), "the tool is context"


def test_a_reward_model_of_whole_completions_reads_the_policy_alone() -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    settings = dict(
        vocab_size=len(WIDE), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForSequenceClassification(LlamaConfig(**settings, num_labels=1, pad_token_id=0)).eval()
    rollouts = conversation([ASKS, TOOL, DONE], [ASKS, DONE])
    for retokenize in (False, True):
        values = RewardModel(model, tokenizer=WIDE, retokenize=retokenize)(rollouts).values[:, 0]
        assert float(values[0]) == pytest.approx(float(values[1]), abs=1e-6)


# -- in the trainer ----------------------------------------------------------------------------------------------------------


def through_a_tool(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """Every rollout: a letter of the policy, the tool's answer, and two more letters; row 0 is the tool's alone."""
    tok = trainer.processing_class
    ids, own = [], []
    for row in range(len(prompts)):
        parts = [("a" * (row % 3 + 1), 1), ("= 42\n", 0), ("bc"[row % 2], 1)] if row else [("= 42\n", 0)]
        ids.append([i for text, _ in parts for i in tok(text, add_special_tokens=False)["input_ids"]])
        own.append([mark for text, mark in parts for _ in text])
    prompt_ids = [tok(prompt)["input_ids"] for prompt in prompts]
    return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": None, "env_mask": own}


def test_true_success_of_training_and_of_held_out_prompts_reads_the_last_turn(tmp_path: Path) -> None:
    seen: list[str] = []

    def truth(completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
        seen.extend(completions)
        return [float("42" in text) for text in completions]

    system = plain_system(Letters())
    held_out = [{"prompt": "1+1=", "answer": "2"}] * 4
    evaluator = Evaluator(held_out, truth, system, every=1, samples=4, kl=False)
    trainer = CreditTrainer(
        save_tiny(tmp_path / "policy"), system, grpo_config(tmp_path / "out", max_steps=1), dataset(),
        processing_class=tokenizer(), rollout_func=through_a_tool, truth=truth, monitors=[evaluator],
    )  # fmt: skip
    trainer.train()
    assert set(seen) == {"", "b", "c"}
    assert trainer.state.log_history[0]["true"] == 0.0
    from engine_kit import lines

    assert [line["true_success"]["mean"] for line in lines(tmp_path / "out" / "eval.jsonl")] == [0.0, 0.0]


def test_the_spans_of_sequence_credit_cover_what_the_policy_wrote() -> None:
    rollouts = conversation([ASKS, TOOL, DONE], [ASKS, DONE])
    signal = text_signal(lambda text: float("ok" in text) + 0.1 * len(text))
    scores = System({"s": signal}, [GroupNorm("s"), ToTokens("s", "whole")])(rollouts)
    assert isinstance(scores.raw["s"].spans, Spans)
    assert scores.advantages[0, rollouts.policy_mask[0]].unique().numel() == 1  # type: ignore[index]
