"""Whether ids of the policy mean the same to another model, and what an endogenous reward does where they do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from guerdon.errors import CapabilityError
from guerdon.lm import LocalModel
from guerdon.lm.vocabulary import VocabularyCheck, tokenizer_difference
from guerdon.rollouts import Clock, Rollouts
from guerdon.signals import EndogenousReward
from guerdon.tasks.tiny import char_tokenizer


def word_tokenizer(words: str = "a b c d + = \n ok") -> Any:
    """One token a word, another vocabulary than one token a character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokens = ["<pad>", "<eos>", "<unk>", *words.split(" "), " ", *"0123456789"]
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\d|[a-z]+|[\\s\\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def sampled(tokenizer: Any, texts: list[str], prompt: str = "a+b=") -> Rollouts:
    from guerdon.engines.trl.batch import Sampled, build_rollouts

    ids = [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in texts]
    prompts = [tokenizer(prompt, add_special_tokens=False)["input_ids"]] * len(texts)
    return build_rollouts(
        Sampled(prompts, ids), [prompt] * len(texts), {}, tokenizer=tokenizer, stop_ids={tokenizer.eos_token_id}, cap=10**6,
        group_size=len(texts), rank=0, clock=Clock(),
    )  # fmt: skip


def model_of(tokenizer: Any) -> LocalModel:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, initializer_range=0.5,
    )  # fmt: skip
    return LocalModel(transformers.LlamaForCausalLM(config).eval(), tokenizer)


def test_the_same_vocabulary_agrees_whatever_is_special_or_padded() -> None:
    own = char_tokenizer()
    check = VocabularyCheck(char_tokenizer(), None)
    assert check.difference(sampled(own, ["a+b", "", "3\n"])) is None
    assert check.difference(sampled(own, ["b+a"])) is None


def test_other_ids_are_found_in_completions_and_in_prompts() -> None:
    chars, words = char_tokenizer(), word_tokenizer()
    found = VocabularyCheck(words, None, "the reader").difference(sampled(chars, ["ok\n"]))
    assert found is not None and "the reader reads" in found
    prompts = VocabularyCheck(words, None, "the reader").difference(sampled(chars, [""]))
    assert prompts is not None and "reads the prompt as" in prompts


def test_what_agreed_once_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    own = char_tokenizer()
    check = VocabularyCheck(char_tokenizer(), None)
    batch = sampled(own, ["a+b"])
    assert check.difference(batch) is None
    monkeypatch.setattr("guerdon.lm.vocabulary.decode_offsets", lambda *_, **__: pytest.fail("decoded again"))
    assert check.difference(batch) is None


def test_tokenizers_are_compared_before_anything_is_sampled() -> None:
    own, more = char_tokenizer(), char_tokenizer()
    assert tokenizer_difference(own, own) is None and tokenizer_difference(own, more) is None
    more.add_tokens(["<tool>"])
    assert tokenizer_difference(own, more) is None, "a reader may know more"
    found = tokenizer_difference(more, own)
    assert found is not None and "'<tool>'" in found and "does not have it" in found
    assert tokenizer_difference(own, word_tokenizer()) is not None
    padded = char_tokenizer()
    padded.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer_difference(padded, own) is None, "padding is never read"


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_an_endogenous_reward_reads_the_text_where_vocabularies_differ(level: Any) -> None:
    chars, words = char_tokenizer(), word_tokenizer()
    model = model_of(words)
    batch = sampled(chars, ["ok\nb", "a+b=d", ""])
    refused = EndogenousReward(level=level)
    refused.bind("reference", model)
    with pytest.raises(CapabilityError, match=r"another vocabulary.*retokenize=True"):
        refused(batch)
    signal = EndogenousReward(level=level, retokenize=True)
    signal.bind("reference", model)
    crossing = signal(batch)
    same = EndogenousReward(level="sequence")
    same.bind("reference", model)
    expected = same(sampled(words, ["ok\nb", "a+b=d", ""])).values[:, 0]
    assert torch.allclose(crossing.values.sum(1)[:2], expected[:2], atol=1e-4), "the model's own sums, exactly"
    if level == "token":
        first = crossing.values[0]
        assert first[0] == 0 and first[1] != 0, "a word's reward stands on the policy's token of its last character"
        assert crossing.values.shape == batch.mask.shape and crossing.mask.equal(batch.mask)
