"""Every published composition with its real signals, its models on a device: no mixing, and the CPU's numbers. So with the engine:
the density ratio's models, the evaluator, and the install of credit into the trainer's batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_kit import Given, batch, characters, tiny

from guerdon import Rewards, Scores, System
from guerdon.credit import GroupNorm, ToTokens
from guerdon.lm import LocalModel
from guerdon.signals import Conciseness
from guerdon.signals.learned import RewardModel, StepClassifier
from guerdon.signals.placing import place
from guerdon.systems import SYSTEMS, VARIANTS
from guerdon.systems.base import builder_of
from guerdon.testing import fake_cuda, on_cpu, on_cuda

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def instrument(seed: int = 0, **changes: Any) -> LocalModel:
    return LocalModel(tiny(seed=seed, **changes), characters(), max_tokens=512)


def parts(there: bool) -> dict[str, Any]:
    """What a user would bring, by parameter name."""
    return {
        "verifier": Given(there=there),
        "prm": StepClassifier(tiny("LlamaForTokenClassification", num_labels=2), tokenizer=characters()),
        "rm": RewardModel(tiny("LlamaForSequenceClassification", seed=1, num_labels=1), tokenizer=characters()),
        "crm": Conciseness(
            RewardModel(tiny("LlamaForSequenceClassification", seed=2, num_labels=1), tokenizer=characters())
        ),
        "strong": instrument(3),
        "weak": instrument(4),
        "signals": {"a": Given(there=there), "b": Given(seed=1, there=there)},
    }


def composed(name: str, *, there: bool) -> System:
    """The default composition with real parts and models, on the CPU."""
    given = parts(there)
    wanted = inspect.signature(builder_of(name)).parameters.values()
    return builder_of(name)(**{p.name: given[p.name] for p in wanted if p.default is p.empty})


def bound(system: System, device: str) -> System:
    """The system placed on a device, as an engine does it, with a model for every role."""
    system.to(device)
    for n, role in enumerate(sorted({role for part in system.parts() for role in getattr(part, "roles", ())})):
        model = instrument(10 + n)
        place(model, device)
        system.bind(role, model)
    return system


def options(name: str) -> dict[str, Any]:
    """Columns some systems need besides."""
    rollouts = batch()
    views = {"view": [0, 1] * 4, "verifiable": [True] * 4 + [False] * 4}
    return {"columns": {**rollouts.columns, **views}}


@pytest.mark.parametrize("name", [*SYSTEMS, *VARIANTS])
def test_every_composition_with_its_models_on_the_device(name: str) -> None:
    rollouts = batch(**options(name))
    expected = bound(composed(name, there=False), "cpu")(rollouts)
    with fake_cuda() as device:
        system = bound(composed(name, there=True), "cuda")
        scores = system(rollouts)
        assert scores.advantages.device.type == scores.keep.device.type == "cpu"
        again = bound(composed(name, there=True), "cuda")(rollouts.to(device))
        assert again.advantages.device == device
    for found in (scores, on_cpu(again.advantages), again):
        if isinstance(found, torch.Tensor):
            torch.testing.assert_close(found, expected.advantages, rtol=1e-4, atol=1e-5)
            continue
        for key, rewards in expected.raw.items():
            torch.testing.assert_close(
                on_cpu(found.raw[key].values), rewards.values, rtol=1e-4, atol=1e-5, equal_nan=True
            )
    assert torch.equal(on_cpu(again.keep), expected.keep)


LEARNED = {
    "steps": lambda **kw: StepClassifier(
        tiny("LlamaForTokenClassification", num_labels=2), tokenizer=characters(), **kw
    ),
    "steps, retokenized": lambda **kw: StepClassifier(
        tiny("LlamaForTokenClassification", num_labels=2), tokenizer=characters(), retokenize=True, **kw
    ),
    "score": lambda **kw: RewardModel(
        tiny("LlamaForSequenceClassification", num_labels=1), tokenizer=characters(), **kw
    ),
    "score, retokenized": lambda **kw: RewardModel(
        tiny("LlamaForSequenceClassification", num_labels=1), tokenizer=characters(), retokenize=True, **kw
    ),
}


@pytest.mark.parametrize("rollouts_there", [False, True], ids=["rollouts on cpu", "rollouts on cuda"])
@pytest.mark.parametrize("name", LEARNED)
def test_learned_signals_called_directly(name: str, rollouts_there: bool) -> None:
    from guerdon.segment import ByDelimiter

    rollouts = batch()
    rollouts = rollouts.with_spans(steps=ByDelimiter(None, "\n\n")(rollouts))
    expected = LEARNED[name]()(rollouts)
    with fake_cuda() as device:
        signal = LEARNED[name]()
        signal.to(device)
        given = signal(rollouts.to(device) if rollouts_there else rollouts)
        assert {p.device for p in signal.load()[0].parameters()} == {device}
        assert given.values.device.type == ("cuda" if rollouts_there else "cpu")
    torch.testing.assert_close(on_cpu(given.values), expected.values, equal_nan=True)
    assert given.reasons == expected.reasons


def test_an_explicit_device_and_dtype_stay(tmp_path: Path) -> None:
    tiny("LlamaForSequenceClassification", num_labels=1).save_pretrained(tmp_path)
    characters().save_pretrained(tmp_path)
    with fake_cuda() as device:
        for chosen, expected in (
            ({}, (device, torch.bfloat16)),
            ({"device": "cpu"}, (torch.device("cpu"), torch.bfloat16)),
            ({"dtype": torch.float16}, (device, torch.float16)),
        ):
            for loaded_before in (False, True):
                signal = RewardModel(str(tmp_path), **chosen)
                if loaded_before:
                    signal.load()
                signal.to(device, torch.bfloat16)
                signal.to(device, torch.bfloat16)
                weight = next(signal.load()[0].parameters())
                assert (weight.device, weight.dtype) == expected, (chosen, loaded_before)


def test_density_ratio_loads_both_models_where_the_policy_is(tmp_path: Path) -> None:
    from guerdon.signals.likelihood.density_ratio import DensityRatio

    for n, role in enumerate(("strong", "weak")):
        tiny(seed=n).save_pretrained(tmp_path / role)
        characters().save_pretrained(tmp_path / role)
    expected = DensityRatio(str(tmp_path / "strong"), str(tmp_path / "weak"))(batch())
    with fake_cuda() as device:
        signal = DensityRatio(str(tmp_path / "strong"), str(tmp_path / "weak"))
        signal.to(device, torch.float32)
        found = signal(batch())
        for role in ("strong", "weak"):
            assert next(signal.model(role).model.parameters()).device == device
    for name, rewards in expected.items():
        torch.testing.assert_close(on_cpu(found[name].values), rewards.values, rtol=1e-4, atol=1e-4)


# -- the engine ------------------------------------------------------------------------------------------------------------


class FromTheDevice:
    """A user's signal that answers with CUDA values at every token."""

    scope, level = "row", "token"

    def __call__(self, rollouts: Any, scores: Any) -> Rewards:
        hit = (rollouts.completion_ids % 3 == 0) & rollouts.mask
        return Rewards.tokens(on_cuda(hit.float()), rollouts)


class OneEach(FromTheDevice):
    level = "sequence"

    def __call__(self, rollouts: Any, scores: Any) -> Rewards:
        values = torch.tensor([text.count("a") + 0.1 * len(text) for text in rollouts.completions])
        values[0] = float("nan")
        return Rewards.sequence(on_cuda(values), rollouts)


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[tuple[Any, list[tuple[Any, Scores]]]]:
    """A CPU trainer after a step with signals on the device, and what its monitors saw."""
    from datasets import Dataset
    from trl import GRPOConfig

    from guerdon.engines.trl import CreditTrainer, Evaluator

    tiny().save_pretrained(tmp_path / "policy")
    characters().save_pretrained(tmp_path / "policy")
    data = Dataset.from_list([{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(8)])
    system = System({"one": OneEach()}, [GroupNorm("one"), ToTokens("one", "whole")])
    args = GRPOConfig(
        str(tmp_path / "run"), per_device_train_batch_size=8, num_generations=4, max_completion_length=8, max_steps=1,
        report_to=[], disable_tqdm=True, use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no",
    )  # fmt: skip
    seen: list[tuple[Any, Scores]] = []
    with fake_cuda():
        evaluator = Evaluator(data, lambda c, rows: [float("a" in x) for x in c], system, every=1, samples=8)
        trainer = CreditTrainer(
            str(tmp_path / "policy"), system, args, data, monitors=[evaluator, lambda r, s: seen.append((r, s))],
            truth=lambda c, rows: [float("a" in x) for x in c],
        )  # fmt: skip
        trainer.train()
        yield trainer, seen


def test_a_trainer_takes_signals_that_answer_from_the_device(trained: Any) -> None:
    trainer, seen = trained
    ((_, scores),) = seen
    assert scores.advantages.device.type == "cpu" and scores.keep.tolist() == [False] + [True] * 7
    assert trainer.status == "finished"
    import json

    lines = [json.loads(line) for line in (Path(trainer.args.output_dir) / "eval.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and lines[0]["kl"]["mean"] == pytest.approx(0.0, abs=1e-6) and lines[1]["reward"]["n"] > 0


def test_the_evaluator_measures_a_policy_on_the_device(trained: Any) -> None:
    trainer, seen = trained
    rollouts, _ = seen[0]
    evaluator = trainer.monitors[0]
    expected = evaluator._kl(rollouts)
    place(trainer.instruments.policy, "cuda")
    place(evaluator._initial, "cuda")
    trainer.instruments.policy.__dict__.pop("forward", None)
    found = evaluator._kl(rollouts)
    assert found["mean"] == pytest.approx(expected["mean"], abs=1e-5) and found["mean"] != 0
    place(trainer.instruments.policy, "cpu")


@pytest.mark.parametrize("scores_there", [False, True])
def test_credit_is_installed_into_a_batch_on_the_device(scores_there: bool) -> None:
    from guerdon.engines.trl.batch import install_credit, row_scale
    from guerdon.engines.trl.compat import credit_warnings

    rollouts = batch()
    system = System({"hits": OneEach()}, [GroupNorm("hits"), ToTokens("hits", "whole")])
    with fake_cuda() as device:
        scores = system(rollouts)
        if scores_there:
            scores = scores.to(device)
        size, width = rollouts.mask.shape
        mask = rollouts.mask.long()
        output = {"completion_mask": on_cuda(mask.clone()), "num_items_in_batch": on_cuda(mask.sum())}
        install_credit(output, scores, rollouts, 0)
        assert {name: value.device for name, value in output.items()} == dict.fromkeys(output, device)
        assert output["advantages"].shape == (size, width) and not bool(output["tool_mask"][0].any())
        loss = (output["advantages"] * output["completion_mask"] * output["tool_mask"]).sum() * output["row_share"]
        assert loss.device == device
        for kind in ("dapo", "grpo", "bnpo", "dr_grpo"):
            scale = row_scale(output, kind, processes=1, generation_steps=1, max_completion_length=width)
            assert scale.device == device, kind

        class Args:
            loss_type, off_policy_mask_threshold, top_entropy_quantile = "sapo", 0.1, 0.5

        assert isinstance(credit_warnings(Args, scores.advantages, rollouts.policy_mask), list)
