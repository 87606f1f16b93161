"""On a real card: what tests/cuda holds against a device that exists nowhere, and a trainer whose policy is on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_kit import batch, characters, tiny
from test_instruments_on_cuda import bound, composed, options

from guerdon.credit import Drop, GroupNorm, KLPenalty, OnFailure, ToTokens
from guerdon.lm import LocalModel, SpanScorer
from guerdon.rewards import Rewards
from guerdon.segment import ByDelimiter
from guerdon.signals.learned import StepClassifier
from guerdon.system import Model, System
from guerdon.systems import SYSTEMS, VARIANTS

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")]


@pytest.mark.parametrize("name", [*SYSTEMS, *VARIANTS])
def test_every_composition_gives_the_cpus_numbers(name: str, device: str) -> None:
    if name in ("p2s", "co_rewarding_ii") and device != "cpu":
        pytest.skip("it samples, and another device draws other tokens")
    rollouts = batch(**options(name))
    expected = bound(composed(name, there=False), "cpu")(rollouts)
    found = bound(composed(name, there=False), device)(rollouts)
    assert found.advantages.device.type == "cpu"
    for key, rewards in expected.raw.items():
        torch.testing.assert_close(found.raw[key].values, rewards.values, rtol=1e-3, atol=1e-3, equal_nan=True)
    again = bound(composed(name, there=False), device)(rollouts.to(device))
    assert again.advantages.device.type == torch.device(device).type
    torch.testing.assert_close(again.advantages.cpu(), found.advantages, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", ["padded", "packed", "cached"])
def test_log_probabilities_and_their_gradients(share: Any, dtype: torch.dtype, device: str) -> None:
    contexts, targets = ["2+3=", "2+3=4", "a longer one: 7*8="], [" 5", " 6", " 56"]
    values, gradients = [], []
    for place, kind in (("cpu", torch.float32), (device, dtype)):
        model = tiny().to(place, kind)
        read = SpanScorer(LocalModel(model, characters()), share=share).score(contexts, targets, grad=True).values
        read.sum().backward()
        values.append(read.detach().float().cpu())
        gradients.append(model.lm_head.weight.grad.float().cpu())
    close = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(values[1], values[0], **close)
    torch.testing.assert_close(gradients[1], gradients[0], **close)


@pytest.mark.parametrize("lora", [False, True])
def test_a_bf16_step_with_checkpointing_and_a_process_reward_model(lora: bool, device: str, tmp_path: Path) -> None:
    """The policy, what it began as and the reward model by path are on the device, in bfloat16; nothing is there twice."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig

    from guerdon.engines.trl import CreditTrainer, Evaluator

    class OnTheDevice:
        """A user's signal that answers from the device."""

        scope, level = "row", "sequence"

        def __call__(self, rollouts: Any, scores: Any) -> Rewards:
            numbers = [text.count("a") + 0.1 * len(text) for text in rollouts.completions]
            return Rewards.sequence(torch.tensor(numbers, device=device), rollouts)

    for name, kind, changes in (
        ("policy", "LlamaForCausalLM", {}),
        ("prm", "LlamaForTokenClassification", {"num_labels": 2}),
    ):
        tiny(kind, **changes).to(torch.bfloat16).save_pretrained(tmp_path / name)
        characters().save_pretrained(tmp_path / name)
    data = Dataset.from_list([{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(16)])
    chain = [OnFailure("row"), Drop("steps"), GroupNorm("own"), ToTokens("own", "whole"), KLPenalty("own", 0.01)]
    system = System(
        {"own": OnTheDevice(), "steps": StepClassifier(str(tmp_path / "prm"))}, chain, {"steps": ByDelimiter(None, "\n")},
        models={"reference": Model("policy", "phase_start")},
    )  # fmt: skip
    args = GRPOConfig(
        str(tmp_path / "run"), per_device_train_batch_size=8, num_generations=4, max_completion_length=12, max_steps=2,
        bf16=True, use_cpu=device == "cpu", gradient_checkpointing=True, report_to=[], disable_tqdm=True, save_strategy="no",
        learning_rate=1e-2, logging_steps=1, model_init_kwargs={"dtype": "bfloat16"},
    )  # fmt: skip
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    evaluator = Evaluator(data, lambda c, rows: [float("a" in x) for x in c], system, every=1, samples=8)
    trainer = CreditTrainer(
        str(tmp_path / "policy"),
        system,
        args,
        data,
        processing_class=characters(),
        peft_config=adapter,
        monitors=[evaluator],
    )
    trainer.train()
    instruments, kind = trainer.instruments, torch.device(device).type
    began = instruments.as_it_began()
    assert began is instruments.by_role["reference"] is evaluator._initial
    assert (began.model is instruments.policy.model) == lora
    for model in (instruments.policy.model, began.model, system.signals["steps"].load()[0]):
        base = [p for n, p in model.named_parameters() if "lora" not in n]
        assert {p.device.type for p in base} == {kind} and {p.dtype for p in base} == {torch.bfloat16}
    losses = [line for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 2 and all(line["grad_norm"] > 0 for line in losses)
    lines = [json.loads(line) for line in (tmp_path / "run" / "eval.jsonl").read_text().splitlines()]
    assert abs(lines[0]["kl"]["mean"]) < 0.02 and lines[-1]["reward"]["n"] > 0
