"""Rollouts of several turns through the real trainer: what the environment wrote is context and never in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_kit import dataset, grpo_config, lines, tiny_model, tokenizer

from guerdon.engines.trl import CreditTrainer, Evaluator, multi_turn
from guerdon.engines.trl.environments import reply_frame, sample_rollouts
from guerdon.errors import CapabilityError, ConfigError
from guerdon.lm import LocalModel
from guerdon.rewards import Scores
from guerdon.rollouts import Rollouts
from guerdon.systems import igpo

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@dataclass(frozen=True)
class Echo:
    """Answers every turn with "= " and its length, whatever it says: a policy that knows nothing has several turns here."""

    max_turns: int = 3
    turn_tokens: int | None = 4
    stop: tuple[str, ...] = ("=",)
    silent_after: int = 99

    def respond(self, turns: Sequence[str]) -> list[str | None]:
        return [None if len(turn) > self.silent_after else f"\n{len(turn)}\n" for turn in turns]


def runs(marks: Sequence[int]) -> list[tuple[int, int]]:
    """(mark, length) of each run."""
    found: list[tuple[int, int]] = []
    for mark in marks:
        found = [*found[:-1], (mark, found[-1][1] + 1)] if found and found[-1][0] == mark else [*found, (mark, 1)]
    return found


def sampled(seed: int = 0, **options: Any) -> list[Any]:
    torch.manual_seed(seed)
    model = LocalModel(tiny_model(), tokenizer())
    return sample_rollouts(model, ["1+2=", "3+"] * 2, Echo(**options), max_tokens=40)


def test_turns_and_replies_alternate_and_end_with_a_turn() -> None:
    for row in sampled():
        pattern = runs(row.own)
        assert [mark for mark, _ in pattern] == [1, 0, 1, 0, 1]
        assert all(length <= 4 for mark, length in pattern if mark)
        text = tokenizer().decode(row.ids)
        assert text.count("\n") >= 4 and len(row.ids) == len(row.own) <= 40


def test_a_reply_stands_where_its_turn_ended_and_prompts_stay_apart() -> None:
    tok = tokenizer()
    rows = sampled(max_turns=2)
    assert [row.prompt.tolist() for row in rows[:2]] == [tok("1+2=")["input_ids"], tok("3+")["input_ids"]]
    for row in rows:
        (_, first), (_, reply), *_ = runs(row.own)
        turn = tok.decode([i for i in row.ids[:first] if i != tok.eos_token_id])
        assert tok.decode(row.ids[first : first + reply]) == f"\n{len(turn)}\n"


def test_the_same_seed_gives_the_same_rollouts_and_another_one_others() -> None:
    assert [row.ids for row in sampled(3)] == [row.ids for row in sampled(3)]
    assert [row.ids for row in sampled(3)] != [row.ids for row in sampled(4)]


def test_a_rollout_ends_where_nothing_is_answered_and_where_no_reply_fits() -> None:
    assert all(set(row.own) == {1} for row in sampled(silent_after=-1))
    torch.manual_seed(0)
    model = LocalModel(tiny_model(), tokenizer())
    for row in sample_rollouts(model, ["1+"], Echo(max_turns=9), max_tokens=11):
        assert row.own[-1] == 1 and len(row.ids) <= 11
    with pytest.raises(ConfigError, match="at least one turn"):
        multi_turn(Echo(max_turns=0))


class Watch:
    """A monitor that keeps what the trainer saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[Rollouts, Scores]] = []

    def __call__(self, rollouts: Rollouts, scores: Scores) -> None:
        self.seen.append((rollouts, scores))


def train(folder: Path, **options: Any) -> tuple[Watch, list[torch.Tensor]]:
    watch = Watch()
    trainer = CreditTrainer(
        tiny_model(),
        igpo(answer_head="=", outcome="noformatf1", **options),
        args=grpo_config(folder, max_steps=2, max_completion_length=40, save_strategy="no"),
        train_dataset=dataset(),
        processing_class=tokenizer(),
        monitors=[watch],
        rollout_func=multi_turn(Echo()),
    )
    trainer.train()
    return watch, [p.detach().clone() for p in trainer.model.parameters()]


def test_igpo_trains_on_turns_and_never_on_replies(tmp_path: Path) -> None:
    before = [p.detach().clone() for p in tiny_model().parameters()]
    watch, after = train(tmp_path)
    assert len(watch.seen) == 2 and any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for rollouts, scores in watch.seen:
        assert rollouts.policy_mask is not None and bool((rollouts.mask & ~rollouts.policy_mask).any())
        turns = rollouts.segment("turns")
        assert turns.counts.tolist() == [3] * len(rollouts)
        assert not scores.advantages[~rollouts.policy_mask].any() and bool(scores.advantages.any())
        gains, ends = scores.raw["gain.gain"], scores.raw["gain.end"].values - scores.raw["gain.start"].values
        assert gains.mask.sum(1).tolist() == [2] * len(rollouts)
        assert torch.allclose(gains.values.sum(1), ends[:, 0], atol=1e-6)  # gains add up to what was gained
        assert not any(
            str(answer) == text for answer, text in zip(rollouts.column("answer"), rollouts.completions, strict=True)
        )


def test_held_out_prompts_are_sampled_with_the_environment_too(tmp_path: Path) -> None:
    system = igpo(answer_head="=", rewards="outcome", outcome="noformatf1")
    rows = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+1=", "answer": "3"}]
    lengths: list[int] = []

    def truth(completions: list[str], _: Any) -> list[float]:
        lengths.extend(map(len, completions))
        return [0.0] * len(completions)

    trainer = CreditTrainer(
        tiny_model(),
        system,
        args=grpo_config(tmp_path, max_steps=1, max_completion_length=40, save_strategy="no"),
        train_dataset=dataset(),
        processing_class=tokenizer(),
        monitors=[Evaluator(rows, truth, system, every=1, samples=4, group_size=2, kl=False)],
        rollout_func=multi_turn(Echo()),
    )
    trainer.train()
    # Before and after the step: four to measure, and the two groups of two that are logged. A turn has at most four characters, and
    # the truth sees the last one.
    assert len(lengths) == 16 and max(lengths) <= 4
    assert all(line["length"]["mean"] > 4 for line in lines(tmp_path / "eval.jsonl"))


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_the_frame_of_a_reply_is_read_off_the_chat_template() -> None:
    tok = tokenizer()
    tok.chat_template = CHATML
    assert reply_frame(tok) == ("<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
    assert reply_frame(tok, "tool")[0].endswith("<|im_start|>tool\n")
    tok.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(CapabilityError, match="chat template"):
        reply_frame(tok)


def test_a_chat_models_own_end_token_is_not_written_twice() -> None:
    from guerdon.engines.trl.environments import _framed

    tok = tokenizer()
    frame = ("<eos>\n", "\n")
    newline, two, eos = tok("\n")["input_ids"][0], tok("2")["input_ids"][0], tok.eos_token_id
    assert _framed(tok, "2", frame, closed=False, ends={eos}) == [eos, newline, two, newline]
    assert _framed(tok, "2", frame, closed=True, ends={eos}) == [newline, two, newline]
