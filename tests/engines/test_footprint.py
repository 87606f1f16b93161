"""Bytes of a run from configurations alone, against numbers worked out by hand for Qwen2.5-7B."""

from __future__ import annotations

import pytest
import torch
from engine_kit import tiny_model

from guerdon.engines.footprint import Footprint, Shape, human, passing, training, weights
from guerdon.errors import ConfigError

H, MLP, L, V, KV = 3584, 18944, 28, 152064, 4 * 128


@pytest.fixture(scope="module")
def qwen() -> Shape:
    from transformers import Qwen2Config

    return Shape.of_config(
        Qwen2Config(
            hidden_size=H, intermediate_size=MLP, num_hidden_layers=L, num_attention_heads=28, num_key_value_heads=4,
            vocab_size=V, tie_word_embeddings=False,
        )
    )  # fmt: skip


def test_parameters_of_qwen_7b(qwen: Shape) -> None:
    attention = (H * H + H) + 2 * (H * KV + KV) + H * H  # queries, keys and values have biases
    by_hand = 2 * V * H + L * (attention + 3 * H * MLP + 2 * H) + H
    assert qwen.parameters == by_hand == 7_615_616_512
    assert (qwen.vocabulary, qwen.hidden, qwen.intermediate, qwen.layers, qwen.kv_width) == (V, H, MLP, L, KV)


def test_lora_of_qwen_7b(qwen: Shape) -> None:
    a_layer = (H + H) + 2 * (H + KV) + (H + H) + 3 * (H + MLP)
    assert a_layer == 90_112 and len(qwen.linear) == 7 * L
    assert qwen.lora_parameters(16) == 16 * L * a_layer == 40_370_176


def test_bytes_of_a_bf16_run_with_lora(qwen: Shape) -> None:
    base = weights(["policy"], "q", qwen, torch.bfloat16, "cuda")
    assert base.bytes == 15_231_233_024 and human(base.bytes) == "15.2 GB"
    gradients, moments = training("q", qwen.lora_parameters(16), torch.float32, "cuda")
    assert gradients.bytes == 161_480_704 and moments.bytes == 322_961_408
    assert training("q", 10, torch.float32, "cuda", optimiser="sgd")[1:] == []
    assert training("q", 10, torch.float32, "cuda", optimiser="adamw_8bit")[1].bytes == 20
    # 28 layers x (keys, values) x 512 numbers x 2 bytes = 57,344 bytes a token
    assert qwen.kv_bytes(1, 2) == 57_344
    assert qwen.logit_bytes(1) == 8 * V


def test_activations_by_hand(qwen: Shape) -> None:
    a_token = 2 * (9 * H + 4 * MLP + 4 * KV)
    assert qwen.activation_bytes(100, 2, checkpointing=False) == 100 * L * a_token
    assert qwen.activation_bytes(100, 2, checkpointing=True) == 100 * (L * H * 2 + a_token)
    kept, logits, cache = passing(
        "q", qwen, torch.bfloat16, "cuda", rows=4, sampled=64, prompt=300, completion=700, checkpointing=True
    )
    assert kept.bytes == 4000 * (L * H * 2 + a_token) and cache.bytes == 64_000 * 57_344
    assert kept.estimated and logits.estimated and cache.estimated


def test_counts_are_those_of_a_real_model() -> None:
    model = tiny_model()
    shape = Shape.of_config(model.config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert shape.lora_parameters(4) == trained


def test_tied_weights_count_once_and_heads_are_small() -> None:
    model = tiny_model()
    config = model.config
    config.tie_word_embeddings = True
    tied = Shape.of_config(config)
    assert tied.parameters == sum(p.numel() for p in model.parameters()) - config.vocab_size * config.hidden_size
    steps = Shape.of_config(config, "steps", labels=2)
    assert steps.parameters == tied.parameters + 2 * (config.hidden_size + 1)


def test_activations_of_a_real_forward_are_near_the_estimate() -> None:
    """Bytes that autograd really keeps of a tiny Llama with fused attention, by its own hooks."""
    model = tiny_model()
    ids = torch.randint(3, 30, (4, 100))
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.model(input_ids=ids).last_hidden_state.sum()
    kept = sum(storages.values())
    estimate = Shape.of_model(model).activation_bytes(400, 4, checkpointing=False)
    assert loss.requires_grad and 0.5 < estimate / kept < 2, (estimate, kept)


def test_a_model_that_transformers_lacks_is_refused() -> None:
    from transformers import CLIPVisionConfig

    with pytest.raises(ConfigError, match="no causal model"):
        Shape.of_config(CLIPVisionConfig())


def test_sizes_read_well() -> None:
    assert [human(n) for n in (12, 1500, 2_000_000, 15_231_233_024)] == ["12 B", "1.50 kB", "2.00 MB", "15.2 GB"]
    empty = Footprint(())
    assert empty.total == empty.weights == empty.copies_of("q") == 0
