"""The density ratio's instrument: exact response slices for all kinds of templates, the difference of two losses, endpoints, two tokenizers."""

from __future__ import annotations

import copy

import pytest
import torch
from local_server import Scores, status

from guerdon import Rollouts
from guerdon.errors import CapabilityError, ConfigError
from guerdon.lm import Endpoint, LocalModel, RemoteModel
from guerdon.signals.likelihood.density_ratio import (
    DensityRatio,
    density_ratio,
    formatted,
    response_tokens,
    shorten_middle,
)

CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "2+2?"}]
# Turns between brackets; the end of a turn is a special token, "<eos>", written by the template.
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ '<eos>' if m['role'] == 'assistant' else '/' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def chat_tokenizer(char_tokenizer):
    tokenizer = copy.deepcopy(char_tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def word_tokenizer():
    """Another vocabulary for the same text: runs of digits, runs of letters, and everything else by itself."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["2", "4", "22", "four", "system", "user", "assistant", "be", "kind", *"[]/+?= \n"]
    vocab = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {word: i + 3 for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+|[0-9]+|[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def with_bos(tokenizer):
    """The same tokenizer putting a begin-of-sequence token (<unk>'s id will do) before every text."""
    from tokenizers.processors import TemplateProcessing

    made = copy.deepcopy(tokenizer)
    made.bos_token = "<unk>"
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", made.convert_tokens_to_ids("<unk>"))]
    )
    return made


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_the_slice_is_the_response_and_its_end_of_turn(chat_tokenizer, bos, pad_is_eos):
    tokenizer = with_bos(chat_tokenizer) if bos else chat_tokenizer
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    before, after = formatted(tokenizer, CHAT, "four 4")
    assert before == "[system]be kind/[user]2+2?/[assistant]" and after == "four 4<eos>"
    ids, target = response_tokens(tokenizer, before, after)
    assert tokenizer.decode(ids[target]) == "four 4<eos>" and int(target.sum()) == 7
    assert int(ids[0] == tokenizer.convert_tokens_to_ids("<unk>")) == int(bos) and not target[0]
    ids, target = response_tokens(tokenizer, before, after, mask_special=True)
    assert tokenizer.decode(ids[target]) == "four 4"


def test_the_real_template(smollm2_tokenizer):
    assert smollm2_tokenizer.pad_token is not None
    before, after = formatted(smollm2_tokenizer, CHAT, "It is four.")
    ids, target = response_tokens(smollm2_tokenizer, before, after)
    assert smollm2_tokenizer.decode(ids[target]) == "It is four.<|im_end|>\n"
    assert torch.equal(
        ids[~target], torch.tensor(smollm2_tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"])
    )


def test_texts_stay_as_they_are_and_bad_templates_are_refused(char_tokenizer, chat_tokenizer):
    assert formatted(char_tokenizer, "2+2=", "4", "<eos>") == ("2+2=", "4<eos>")
    with pytest.raises(ConfigError, match="no chat template"):
        formatted(char_tokenizer, CHAT, "4")
    chat_tokenizer.chat_template = TEMPLATE.replace("[assistant]{% endif %}", "[assistant]think: {% endif %}")
    with pytest.raises(ConfigError, match="cannot be found"):
        formatted(chat_tokenizer, CHAT, "4")


def test_long_prompts_lose_their_middle(char_tokenizer):
    assert shorten_middle(char_tokenizer, "abcdefgh", 8) == "abcdefgh"
    assert shorten_middle(char_tokenizer, "abcdefgh", 5) == "abcgh"
    assert shorten_middle(char_tokenizer, "abcdefgh", 1) == "a" and shorten_middle(char_tokenizer, "", 3) == ""


def loss_sum(model, ids, target):
    """The model's own loss, times its tokens: minus the summed log-probability of the target."""
    labels = torch.where(target, ids, -100)
    return float(model(input_ids=ids[None], labels=labels[None]).loss) * int(target.sum())


def test_the_sum_is_the_difference_of_two_losses(tiny_llama, chat_tokenizer):
    strong, weak = tiny_llama(), tiny_llama(num_hidden_layers=1)
    prompts, texts = [CHAT, CHAT[1:], CHAT], ["four 4", "2", ""]
    found = DensityRatio(LocalModel(strong, chat_tokenizer), LocalModel(weak, chat_tokenizer))(
        Rollouts.from_texts(prompts, texts)
    )
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        ids, target = response_tokens(chat_tokenizer, *formatted(chat_tokenizer, prompt, text))
        with torch.no_grad():
            expected = loss_sum(weak, ids, target) - loss_sum(strong, ids, target)
        assert float(found["ratio"].values[row, 0]) == pytest.approx(expected, abs=1e-4)
        assert int(found["tokens"].values[row, 0]) == len(text) + 1
    mean = DensityRatio(LocalModel(strong, chat_tokenizer), LocalModel(weak, chat_tokenizer), reduction="mean")
    values = mean(Rollouts.from_texts(prompts, texts))["ratio"].values[:, 0]
    torch.testing.assert_close(values, found["ratio"].values[:, 0] / found["tokens"].values[:, 0])


def test_two_tokenizers_read_one_text(tiny_llama, chat_tokenizer, word_tokenizer):
    strong, weak = tiny_llama(), tiny_llama(vocab_size=len(word_tokenizer))
    found = DensityRatio(LocalModel(strong, chat_tokenizer), LocalModel(weak, word_tokenizer))(
        Rollouts.from_texts([CHAT], ["four 22"])
    )
    before, after = formatted(chat_tokenizer, CHAT, "four 22")
    total = 0.0
    for model, tokenizer, sign in ((strong, chat_tokenizer, -1), (weak, word_tokenizer, 1)):
        ids, target = response_tokens(tokenizer, before, after)
        assert tokenizer.decode(ids[target]) == "four 22<eos>"
        with torch.no_grad():
            total += sign * loss_sum(model, ids, target)
    assert int(found["tokens"].values[0, 0]) == 8  # the strong model's
    assert float(found["ratio"].values[0, 0]) == pytest.approx(total, abs=1e-4)


def test_ended_rollouts_get_the_models_own_end(tiny_llama, char_tokenizer):
    strong, weak = LocalModel(tiny_llama(), char_tokenizer), LocalModel(tiny_llama(num_hidden_layers=1), char_tokenizer)
    rollouts = Rollouts(["2+2="] * 2, ["4"] * 2, finished=torch.tensor([True, False]))
    found = DensityRatio(strong, weak)(rollouts)
    assert found["tokens"].values[:, 0].tolist() == [2, 1]
    spelled = DensityRatio(strong, weak, end="<eos>")(Rollouts.from_texts(["2+2="], ["4"]))
    assert float(spelled["ratio"].values[0, 0]) == pytest.approx(float(found["ratio"].values[0, 0]), abs=1e-5)
    assert DensityRatio(strong, weak, end="")(rollouts)["tokens"].values[:, 0].tolist() == [1, 1]


def test_a_missing_format_lowers_the_reward(tiny_llama, char_tokenizer):
    models = LocalModel(tiny_llama(), char_tokenizer), LocalModel(tiny_llama(num_hidden_layers=1), char_tokenizer)
    rollouts = Rollouts.from_texts(["q"] * 2, ["<a>4", "4"])
    plain, gated = (
        DensityRatio(*models)(rollouts)["ratio"],
        DensityRatio(*models, required=["<a>", "4"])(rollouts)["ratio"],
    )
    assert float(gated.values[0]) == pytest.approx(float(plain.values[0]), abs=1e-3)
    assert float(gated.values[1]) == pytest.approx(float(plain.values[1]) - 5000, abs=1e-2)


def test_an_endpoint_in_the_place_of_a_model_and_its_failures(server, tiny_llama, char_tokenizer, tmp_path):
    strong, weak = tiny_llama(), LocalModel(tiny_llama(num_hidden_layers=1), char_tokenizer)
    remote = RemoteModel("m", base_url=server.url, cache=tmp_path / "kept", backoff_s=0.01, retries=1)
    server.script = Scores(strong, char_tokenizer)
    rollouts = Rollouts.from_texts(["2+2="], ["four"])
    served = DensityRatio(Endpoint(remote, char_tokenizer), weak)(rollouts)["ratio"]
    local = DensityRatio(LocalModel(strong, char_tokenizer), weak)(rollouts)["ratio"]
    torch.testing.assert_close(served.values, local.values, atol=1e-3, rtol=1e-4)
    server.script = lambda body, nth: status(500)
    broken = DensityRatio(Endpoint(remote, char_tokenizer, style="echo"), weak)(Rollouts.from_texts(["3+3="], ["six"]))
    assert (
        all(broken[name].failed.all() for name in ("ratio", "strong", "weak"))
        and "strong:" in broken["ratio"].reasons[0, 0]
    )


def test_one_model_over_itself_and_missing_ones_are_refused(tiny_model, char_tokenizer):
    lm = LocalModel(tiny_model, char_tokenizer)
    rollouts = Rollouts.from_texts(["q"], ["a"])
    for make in (
        lambda: DensityRatio("m", "m"),
        lambda: DensityRatio(lm, lm),
        lambda: DensityRatio("a", "b", reduction="max"),
    ):
        with pytest.raises(ConfigError):
            make()
    bound = DensityRatio(weak=lm)
    assert bound.roles == ("strong",)
    with pytest.raises(CapabilityError, match="'strong'"):
        bound(rollouts)
    bound.bind("strong", lm)
    with pytest.raises(ConfigError, match="same model"):
        bound(rollouts)


def test_the_formula_by_hand():
    strong, keep = torch.tensor([-9.0, -0.5, -0.1]), torch.tensor([False, True, True])
    weak, weak_keep = torch.tensor([-1.5, -0.6, -0.2, -7.0]), torch.tensor([True, True, True, False])
    assert float(density_ratio(strong, keep, weak, weak_keep)) == pytest.approx(1.7)
    assert float(density_ratio(strong, keep, weak, weak_keep, "mean")) == pytest.approx(0.85)
    none = torch.zeros(3, dtype=torch.bool)
    assert float(density_ratio(strong, none, strong, none, "mean")) == 0.0
