"""LaSeR through the trainer and the command line: the step by hand, and what is left when its parts are switched off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from laser_kit import PROMPTS, TEXTS, alone, signal

from guerdon import ConfigError, Rewards, Rollouts
from guerdon.objectives.self_reward import SelfRewardRegression, class_weights
from guerdon.rewards import Scores
from guerdon.systems.laser import laser

# --- through the trainer ---------------------------------------------------------------------------------------------


class Half:
    """Right where the text has an even number of characters; `flat` = always right."""

    scope, level = "row", "sequence"

    def __init__(self, flat: bool = False) -> None:
        self.flat = flat

    def __call__(self, rollouts: Rollouts, scores: object) -> Rewards:
        return Rewards.sequence([float(self.flat or len(t) % 2 == 0) for t in rollouts.completions], rollouts)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

    folder = tmp_path_factory.mktemp("policy")
    tokenizer = char_tokenizer()
    model = new_model(tokenizer, TinyConfig(hidden=16, layers=1, heads=2, intermediate=32, positions=64), 0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def step(
    policy: str, folder: Any, system: Any, **changes: Any
) -> tuple[dict[str, torch.Tensor], Rollouts, Scores, Any]:
    """One SGD step; the gradient it took, the rollouts it took it on, and the trainer."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig

    from guerdon.engines.trl import CreditTrainer, RolloutLog
    from guerdon.tasks.tiny import char_tokenizer

    model = AutoModelForCausalLM.from_pretrained(policy)
    with torch.no_grad():  # an untrained policy ends one text in a hundred
        model.get_output_embeddings().weight[char_tokenizer().eos_token_id] *= 3
    seen: list[Any] = []
    settings = dict(
        output_dir=str(folder), per_device_train_batch_size=16, num_generations=4, max_completion_length=16, max_steps=1,
        learning_rate=0.25, lr_scheduler_type="constant", temperature=0.8, beta=0.0, loss_type="dr_grpo",
        max_grad_norm=1e9, logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, bf16=False,
        gradient_checkpointing=False, seed=3,
    )  # fmt: skip
    trainer = CreditTrainer(
        model, system, GRPOConfig(**{**settings, **changes}),  # type: ignore[arg-type]
        Dataset.from_list([{"prompt": f"{i}+{i}="} for i in range(8)]), processing_class=char_tokenizer(),
        monitors=[lambda rollouts, scores: seen.append((rollouts, scores)) and None],
        optimizers=(torch.optim.SGD(model.parameters(), lr=0.25), None), rollout_log=RolloutLog(every=0),
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    gradient = {name: (before[name] - p.detach()) / 0.25 for name, p in model.named_parameters()}
    trainer.before = before
    return gradient, *seen[0], trainer


def by_hand(policy: str, before: dict[str, torch.Tensor], rollouts: Rollouts, right: torch.Tensor, weights: Any) -> Any:
    """grad of alpha mean over rows of w (r_s - r_v)^2, every row in a forward of its own."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    model.load_state_dict(before, strict=False)
    assert rollouts.completion_ids is not None and rollouts.prompt_ids is not None and rollouts.prompt_mask is not None
    assert rollouts.finished is not None
    total = torch.zeros(())
    for row in rollouts.finished.nonzero()[:, 0].tolist():
        ids = torch.cat(
            [rollouts.prompt_ids[row][rollouts.prompt_mask[row]], rollouts.completion_ids[row][rollouts.mask[row]]]
        )
        logprob = model(ids[None]).logits[0, -1].log_softmax(-1)[96]
        total = total + weights[row] * (0.25 * (logprob + 8.0) - right[row]) ** 2
    loss = 0.1 * total / len(rollouts)
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


OPTIONS: dict[str, Any] = {"token": 96, "constant": -8.0, "beta": 0.25, "warmup": 0}


@pytest.mark.parametrize("balance", [True, False])
def test_where_rewards_are_flat_the_step_is_the_scores_gradient_alone(
    policy: str, tmp_path: Any, balance: bool
) -> None:
    gradient, rollouts, scores, trainer = step(
        policy, tmp_path, laser(verifier=Half(flat=True), mix=0.0, balance=balance, **OPTIONS)
    )
    assert rollouts.finished is not None and 3 < int(rollouts.finished.sum()) < 16, "some end, some are cut"
    expected = by_hand(policy, trainer.before, rollouts, torch.ones(16), [0.5 if balance else 1.0] * 16)
    largest = max(float(g.abs().max()) for g in expected.values())
    assert largest > 1e-4
    for name, value in expected.items():
        torch.testing.assert_close(gradient[name], value, rtol=2e-3, atol=1e-3 * largest)
    logged = trainer.state.log_history[0]
    finished = scores.raw["self"].values[:, 0][rollouts.finished]
    assert logged["objective/self_reward_right"] == pytest.approx(float(finished.mean()), rel=1e-4)


def test_the_step_is_grpos_plus_the_scores(policy: str, tmp_path: Any) -> None:
    """No policy gradient reaches the token of the score, and class weights are those of the whole batch."""
    from guerdon.systems.outcome import grpo

    plain, *_ = step(policy, tmp_path / "a", grpo(verifier=Half(), eps=1e-6))
    ours, rollouts, scores, trainer = step(policy, tmp_path / "b", laser(verifier=Half(), mix=0.0, **OPTIONS))
    right = scores.raw["answer"].values[:, 0]
    weights = class_weights(right > 0.5, rollouts.finished)  # type: ignore[arg-type]
    own = by_hand(policy, trainer.before, rollouts, right, weights)
    largest = max(float(g.abs().max()) for g in own.values())
    for name, value in own.items():
        torch.testing.assert_close(ours[name] - plain[name], value.float(), rtol=5e-3, atol=2e-3 * largest)
    parts, *_ = step(
        policy, tmp_path / "c", laser(verifier=Half(), mix=0.0, **OPTIONS),
        per_device_train_batch_size=4, gradient_accumulation_steps=4,
    )  # fmt: skip
    for name, value in ours.items():
        torch.testing.assert_close(parts[name], value, rtol=2e-3, atol=1e-3 * largest)


def test_without_its_parts_it_is_grpo_to_the_last_bit(policy: str, tmp_path: Any) -> None:
    from guerdon.systems.outcome import grpo

    plain, *_ = step(policy, tmp_path / "a", grpo(verifier=Half(), eps=1e-6))
    ours, *_ = step(policy, tmp_path / "b", laser(verifier=Half(), mix=0.0, coefficient=0.0, **OPTIONS))
    assert all(torch.equal(value, ours[name]) for name, value in plain.items())


def test_calibration_comes_before_the_first_scores(policy: str, tmp_path: Any) -> None:
    system = laser(verifier=Half(), token=96, beta=0.5, warmup=0, mix_after=0)
    _, rollouts, scores, trainer = step(policy, tmp_path, system)
    assert not scores.raw["self"].failed.any() and rollouts.finished is not None
    assert float(scores.raw["self"].values[rollouts.finished].mean()) == pytest.approx(0, abs=1e-5)
    assert torch.equal(scores.reward, scores.raw["answer"].values[:, 0]), "the score is no part of the reward"
    assert 0 <= scores.metrics["self/auroc"] <= 1 and "self/f1" in scores.metrics
    assert trainer.state.log_history[0]["self/constant"] == pytest.approx(system.signals["self"].calibration.constant)


def test_objectives_refuse_what_they_cannot_do(lm: Any) -> None:
    with pytest.raises(ConfigError, match="divide="):
        SelfRewardRegression(signal(lm), divide="tokens")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="coefficient="):
        SelfRewardRegression(signal(lm), coefficient=-1.0)


def test_it_trains_from_the_command_line_and_scores_files(policy: str, tmp_path: Any) -> None:
    pytest.importorskip("trl")
    import json

    from typer.testing import CliRunner

    from guerdon.cli.main import app
    from guerdon.lm import LocalModel

    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps({"question": f"{i}+{i}=", "answer": str(2 * i)}) + "\n" for i in range(12)))
    run = CliRunner().invoke(
        app,
        ["train", "--system", "laser:token=96,beta=0.5", "--task", f"{data},verifier=exact", "--model", policy,
         "--steps", "2", "--out", str(tmp_path / "run"), "--group-size", "2", "--set", "prompts_per_step=4", "--set",
         "eval_prompts=2", "--set", "max_completion_length=30", "--quiet"],
    )  # fmt: skip
    assert run.exit_code == 0, run.output + str(run.exception)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and {"answer", "self"} <= lines[0]["components"].keys() and "self/f1" in lines[0]["chain"]
    assert lines[0]["reward"] == lines[0]["components"]["answer"]["mean"]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(json.dumps({"prompt": p, "completion": t}) + "\n" for p, t in zip(PROMPTS, TEXTS, strict=True))
    )
    command = ["score", str(source), str(target), "--model", policy, "--quiet", "--reward"]
    refused = CliRunner().invoke(app, [*command, "last_token:token=96"])
    assert refused.exit_code and "needs constant" in str(refused.exception)
    scored = CliRunner().invoke(app, [*command, "last_token:token=96,constant=-5.0"])
    assert scored.exit_code == 0, scored.output + str(scored.exception)
    model = LocalModel(policy)
    found = [json.loads(line)["reward"] for line in target.read_text().splitlines()]
    assert found == pytest.approx([0.1 * (alone(model, row) + 5.0) for row in range(3)], abs=1e-5)
