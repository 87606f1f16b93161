"""The sixteen traps of TRL 1.16, each with the test or refusal that keeps us out of it.

| trap | what goes wrong | covered by |
| --- | --- | --- |
| 1 | a copy of a trainer's model computes the original's logits | test_initial_policy_is_kept_before_the_trainer_exists |
| 2 | beta reloads an un-warmed reference | test_reference_that_is_not_the_policy_is_refused |
| 3 | NaN becomes a wrong advantage | test_a_failed_source_is_never_trained_on; test_trl_equal: truth column |
| 4 | dropped rows stay in denominators, KL and entropy | test_dropped_rows_leave_every_denominator |
| 5 | one draw in a signal changes the run | test_trl_equal: draws |
| 6 | per-token credit meets row rules | test_row_rules_under_token_credit_warn |
| 7 | truncated rows | test_finished_comes_from_true_lengths, test_masked_truncated_rows_leave_the_statistics |
| 8 | generate with checkpointing on is garbage | test_evaluation_under_checkpointing, test_models_are_handed_back_ready |
| 9 | list-valued advantages crash the table | test_completions_table_with_token_credit |
| 10 | half-written checkpoints, mid-cycle resume, Ctrl-C | test_trl_resume; test_refused_arguments |
| 11 | dead arguments, environment rewards | test_refused_arguments, test_environment_rewards_are_refused |
| 12 | sharded models and uneven forwards | test_what_a_sharded_policy_cannot_do_is_refused; tests/engines/test_sharded.py |
| 13 | multi-turn through rollout_func | test_rollout_func_with_tool_tokens |
| 14 | two views of one question | test_trl_together |
| 15 | DPO | test_refused_arguments (DPOConfig) |
| 16 | group statistics, no critic | test_trl_equal; test_unmeetable_needs_are_refused (values); test_support |
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_kit import (
    Letters,
    TokenLetters,
    count_letters,
    dataset,
    letters_reward,
    parameters,
    plain_system,
    same,
    tiny_model,
    tokenizer,
)

from guerdon.credit import Fuse, GroupNorm, OnFailure, ToTokens
from guerdon.engines.trl import CreditTrainer, Evaluator, compat
from guerdon.engines.trl.batch import Sampled, build_rollouts, finished_rows
from guerdon.engines.trl.instruments import completion_logprobs
from guerdon.errors import CapabilityError
from guerdon.lm.local import LocalModel
from guerdon.rewards import Rewards
from guerdon.rollouts import Clock
from guerdon.system import System

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*gradient_checkpointing.*")


def token_credit() -> System:
    """Token rewards, used as they stand: no scope beyond the row."""
    return System({"hits": TokenLetters()}, [ToTokens("hits")], name="token credit")


# -- 1, 8: models -------------------------------------------------------------------------------------------------------------


def test_initial_policy_is_kept_before_the_trainer_exists(policy_path: str, config: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy_path)
    system = plain_system()
    evaluator = Evaluator(dataset(), None, system, every=100, samples=8)
    seen: list[Any] = []
    trainer = CreditTrainer(
        model,
        system,
        config(),
        dataset(),
        processing_class=tokenizer(),
        monitors=[evaluator, lambda r, s: seen.append(r)],
    )
    trainer.train()
    original = LocalModel(policy_path)
    expected = completion_logprobs(original, seen[0], 1.0)
    assert torch.allclose(completion_logprobs(evaluator._initial, seen[0], 1.0), expected, atol=1e-5)
    assert not torch.allclose(completion_logprobs(trainer.instruments.policy, seen[0], 1.0), expected, atol=1e-2)
    assert evaluator.evaluate() == {}, "the last step was measured already"


def test_evaluation_under_checkpointing(policy_path: str, config: Any) -> None:
    """The same held-out samples with gradient checkpointing on and off, and the training modes put back."""
    found = []
    for checkpointing in (False, True):
        system = plain_system()
        evaluator = Evaluator(
            dataset(), lambda c, rows: [float(len(x)) for x in c], system, every=2, samples=8, kl=False
        )
        trainer = CreditTrainer(
            policy_path, system, config(gradient_checkpointing=checkpointing), dataset(), monitors=[evaluator]
        )
        trainer.model.train()
        trainer.state.max_steps = 10
        line = evaluator.evaluate()
        assert trainer.model.training
        found.append((line["true_success"], line["reward"], line["length"]))
    assert found[0] == found[1]


def test_models_are_handed_back_ready(policy_path: str, config: Any) -> None:
    trainer = CreditTrainer(policy_path, plain_system(), config(gradient_checkpointing=True, max_steps=1), dataset())
    trainer.train()
    assert not trainer.model.training
    assert trainer.model.config.use_cache
    assert not any(getattr(m, "gradient_checkpointing", False) for m in trainer.model.modules())
    assert trainer.status == "finished"


class Confident:
    """A likelihood signal: the mean log-probability of the completion under the policy it was handed."""

    scope, level, roles, needs = "row", "sequence", ("policy",), frozenset({"logprobs.reference"})

    def __init__(self) -> None:
        self.modes: list[bool] = []

    def bind(self, role: str, model: Any) -> None:
        self.model = model

    def __call__(self, rollouts: Any, scores: Any) -> Rewards:
        once, twice = (completion_logprobs(self.model, rollouts, 1.0) for _ in range(2))
        assert torch.equal(once, twice), "dropout was active while the policy was measured"
        reference = rollouts.logprob("reference")
        assert reference.temperature == 0.7
        self.modes.append(self.model.model.training)
        return Rewards.sequence((once - reference.values).sum(1), rollouts)


def test_lora_policy_is_measured_without_dropout_and_its_reference_without_adapter(
    policy_path: str, config: Any
) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.5, task_type="CAUSAL_LM")
    signal = Confident()
    system = System({"confident": signal}, [GroupNorm("confident"), ToTokens("confident", "whole")])
    seen: list[Any] = []
    trainer = CreditTrainer(
        policy_path,
        system,
        config(max_steps=2, temperature=0.7),
        dataset(),
        peft_config=lora,
        monitors=[lambda r, s: seen.append(r)],
    )
    modes: list[bool] = []
    step = trainer.training_step

    def watched(*args: Any, **kwargs: Any) -> Any:
        loss = step(*args, **kwargs)
        modes.append(any(m.training for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout)))
        return loss

    trainer.training_step = watched  # type: ignore[method-assign]
    trainer.train()
    assert signal.modes == [False, False] and modes == [True, True]
    assert len(seen) == 2
    for rollouts in seen:
        base = completion_logprobs(LocalModel(policy_path), rollouts, 0.7)
        assert torch.allclose(rollouts.logprob("reference").values, base, atol=1e-4)


# -- 2: the reference -----------------------------------------------------------------------------------------------------------


def test_reference_that_is_not_the_policy_is_refused(policy_path: str, config: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    with pytest.raises(CapabilityError, match="no model folder"):
        CreditTrainer(tiny_model(), plain_system(), config(beta=0.1), dataset(), processing_class=tokenizer())
    gone = AutoModelForCausalLM.from_pretrained(policy_path)
    gone.config._name_or_path = str(tmp_path / "gone.gguf")
    with pytest.raises(CapabilityError, match=r"gone\.gguf"):
        CreditTrainer(gone, plain_system(), config(beta=0.1), dataset(), processing_class=tokenizer())
    warmed = AutoModelForCausalLM.from_pretrained(policy_path)
    with torch.no_grad():
        warmed.model.norm.weight.mul_(1.5)
    with pytest.raises(CapabilityError, match=r"model\.norm\.weight differs.*save_pretrained"):
        CreditTrainer(warmed, plain_system(), config(beta=0.1), dataset(), processing_class=tokenizer())
    CreditTrainer(policy_path, plain_system(), config(beta=0.1), dataset())


# -- 3, 4, 7: cells that failed, rows that were dropped --------------------------------------------------------------------------


def test_a_failed_source_is_never_trained_on(policy_path: str, config: Any) -> None:
    """Two sources, one of them NaN in rows 1 and 6: TRL's own aggregation would train on what is left of their sum."""
    system = System(
        {"letters": Letters(), "broken": Letters(fail=(1, 6))},
        [OnFailure("row"), Fuse("letters", "broken", into="both"), GroupNorm("both"), ToTokens("both", "whole")],
    )
    seen: list[Any] = []
    trainer = CreditTrainer(
        policy_path, system, config(max_steps=1), dataset(), monitors=[lambda r, s: seen.append((r, s))]
    )
    trainer.train()
    rollouts, scores = seen[0]
    assert scores.keep.tolist() == [row not in (1, 6) for row in range(8)]
    assert not scores.advantages[[1, 6]].any()
    rest = [0, 2, 3]  # the first group without its failed row: statistics over three
    reward = torch.tensor([2 * count_letters(rollouts.completions[row]) for row in rest])
    expected = (reward - reward.mean()) / (reward.std() + 1e-4)
    assert torch.allclose(scores.advantages[rest, 0], expected, atol=1e-5)
    first = trainer.state.log_history[0]
    assert first["kept"] == 0.75
    assert first["rewards/broken/mean"] == pytest.approx(float(scores.raw["broken"].row_total().nanmean()), abs=1e-5)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo", "luspo"])
def test_dropped_rows_leave_every_denominator(policy_path: str, config: Any, loss_type: str) -> None:
    """The loss of a batch with dropped rows is TRL's loss of the batch without them: policy, KL and entropy terms."""
    from trl import GRPOTrainer

    args = config(max_steps=1, beta=0.2, entropy_coef=0.05, loss_type=loss_type, num_iterations=2)
    trainer = CreditTrainer(policy_path, plain_system(Letters(fail=(1, 6))), args, dataset())
    trainer.train()
    trainer.model.train()
    (inputs,) = trainer._buffered_inputs
    assert inputs["row_share"] == pytest.approx(8 / 6) and "old_per_token_logps" in inputs
    kept = inputs["tool_mask"].any(1)
    assert int(kept.sum()) == 6
    without = {
        k: v[kept] if v.dim() else v
        for k, v in inputs.items()
        if k not in ("tool_mask", "row_share", "num_items_in_batch")
    }
    without["num_items_in_batch"] = without["completion_mask"].sum()
    assert inputs["num_items_in_batch"] == without["num_items_in_batch"]
    with torch.no_grad():
        ours = trainer._compute_loss(trainer.model, inputs)
        theirs = GRPOTrainer._compute_loss(trainer, trainer.model, without)
        naive = GRPOTrainer._compute_loss(
            trainer, trainer.model, {k: v for k, v in inputs.items() if k not in ("tool_mask", "row_share")}
        )
    assert float(ours) == pytest.approx(float(theirs), abs=2e-6)
    assert abs(float(naive) - float(theirs)) > 1e-4, "dropped rows made no difference, so nothing was shown"
    assert trainer.beta == 0.2


def test_a_batch_in_which_everything_failed_trains_on_nothing(policy_path: str, config: Any) -> None:
    trainer = CreditTrainer(
        policy_path, plain_system(Letters(fail=tuple(range(8)))), config(max_steps=2, beta=0.1), dataset()
    )
    before = parameters(trainer)
    trainer.train()
    assert same(before, parameters(trainer))
    assert [line["loss"] for line in trainer.state.log_history if "loss" in line] == [0.0, 0.0]


def test_finished_comes_from_true_lengths() -> None:
    eos = 1
    rows = [[5, 6, 7], [5, eos], [5, 6, eos], [5], []]
    assert finished_rows(rows, {eos}, 3).tolist() == [False, True, True, True, False]
    # pad = eos: the mask comes from lengths, so a sampled eos is a token and padding is not
    tok = tokenizer()
    tok.pad_token = tok.eos_token
    sampled = Sampled([[4, 5], [4]], [[5, 6, 7], [8, eos]])
    rollouts = build_rollouts(
        sampled, ["ab", "a"], {}, tokenizer=tok, stop_ids={eos}, cap=3, group_size=2, rank=1, clock=Clock()
    )
    assert rollouts.mask.tolist() == [[True] * 3, [True, True, False]]
    assert rollouts.lengths.tolist() == [3, 2]
    assert rollouts.completions[1] == "f" and rollouts.offsets is not None
    assert rollouts.offsets[1].tolist() == [[0, 1], [1, 1], [1, 1]]
    assert rollouts.groups.tolist() == [1, 1] and rollouts.sample_ids.tolist() == [2, 3]


def test_masked_truncated_rows_leave_the_statistics(policy_path: str, config: Any) -> None:
    seen: list[Any] = []
    args = config(mask_truncated_completions=True, max_steps=3, learning_rate=0.0)
    trainer = CreditTrainer(policy_path, plain_system(), args, dataset(), monitors=[lambda r, s: seen.append((r, s))])
    trainer.train()
    assert any(r.finished.any() for r, _ in seen) and any((~r.finished).any() for r, _ in seen)
    for rollouts, scores in seen:
        assert torch.equal(scores.keep, rollouts.finished)
        assert rollouts.lengths.min() > 0, "the true lengths, not TRL's emptied masks"


# -- 6, 9: credit by token --------------------------------------------------------------------------------------------------------


def test_row_rules_under_token_credit_warn(config: Any) -> None:
    advantages = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    constant = torch.tensor([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0]])
    for changes, text in (
        ({"loss_type": "vespo"}, "vespo"),
        ({"loss_type": "sapo"}, "sapo"),
        ({"off_policy_mask_threshold": 0.1}, "single tokens"),
        ({"top_entropy_quantile": 0.2}, "low-entropy"),
    ):
        (found,) = compat.credit_warnings(config(**changes), advantages, mask)
        assert text in found
        assert compat.credit_warnings(config(**changes), constant, mask) == []
    assert compat.credit_warnings(config(), advantages, mask) == []


def test_completions_table_with_token_credit(policy_path: str, config: Any, tmp_path: Path) -> None:
    import pandas

    args = config(log_completions=True, max_steps=1, loss_type="sapo")
    trainer = CreditTrainer(policy_path, token_credit(), args, dataset(), truth=lambda c, rows: [1.0] * len(c))
    with pytest.warns(UserWarning, match="sapo"):
        trainer.train()
    (table,) = (Path(args.output_dir) / "completions").glob("*.parquet")
    frame = pandas.read_parquet(table)
    assert frame["advantage"].dtype.kind == "f" and len(frame) == 8
    assert frame["true"].tolist() == [1.0] * 8
    (inputs,) = trainer._buffered_inputs
    assert inputs["advantages"].shape == inputs["completion_mask"].shape
    assert inputs["advantages"].unique().numel() > 1


# -- 13: environments of our own -----------------------------------------------------------------------------------------------------


def test_rollout_func_with_tool_tokens(policy_path: str, config: Any) -> None:
    """Prompts come repeated, logprobs may be None, env_mask says what the policy wrote, extra lists become columns."""
    tok = tokenizer()

    def roll(prompts: list[str], trainer: Any) -> dict[str, Any]:
        ids = [tok(p)["input_ids"] for p in prompts]
        own = [
            tok("abc")["input_ids"] + tok("123")["input_ids"] + tok("d" * (i % 3))["input_ids"] + [1]
            for i in range(len(prompts))
        ]
        mask = [[1] * 3 + [0] * 3 + [1] * (len(row) - 6) for row in own]
        return {
            "prompt_ids": ids,
            "completion_ids": own,
            "logprobs": None,
            "env_mask": mask,
            "turns": list(range(len(prompts))),
        }

    seen: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = CreditTrainer(
            policy_path,
            token_credit(),
            config(max_steps=1),
            dataset(),
            rollout_func=roll,
            monitors=[lambda r, s: seen.append((r, s))],
        )
        trainer.train()
    rollouts, _ = seen[0]
    assert rollouts.columns["turns"] == list(range(8)) and "answer" in rollouts.columns
    assert rollouts.policy_mask[0].tolist() == [True] * 3 + [False] * 3 + [True] + [False] * 2
    assert rollouts.mask.sum(1).tolist() == [7 + i % 3 for i in range(8)]
    assert rollouts.prompts[0] == rollouts.prompts[3] != rollouts.prompts[4]
    (inputs,) = trainer._buffered_inputs
    assert torch.equal(
        inputs["tool_mask"].bool() & inputs["completion_mask"].bool(), rollouts.policy_mask[_order(inputs, rollouts)]
    )


def _order(inputs: Any, rollouts: Any) -> list[int]:
    """Rows of TRL's shuffled batch in terms of ours, by content (rows with equal content are interchangeable)."""
    ours = [
        (tuple(p), tuple(c))
        for p, c in zip(rollouts.prompt_ids.tolist(), rollouts.completion_ids.tolist(), strict=True)
    ]
    theirs = zip(inputs["prompt_ids"].tolist(), inputs["completion_ids"].tolist(), strict=True)
    return [ours.index((tuple(p), tuple(c))) for p, c in theirs]


def test_rewards_reach_the_right_rows_after_the_shuffle(policy_path: str, config: Any) -> None:
    seen: list[Any] = []
    trainer = CreditTrainer(
        policy_path, token_credit(), config(max_steps=1), dataset(), monitors=[lambda r, s: seen.append((r, s))]
    )
    trainer.train()
    (inputs,) = trainer._buffered_inputs
    rollouts, scores = seen[0]
    assert torch.equal(inputs["advantages"], scores.advantages[_order(inputs, rollouts)])
    assert trainer.state.log_history[0]["reward"] == pytest.approx(float(scores.reward.mean()), abs=1e-5)
    assert letters_reward(["abc"]) == [pytest.approx(3.03)]
