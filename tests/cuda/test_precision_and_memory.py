"""Instruments beside a trainer that saves memory: its autocast, and its gradient checkpointing with dropout off both times."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_kit import characters as tokenizer_of_characters
from cuda_kit import tiny

from guerdon.lm import LocalModel, SpanScorer
from guerdon.lm.forward import instrument, mixed_precision
from guerdon.lm.shared import SharedForward

CONTEXTS, TARGETS = ["2+3=", "2+3=4", "a longer context than these: 7*8="], [" 5", " 6", " 56"]


@pytest.fixture
def characters() -> Any:
    return tokenizer_of_characters()


@pytest.fixture
def policy() -> Any:
    """A tiny Llama with LoRA, whose adapters have dropout and are not zero, in train mode with checkpointing on."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(tiny(), config)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    return model.train()


def _gradients(model: Any, tokenizer: Any, share: Any = "auto") -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(5)
    scorer = SpanScorer(LocalModel(model, tokenizer), share=share)
    values = scorer.score(CONTEXTS, TARGETS, grad=True).values
    torch.manual_seed(6)  # whatever the recomputation would draw, it must not matter
    values.sum().backward()
    return values.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("share", ["auto", "packed", "cached", "padded"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gradients_with_checkpointing_are_those_without(policy: Any, characters: Any, share: str) -> None:
    checkpointed = _gradients(policy, characters, share)
    assert policy.training and all(m.gradient_checkpointing for m in policy.base_model.model.model.layers)
    policy.gradient_checkpointing_disable()
    plain = _gradients(policy, characters, share)
    torch.testing.assert_close(checkpointed[0], plain[0])
    assert checkpointed[1].keys() == plain[1].keys() and len(plain[1]) >= 8
    for name, gradient in plain[1].items():
        torch.testing.assert_close(checkpointed[1][name], gradient, msg=name)
        assert bool(gradient.any()), name


def test_layers_are_computed_again_in_backward_and_only_then(policy: Any, characters: Any) -> None:
    calls: list[bool] = []
    attention = policy.base_model.model.model.layers[0].self_attn
    attention.register_forward_pre_hook(lambda module, *_: calls.append(module.training))
    scorer = SpanScorer(LocalModel(policy, characters), share="padded")
    calls.clear()  # the scorer tries the model
    values = scorer.score(CONTEXTS, TARGETS, grad=True).values
    forwards = len(calls)
    values.sum().backward()
    assert len(calls) == 2 * forwards and not any(calls), "twice, in eval mode both times"
    calls.clear()
    scorer.score(CONTEXTS, TARGETS)
    assert len(calls) == forwards, "without gradients nothing is computed twice"


def test_forward_of_a_layer_is_its_own_again(policy: Any) -> None:
    layer = policy.base_model.model.model.layers[0]
    with pytest.raises(KeyError), instrument(policy, grad=True):
        assert "forward" in vars(layer)
        raise KeyError
    assert "forward" not in vars(layer) and layer.gradient_checkpointing


def test_instruments_run_under_the_trainers_autocast_and_arithmetic_does_not(characters: Any) -> None:
    model = tiny()
    seen: list[torch.dtype] = []
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda m, i, output: seen.append(output.dtype))
    scorer = SpanScorer(LocalModel(model, characters))
    exact = scorer.score(CONTEXTS, TARGETS).values
    assert set(seen) == {torch.float32}
    seen.clear()
    with mixed_precision(torch.bfloat16):
        rough = scorer.score(CONTEXTS, TARGETS).values
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32, "no autocast outside of forwards"
    assert set(seen) == {torch.bfloat16}
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)


def test_gradients_reach_weights_that_were_read_without_them_under_autocast(characters: Any) -> None:
    model = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16), mixed_precision(torch.bfloat16):
        scorer = SpanScorer(LocalModel(model, characters))
        scorer.score(CONTEXTS, TARGETS)
        scorer.score(CONTEXTS, TARGETS, grad=True).values.sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for n, p in model.named_parameters() if "norm" not in n)


def test_shared_paths_stand_under_autocast(characters: Any) -> None:
    forward = SharedForward(tiny(), share="packed")
    scorer = SpanScorer(LocalModel(forward.parts.model, characters), forward=forward)
    with mixed_precision(torch.bfloat16):
        scorer.score(["2+3=", "2+3=4", "2+3=45"], [" 5", " 6", " 7"])
    assert forward.ran == "packed", forward.why
