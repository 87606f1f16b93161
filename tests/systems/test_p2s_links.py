"""The links of P2S: weights of steps, the switch between outcome and steps, and chains from a file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from p2s_kit import HALF, PROMPT, RIGHT, SUMS, WRONG, tokens

import guerdon
from guerdon import Clock, Rewards, Rollouts
from guerdon.credit import Hierarchical, WeightedSteps, hierarchical_rewards, sigmoid_step_weights
from guerdon.errors import CapabilityError, ConfigError
from guerdon.systems.p2s import VECTORS, p2s

# --- links -------------------------------------------------------------------------------------------------------------------


def test_the_default_is_what_the_record_supports() -> None:
    """The sum over a suffix; the mean was taught by in one seed of five."""
    assert p2s(gold="gold", layout=SUMS).signals["pfr"].over == {"suffix": "sum", "answer": "mean"}
    assert p2s(gold="gold", layout=SUMS, suffix_reduction="mean").signals["pfr"].over["suffix"] == "mean"


def test_weights_grow_sum_to_one_and_survive_any_steepness() -> None:
    mask = torch.tensor(
        [[True, True, True, False], [True, False, True, True], [True, False, False, False], [False] * 4]
    )
    weights = sigmoid_step_weights(mask, 10.0)
    assert weights.sum(1).tolist() == pytest.approx([1, 1, 1, 0]) and bool((weights[~mask] == 0).all())
    assert weights[0, :3].tolist() == pytest.approx(weights[1, [0, 2, 3]].tolist())
    for steepness in (1e4, -1e4):
        extreme = sigmoid_step_weights(mask, steepness)
        assert torch.isfinite(extreme).all() and extreme.sum(1).tolist() == pytest.approx([1, 1, 1, 0])
    assert sigmoid_step_weights(mask, -1e4)[0, 0] == pytest.approx(1)
    assert VECTORS["sigmoid_step_weights"](0).tolist() == []


def test_the_switch_is_group_by_group() -> None:
    layout = torch.tensor([True, True, True, True, False, True])
    outcome = torch.tensor([1.0, 0.3, 0.3, 0.0, 1.0, 0.2])
    process = torch.tensor([9.0, 0.0, 0.0, -float("inf"), 9.0, 0.0])
    groups = torch.tensor([7, 7, 2, 2, 2, 5])
    applies = torch.tensor([True, True, True, True, True, False])
    values, solved = hierarchical_rewards(layout, outcome, process, groups, applies=applies)
    assert values.tolist() == pytest.approx([1.0, 0.3, 0.25, 0.0, -1.0, 0.2])  # a malformed right answer solves nothing
    assert solved.tolist() == [True, True, False, False, False, False]
    kept, _ = hierarchical_rewards(layout, outcome, process, groups, counts=torch.tensor([False] + [True] * 5))
    assert kept[1] == pytest.approx(0.25)  # its only right one was dropped
    with pytest.raises(ConfigError, match="outrank"):
        Hierarchical("a", "b", "c", scale=2.0)


class Column:
    """A signal that reads its scores from a data column."""

    scope, level = "row", "sequence"

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, rollouts: Rollouts, scores: object) -> Rewards:
        return Rewards.sequence(torch.tensor(rollouts.column(self.name)), rollouts)


def batch(lm: Any, texts: list[str], ok: list[float], **more: Any) -> Rollouts:
    columns = {"answer": ["12"] * len(texts), "gold": ["3+b5=8\n8+c4=12\n"] * len(texts), "ok": ok}
    return tokens(
        lm, [PROMPT] * len(texts), texts, columns=columns, group_ids=torch.zeros(len(texts), dtype=torch.long), **more
    )


def test_all_wrong_groups_have_advantages_and_outcomes_alone_have_none(lm: Any) -> None:
    rollouts = batch(lm, [HALF, WRONG, "12", HALF[:-2] + "#7"], [0.0] * 4)
    ours = p2s(verifier=Column("ok"), layout=SUMS, gold="gold", format_warmup=0.0)
    ours.bind("policy", lm)
    scores = ours(rollouts)
    assert bool((scores.advantages[:, 0].abs() > 1e-3).all())
    assert scores.reward is not None and float(scores.reward[2]) == -1.0  # no answer line
    rest = scores.reward[[0, 1, 3]]
    assert bool(((rest > 0) & (rest < 0.5)).all()) and len(set(rest.tolist())) > 1
    steps = scores.raw["pfr.steps"]
    weights = sigmoid_step_weights(steps.mask)
    process = (weights[0] * steps.values[0]).sum()
    assert float(scores.reward[0]) == pytest.approx(float(0.5 * torch.sigmoid(process)), abs=1e-5)
    alone = guerdon.systems.grpo(verifier=Column("ok"))(rollouts)
    assert not alone.advantages.any()
    assert scores.metrics["reward/process"] == 0.75 and scores.metrics["reward/solved_groups"] == 0.0


def test_solved_groups_ask_the_model_nothing(lm: Any) -> None:
    rollouts = batch(lm, [RIGHT, WRONG, "12"], [1.0, 0.0, 0.0])
    system = p2s(verifier=Column("ok"), layout=SUMS, gold="gold", format_warmup=0.0)  # no model is bound
    scores = system(rollouts)
    assert scores.reward is not None and scores.reward.tolist() == [1.0, 0.0, -1.0]
    assert not scores.raw["pfr.steps"].mask.any()
    default = p2s(layout=SUMS, gold="gold", format_warmup=0.0)(rollouts)
    assert default.reward is not None and default.reward.tolist() == [
        1.0,
        0.0,
        -1.0,
    ]  # ROUGE of "12" and "1" against "12"


def test_additive_integration_and_the_format_warm_up(lm: Any) -> None:
    rollouts = batch(lm, [RIGHT, WRONG, "12"], [1.0, 0.0, 0.0])
    both = p2s(verifier=Column("ok"), layout=SUMS, gold="gold", integration="additive", weight=2.0, format_warmup=0.0)
    both.bind("policy", lm)
    scores = both(rollouts)
    weighted = WeightedSteps("pfr.steps", into="process")(scores_with(scores.raw), rollouts)["process"].values[:, 0]
    assert scores.reward is not None
    assert scores.reward.tolist() == pytest.approx([1 + 2 * float(weighted[0]), 2 * float(weighted[1]), -1.0], abs=1e-5)
    warm = p2s(verifier=Column("ok"), layout=SUMS, gold="gold", format_warmup=0.5)
    early = warm(replace(rollouts, clock=Clock(4, 10, True)))
    late = warm(replace(rollouts, clock=Clock(5, 10, True)))
    held_out = warm(replace(rollouts, clock=Clock(4, 10, False)))
    assert early.reward is not None and early.reward.tolist() == [1.0, 1.0, 0.0]
    assert late.reward is not None and held_out.reward is not None
    assert late.reward.tolist() == held_out.reward.tolist() == [1.0, 0.0, -1.0]
    with pytest.raises(CapabilityError, match="max_steps"):
        warm(replace(rollouts, clock=Clock(4, None, True)))
    with pytest.raises(ConfigError, match="integration"):
        p2s(integration="sum")  # type: ignore[arg-type]


def scores_with(raw: dict[str, Rewards]) -> Any:
    from guerdon.rewards import Scores

    return Scores(dict(raw), torch.ones(3, dtype=torch.bool))


def test_a_question_without_a_chain_keeps_its_outcome(lm: Any) -> None:
    rollouts = batch(lm, [HALF, WRONG], [0.25, 0.0])
    rollouts = replace(rollouts, columns={**rollouts.columns, "gold": [None, None]})
    system = p2s(verifier=Column("ok"), layout=SUMS, gold="gold", format_warmup=0.0)
    system.bind("policy", lm)
    reward = system(rollouts).reward
    assert reward is not None and reward.tolist() == [0.25, 0.0]


def test_the_task_brings_layout_and_hint() -> None:
    from guerdon.lm.load import load_tokenizer
    from guerdon.systems.context import Context, build
    from guerdon.tasks import load_task

    assert load_tokenizer is not None
    system = build("p2s:max_steps=3", Context(load_task("sums,train_size=20,held_out_size=5"), None, "tiny"))
    assert "answer=('#', '')" in str(system) and "hint=''" in str(system) and "pieces=3" in str(system)
    assert system.needs == {"policy", "policy.generate"}


# --- the pipeline ------------------------------------------------------------------------------------------------------------


def test_chains_of_a_file_are_resumed_and_can_be_trained_on(lm: Any, tmp_path: Any) -> None:
    import json

    from guerdon.io.chains import gold_chain_phase, write_gold_chains
    from guerdon.phases import run_phases

    rows = [{"prompt": f"a{i}+b1=?\n", "answer": str(i + 1), "topic": i} for i in range(1, 8)] + [
        {"prompt": "q", "answer": None}
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # An untrained model keeps to a layout only by luck: any text with one "=" and one line after it will do.
    options: dict[str, Any] = {
        "layout": ["", "", "=", ""],
        "hint": "",
        "candidates": 6,
        "max_new_tokens": 16,
        "batch_size": 3,
    }
    done = write_gold_chains(source, tmp_path / "out.jsonl", lm, **options)
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert done.rows == len(out) == 8 and [row["topic"] for row in out[:7]] == list(range(1, 8))
    assert out[7]["gold_chain"] is None and "no answer" in out[7]["gold_reason"]
    assert done.left_out == sum(row["gold_chain"] is None for row in out)
    for row in out:
        assert (row["gold_chain"] is None) == (row["gold_reason"] is not None) == (row["gold_logprob"] is None)

    class Stopping(type(lm)):  # type: ignore[misc]
        calls = 0

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            Stopping.calls += 1
            if Stopping.calls == 2:
                raise KeyboardInterrupt
            return super().generate(*args, **kwargs)

    with pytest.raises(KeyboardInterrupt):
        write_gold_chains(source, tmp_path / "again.jsonl", Stopping(lm.model, lm.tokenizer), **options)
    resumed = write_gold_chains(source, tmp_path / "again.jsonl", lm, **options)
    assert resumed.resumed_at == 3 and (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    (manifest,) = run_phases([gold_chain_phase(source, lm, **options)], tmp_path / "recipe")
    assert manifest["result"]["rows"] == 8
