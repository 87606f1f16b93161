"""The policy a run began with: adapters included, in the policy's dtype, and never there twice. Learned parts lie beside the policy."""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_kit import Letters, dataset, grpo_config, plain_system, tiny_model, tokenizer

from guerdon.credit import GroupNorm, KLPenalty, OnFailure, ToTokens
from guerdon.engines.trl import CreditTrainer, Evaluator
from guerdon.engines.trl.initial import InitialAdapter
from guerdon.engines.trl.instruments import completion_logprobs
from guerdon.lm import LocalModel
from guerdon.rewards import Rewards
from guerdon.system import Model, System

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


class Asks(Letters):
    """A signal that is handed models by role."""

    def __init__(self, *roles: str) -> None:
        super().__init__()
        self.roles, self.models = roles, {}
        self.needs = frozenset({"logprobs.old", "logprobs.reference"})

    def bind(self, role: str, instrument: Any) -> None:
        self.models[role] = instrument


def with_kl(signal: Any, **options: Any) -> System:
    chain = [OnFailure("row"), GroupNorm("r"), ToTokens("r", "whole"), KLPenalty("r", 0.01, "k1", clamp=None)]
    return System({"r": signal}, chain, **options)


def lora(**changes: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **changes})


def gaps(rollouts: Any) -> float:
    """The largest difference between the policy that sampled and the reference, in nats."""
    difference = rollouts.logprob("old").values - rollouts.logprob("reference").values
    return float((difference * rollouts.mask).abs().max())


def run(policy: Any, config: Any, system: System, **options: Any) -> tuple[CreditTrainer, list[Any]]:
    seen: list[Any] = []
    options.setdefault("processing_class", tokenizer())
    trainer = CreditTrainer(policy, system, config, dataset(), monitors=[lambda r, s: seen.append(r)], **options)
    trainer.train()
    return trainer, seen


STARTS = {
    "trained before": {"init_lora_weights": False},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "with a trained head": {"init_lora_weights": True, "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize("start", STARTS)
def test_an_adapter_that_changes_the_base_is_its_own_reference(start: str, beta: float, config: Any) -> None:
    from peft import get_peft_model

    torch.manual_seed(1)
    policy = get_peft_model(tiny_model(), lora(**STARTS[start]))
    twin = get_peft_model(tiny_model(), lora(**STARTS[start]))
    twin.load_state_dict(policy.state_dict())
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    signal = Asks("reference")
    trainer, seen = run(policy, config(max_steps=3, beta=beta), with_kl(signal))
    assert gaps(seen[0]) < 1e-5, "at the first step nothing has been trained"
    assert gaps(seen[2]) > 1e-3, "the reference stays where it was"
    expected = completion_logprobs(LocalModel(twin, tokenizer()), seen[2], 1.0)
    assert torch.allclose(seen[2].logprob("reference").values, expected, atol=1e-4)
    assert isinstance(signal.models["reference"], InitialAdapter)
    assert {name for name, p in trainer.model.named_parameters() if p.requires_grad} == trained
    kl = [line["kl"] for line in trainer.state.log_history if "kl" in line]
    assert not beta or (kl[0] == pytest.approx(0.0, abs=1e-6) and kl[2] > 0), "TRL's own term has the same reference"


@pytest.mark.parametrize("init", [True, "pissa"])
def test_an_adapter_the_trainer_puts_there_needs_no_second_base(init: Any, policy_path: str, config: Any) -> None:
    signal = Asks("reference", "initial")
    system = with_kl(signal, models={role: Model("policy", "phase_start") for role in signal.roles})
    evaluator = Evaluator(dataset(4), None, system, every=10, samples=4, initial_policy=policy_path)
    seen: list[Any] = []
    trainer = CreditTrainer(
        policy_path, system, config(max_steps=2, beta=0.1), dataset(), peft_config=lora(init_lora_weights=init),
        monitors=[evaluator, lambda r, s: seen.append(r)],
    )  # fmt: skip
    assert trainer.ref_model is None
    began = trainer.instruments.as_it_began()
    assert began is signal.models["reference"] is signal.models["initial"] is evaluator._initial
    assert began.model is trainer.instruments.policy.model
    assert began.adapter == (None if init is True else "ref")
    trainer.train()
    assert gaps(seen[0]) < 1e-4 < gaps(seen[1])
    base = completion_logprobs(LocalModel(policy_path), seen[1], 1.0)
    assert torch.allclose(seen[1].logprob("reference").values, base, atol=1e-4)
    assert next(line["kl"] for line in trainer.state.log_history if "kl" in line) == pytest.approx(0.0, abs=1e-6)


def causal_models() -> int:
    from transformers import LlamaForCausalLM

    gc.collect()
    return sum(isinstance(thing, LlamaForCausalLM) for thing in gc.get_objects())


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("given", ["path", "object"])
def test_no_frozen_copy_is_made_twice(given: str, beta: float, policy_path: str, config: Any) -> None:
    before = causal_models()
    policy: Any = policy_path if given == "path" else LocalModel(policy_path).model
    signal = Asks("reference", "initial", "other", "again")
    models = {role: Model("policy", "phase_start") for role in ("reference", "initial")}
    models |= {"other": Model(policy_path), "again": Model(policy_path)}
    system = with_kl(signal, models=models)
    evaluator = Evaluator(dataset(4), None, system, every=10, samples=4)
    trainer = CreditTrainer(
        policy, system, config(max_steps=2, beta=beta), dataset(), processing_class=tokenizer(), monitors=[evaluator]
    )
    began = trainer.instruments.as_it_began()
    assert began is signal.models["reference"] is signal.models["initial"] is evaluator._initial
    assert began.model is not trainer.instruments.policy.model
    assert (trainer.ref_model is None) == (beta == 0) and (beta == 0 or began.model is trainer.ref_model)
    assert signal.models["other"] is signal.models["again"]
    # The policy and what it began as; a path that is not known to be the policy's is one more, once.
    assert causal_models() - before == (2 if given == "path" else 3)
    trainer.train()
    assert not torch.equal(next(began.model.parameters()), next(trainer.model.parameters()))
    assert torch.equal(next(began.model.parameters()), next(LocalModel(policy_path).model.parameters()))


def test_a_role_that_is_written_to_or_moves_has_a_model_of_its_own(policy_path: str, config: Any) -> None:
    class Writes(Asks):
        writes = ("proxy",)

    signal = Writes("proxy", "slow", "reference")
    models = {"proxy": Model("policy", "phase_start"), "slow": Model("policy", "ema"), "reference": Model("policy")}
    trainer = CreditTrainer(policy_path, with_kl(signal, models=models), config(), dataset())
    own = {id(trainer.instruments.by_role[role].model) for role in ("policy", "proxy", "slow", "reference")}
    assert len(own) == 4


def test_copies_of_an_adapter_policy_are_merged(config: Any) -> None:
    from peft import get_peft_model

    class Writes(Asks):
        writes = ("proxy",)

    policy = get_peft_model(tiny_model(), lora(init_lora_weights=False))
    signal = Writes("proxy")
    system = with_kl(signal, models={"proxy": Model("policy", "phase_start")})
    trainer = CreditTrainer(policy, system, config(), dataset(), processing_class=tokenizer())
    proxy = trainer.instruments.by_role["proxy"].model
    assert not hasattr(proxy, "peft_config") and "model.layers.0.self_attn.q_proj.weight" in proxy.state_dict()


@pytest.mark.parametrize("kind", ["path", "lora"])
def test_frozen_copies_and_learned_parts_have_the_policys_dtype(
    kind: str, policy_path: str, config: Any, tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForTokenClassification

    from guerdon.segment import ByDelimiter
    from guerdon.signals.learned import StepClassifier

    shape = LlamaConfig(**{**tiny_model().config.to_dict(), "num_labels": 2})
    torch.manual_seed(0)
    for name in ("prm", "chosen"):
        LlamaForTokenClassification(shape).save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    parts = {
        "prm": StepClassifier(str(tmp_path / "prm")),
        "chosen": StepClassifier(str(tmp_path / "chosen"), dtype=torch.float32, device="cpu"),
        "loaded": StepClassifier(LlamaForTokenClassification(shape), tokenizer=tokenizer()),
        "r": Asks("reference", "other"),
    }
    models = {"reference": Model("policy"), "other": Model(policy_path)}
    chain = [OnFailure("row"), GroupNorm("r"), ToTokens("r", "whole"), KLPenalty("r", 0.01)]
    from guerdon.credit import Drop

    system = System(
        parts, [Drop("prm", "chosen", "loaded"), *chain], {"steps": ByDelimiter(tokenizer(), "\n")}, models=models
    )
    options = {"peft_config": lora()} if kind == "lora" else {}
    settings = config(max_steps=1, bf16=True, model_init_kwargs={"dtype": "bfloat16"})
    seen: list[Any] = []
    trainer = CreditTrainer(
        policy_path, system, settings, dataset(), monitors=[lambda r, s: seen.append((r, s))], **options
    )
    trainer.train()
    assert trainer.instruments.dtype == torch.bfloat16
    for role in ("reference", "other"):
        weights = {p.dtype for n, p in trainer.instruments.by_role[role].model.named_parameters() if "lora" not in n}
        assert weights == {torch.bfloat16}, role
    dtypes = {name: next(parts[name].load()[0].parameters()).dtype for name in ("prm", "chosen", "loaded")}
    assert dtypes == {"prm": torch.bfloat16, "chosen": torch.float32, "loaded": torch.float32}
    assert gaps(seen[0][0]) < 0.05
    for name in ("prm", "chosen", "loaded"):
        assert seen[0][1].raw[name].values.dtype == torch.float32 and bool(seen[0][1].raw[name].usable.any())


def test_instruments_run_under_the_trainers_autocast(policy_path: str, config: Any) -> None:
    dtypes: list[torch.dtype] = []

    class Reads(Asks):
        def __call__(self, rollouts: Any, scores: Any) -> Rewards:
            model = self.models["policy"].model
            hook = model.model.layers[0].mlp.up_proj.register_forward_hook(lambda m, i, out: dtypes.append(out.dtype))
            completion_logprobs(self.models["policy"], rollouts, 1.0)
            hook.remove()
            return super().__call__(rollouts, scores)

    for bf16, expected in ((False, torch.float32), (True, torch.bfloat16)):
        dtypes.clear()
        signal = Reads("policy")
        signal.needs = frozenset({"policy"})
        system = System({"r": signal}, [GroupNorm("r"), ToTokens("r", "whole")])
        run(policy_path, config(max_steps=1, bf16=bf16), system)
        assert set(dtypes) == {expected}


def test_a_plain_run_makes_no_second_model(policy_path: str, config: Any) -> None:
    before = causal_models()
    trainer, _ = run(policy_path, config(max_steps=1), plain_system())
    assert causal_models() - before == 1 and trainer.status == "finished"


def test_resume_with_a_kept_adapter_is_exact(tmp_path: Path) -> None:
    from peft import get_peft_model

    def start() -> Any:
        torch.manual_seed(1)
        return get_peft_model(tiny_model(), lora(init_lora_weights=False))

    def history(folder: str, *steps: int) -> list[float]:
        for n in steps:
            args = grpo_config(tmp_path / folder, max_steps=n, save_strategy="steps", save_steps=1, beta=0.0)
            trainer = CreditTrainer(start(), with_kl(Asks("reference")), args, dataset(), processing_class=tokenizer())
            trainer.train(resume_from_checkpoint=True)
        return [line["loss"] for line in trainer.state.log_history if "loss" in line]

    whole, resumed = history("whole", 4), history("resumed", 2, 4)
    assert len(whole) == len(resumed) == 4 and whole == pytest.approx(resumed, abs=1e-6)
    assert not any(map(math.isnan, whole))
