"""Published reward models are read by their conventions, and a model without the head it is asked for is refused.

Tiny random models of the published architectures; the real tokenizers where they lie beside the repository.
"""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from guerdon.errors import CapabilityError, ConfigError
from guerdon.rollouts import Rollouts
from guerdon.segment import ByDelimiter
from guerdon.signals import RewardModel, StepClassifier
from guerdon.signals.learned.conventions import TABLE, convention_of, good_label, note_convention
from guerdon.signals.learned.heads import load_reward_model
from guerdon.tasks.tiny import char_tokenizer

TOKENIZERS = Path(__file__).resolve().parents[2].parent / "shared" / "cases" / "tokenizers"
CHARS = char_tokenizer()
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTION, STEPS = "What is 2 + 3 + 4?", ["Step 1: 2 + 3 = 5", "Step 2: 5 + 4 = 9. The answer is: 9"]


def real_tokenizer(name):
    if not (TOKENIZERS / name).exists():
        pytest.skip(f"the {name} tokenizer is not beside the repository (shared/cases/tokenizers)")
    return transformers.AutoTokenizer.from_pretrained(str(TOKENIZERS / name))


def tiny(config, tokenizer, auto, **changes):
    torch.manual_seed(0)
    options = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    return auto(config(**{**options, **changes})).eval()


def saved(model, tokenizer, folder, **config_changes):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    edit_config(folder, **config_changes)
    return str(folder)


def edit_config(folder, **changes):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def add_weights(folder, weights, drop=()):
    """More weights in a checkpoint, as a published one has them."""
    path = Path(folder) / "model.safetensors"
    own = {key: value for key, value in load_file(path).items() if key not in drop}
    save_file({**own, **weights}, path, metadata={"format": "pt"})


def step_rollouts(delimiter="\n\n", steps=STEPS, prompt=QUESTION):
    batch = Rollouts.from_texts([prompt], [delimiter.join(steps)])
    return batch.with_spans(steps=ByDelimiter(None, delimiter)(batch))


# -- the published conventions, each against its model card's own way of reading -----------------------------------------------


def test_qwen_math_prm_reads_its_two_layer_head_at_extra_0(tmp_path):
    tokenizer = real_tokenizer("qwen")
    base = tiny(transformers.Qwen2Config, tokenizer, transformers.Qwen2ForCausalLM)
    remote = {
        "AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig",
        "AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel",
    }
    path = saved(
        base, tokenizer, tmp_path, architectures=["Qwen2ForProcessRewardModel"], num_labels=2, auto_map=remote
    )  # the published folder names code of its own, which is not there and not wanted
    torch.manual_seed(1)
    head = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    add_weights(path, {f"score.{key}": value for key, value in head.state_dict().items()})
    values = StepClassifier(path)(step_rollouts()).values[0].tolist()

    system = "Please reason step by step, and put your final answer within \\boxed{}."
    messages = [
        {"role": "system", "content": system}, {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "<extra_0>".join(STEPS) + "<extra_0>"},
    ]  # fmt: skip
    ids = torch.tensor([tokenizer(tokenizer.apply_chat_template(messages, tokenize=False))["input_ids"]])
    at = (ids[0] == tokenizer.convert_tokens_to_ids("<extra_0>")).nonzero()[:, 0]
    with torch.no_grad():
        probabilities = head(base.model(ids).last_hidden_state)[0, at].softmax(-1)
    assert values == pytest.approx((probabilities[:, 1] - probabilities[:, 0]).tolist(), abs=1e-5)


def test_a_policy_that_writes_the_separator_gains_nothing(tmp_path):
    tokenizer = real_tokenizer("qwen")
    base = tiny(transformers.Qwen2Config, tokenizer, transformers.Qwen2ForCausalLM)
    path = saved(base, tokenizer, tmp_path, architectures=["Qwen2ForProcessRewardModel"], num_labels=2)
    head = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    add_weights(path, {f"score.{key}": value for key, value in head.state_dict().items()})
    signal = StepClassifier(path)
    honest = signal(step_rollouts())
    forged = signal(step_rollouts(steps=[STEPS[0].replace("2 + 3", "2 <extra_0>+ 3"), STEPS[1]]))
    assert forged.mask.sum() == 2 and torch.allclose(forged.values, honest.values, atol=1e-5)


def test_math_shepherd_reads_plus_and_minus_at_its_tag(tmp_path):
    tokenizer = real_tokenizer("mistral")
    model = tiny(transformers.MistralConfig, tokenizer, transformers.MistralForCausalLM, sliding_window=None)
    folder = tmp_path / "math-shepherd-mistral-7b-prm"
    path = saved(model, tokenizer, folder)
    batch = step_rollouts("\n")
    values = StepClassifier(path)(batch).values[0].tolist()

    ids = torch.tensor([tokenizer(f"{QUESTION} {STEPS[0]} ки\n{STEPS[1]} ки")["input_ids"]])
    assert tokenizer("+ -")["input_ids"][1:] == [648, 387] and (ids == 12902).sum() == 2
    with torch.no_grad():
        probabilities = model(ids).logits[0, ids[0] == 12902][:, [648, 387]].softmax(-1)
    assert values == pytest.approx((probabilities[:, 0] - probabilities[:, 1]).tolist(), abs=1e-5)

    other = saved(model, tokenizer, tmp_path / "some-language-model")
    with pytest.raises(ConfigError, match="math_shepherd"):
        StepClassifier(other)(batch)
    named = StepClassifier(other, convention="math_shepherd")(batch)
    assert named.values[0].tolist() == pytest.approx(values)


def test_rlhflow_prm_reads_the_position_before_each_plus(tmp_path):
    tokenizer = real_tokenizer("qwen")
    model = tiny(transformers.LlamaConfig, tokenizer, transformers.LlamaForCausalLM)
    path = saved(model, tokenizer, tmp_path / "Llama3.1-8B-PRM-Deepseek-Data")
    values = StepClassifier(path)(step_rollouts()).values[0].tolist()

    plus, minus = (tokenizer(text)["input_ids"][-1] for text in "+-")
    conversation, expected = [], []
    for number, step in enumerate(STEPS):
        conversation += [{"role": "user", "content": f"{QUESTION} {step}" if number == 0 else step}]
        conversation += [{"role": "assistant", "content": "+"}]
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
        ids = tokenizer(text)["input_ids"]
        place = len(ids) - 1 - ids[::-1].index(plus) - 1
        with torch.no_grad():
            p = model(torch.tensor([ids])).logits[0, place, [plus, minus]].softmax(-1)
        expected.append(float(p[0] - p[1]))
    assert values == pytest.approx(expected, abs=1e-5)


def test_skywork_prm_reads_its_value_head_at_the_line_break(tmp_path):
    tokenizer = real_tokenizer("qwen")
    base = tiny(transformers.Qwen2Config, tokenizer, transformers.Qwen2ForCausalLM)
    path = saved(base, tokenizer, tmp_path, architectures=["Qwen2ForPrmModel"])
    torch.manual_seed(1)
    head = torch.nn.Linear(32, 1)
    add_weights(path, {"v_head.summary.weight": head.weight.data, "v_head.summary.bias": head.bias.data})
    values = StepClassifier(path)(step_rollouts("\n")).values[0].tolist()

    newline = tokenizer("\n")["input_ids"][-1]
    ids, places = tokenizer(QUESTION + "\n")["input_ids"], []
    for step in STEPS:
        ids = ids + tokenizer(step)["input_ids"] + [newline]
        places.append(len(ids) - 1)
    with torch.no_grad():
        hidden = base.model(torch.tensor([ids])).last_hidden_state[0, places]
        expected = (2 * head(hidden).sigmoid() - 1)[:, 0].tolist()
    assert values == pytest.approx(expected, abs=1e-5)


def test_skywork_orm_reads_the_chat_at_its_last_token(tmp_path):
    tokenizer = real_tokenizer("qwen")
    model = tiny(transformers.LlamaConfig, tokenizer, transformers.LlamaForSequenceClassification, num_labels=1)
    path = saved(model, tokenizer, tmp_path)
    chat = [{"role": "user", "content": QUESTION}]
    value = float(RewardModel(path)(Rollouts.from_texts([chat], ["It is 9."])).values)
    text = tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": "It is 9."}], tokenize=False)
    with torch.no_grad():
        expected = float(model(torch.tensor([tokenizer(text)["input_ids"]])).logits)
    assert value == pytest.approx(expected, abs=1e-5)


def test_rlhflow_orm_is_the_log_odds_of_plus(tmp_path):
    tokenizer = real_tokenizer("qwen")
    model = tiny(transformers.LlamaConfig, tokenizer, transformers.LlamaForCausalLM)
    path = saved(model, tokenizer, tmp_path / "Llama3.1-8B-ORM-Mistral-Data")
    value = float(RewardModel(path)(Rollouts.from_texts([QUESTION], ["It is 9."])).values)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{QUESTION} It is 9."}], tokenize=False, add_generation_prompt=True
    )
    plus, minus = (tokenizer(text)["input_ids"][-1] for text in "+-")
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
    assert value == pytest.approx(float(logits[plus] - logits[minus]), abs=1e-4)


def test_qwen_math_rm_reads_its_two_layer_head(tmp_path):
    tokenizer = real_tokenizer("qwen")
    base = tiny(transformers.Qwen2Config, tokenizer, transformers.Qwen2ForCausalLM)
    path = saved(base, tokenizer, tmp_path, architectures=["Qwen2ForRewardModel"], num_labels=1)
    head = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    add_weights(path, {f"score.{key}": value for key, value in head.state_dict().items()})
    value = float(RewardModel(path)(Rollouts.from_texts([QUESTION], ["It is 9."])).values)
    messages = [
        {"role": "system", "content": TABLE["qwen_math_rm"].system}, {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "It is 9."},
    ]  # fmt: skip
    ids = torch.tensor([tokenizer(tokenizer.apply_chat_template(messages, tokenize=False))["input_ids"]])
    with torch.no_grad():
        assert value == pytest.approx(float(head(base.model(ids).last_hidden_state[0, -1])), abs=1e-5)


def test_the_newline_of_sentencepiece_is_a_separator():
    tokenizer = real_tokenizer("mistral")
    model = tiny(
        transformers.MistralConfig, tokenizer, transformers.MistralForTokenClassification, sliding_window=None, num_labels=2
    )  # fmt: skip
    rewards = StepClassifier(model, tokenizer=tokenizer)(step_rollouts("\n"))
    assert rewards.values[rewards.mask].isfinite().all() and rewards.mask.sum() == 2


# -- labels ------------------------------------------------------------------------------------------------------------------


def token_classifier(**changes):
    return tiny(transformers.LlamaConfig, CHARS, transformers.LlamaForTokenClassification, num_labels=2, **changes)


def char_rollouts():
    batch = Rollouts.from_texts(["a3+b5=?\n"], ["3+b5=8\n#8"])
    return batch.with_spans(steps=ByDelimiter(None, "\n")(batch))


def test_a_reversed_id2label_is_read_and_not_inverted(tmp_path):
    plain = StepClassifier(token_classifier(), tokenizer=CHARS)(char_rollouts())
    reversed_names = {"id2label": {"0": "correct", "1": "incorrect"}, "label2id": {"correct": 0, "incorrect": 1}}
    path = saved(token_classifier(), CHARS, tmp_path, **reversed_names)
    signal = StepClassifier(path)
    turned = signal(char_rollouts())
    assert torch.allclose(turned.values, -plain.values, atol=1e-6)
    assert torch.equal((signal.last_logits[..., 1] > signal.last_logits[..., 0]), turned.values > 0)
    edit_config(tmp_path, id2label={"0": "red", "1": "blue"}, label2id={"red": 0, "blue": 1})
    with pytest.raises(ConfigError, match="good_label"):
        StepClassifier(path).load()
    assert torch.allclose(StepClassifier(path, good_label=0)(char_rollouts()).values, turned.values)


@pytest.mark.parametrize(
    ("labels", "good"),
    [
        ({0: "LABEL_0", 1: "LABEL_1"}, 1),
        ({0: "bad", 1: "good"}, 1),
        ({0: "+", 1: "-"}, 0),
        ({0: "True", 1: "False"}, 0),
        ({0: "POSITIVE", 1: "NEGATIVE"}, 0),
        ({"0": "correct step", "1": "incorrect"}, 0),
        ({0: "LABEL_1", 1: "LABEL_0"}, 0),
    ],
)
def test_label_names(labels, good):
    assert good_label(labels) == good


# -- models without the head ---------------------------------------------------------------------------------------------------


def language_model():
    return tiny(transformers.LlamaConfig, CHARS, transformers.LlamaForCausalLM)


def test_a_language_model_is_no_reward_model_by_path_or_as_an_object(tmp_path):
    path = saved(language_model(), CHARS, tmp_path)
    with pytest.raises(ConfigError, match="LlamaForCausalLM without the weights of a process reward model's head"):
        StepClassifier(path)(char_rollouts())
    edit_config(path, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    with pytest.raises(ConfigError, match=r"random head.*train_rm"):
        RewardModel(path).load()
    with pytest.raises(ConfigError, match="random head"):
        StepClassifier(language_model(), tokenizer=CHARS).load()
    with pytest.raises(ConfigError, match="random head"):
        RewardModel(language_model(), tokenizer=CHARS).load()
    with pytest.raises(ConfigError, match="GGUF"):
        StepClassifier("model.gguf").load()


def test_a_bare_backbone_and_the_cache_folder_of_a_published_model(tmp_path):
    with pytest.raises(ConfigError, match="random head"):
        StepClassifier(tiny(transformers.LlamaConfig, CHARS, transformers.LlamaModel), tokenizer=CHARS).load()
    cached = tmp_path / "models--peiyi9979--math-shepherd-mistral-7b-prm" / "snapshots" / "0123"
    assert convention_of(cached, language_model().config, "process") is TABLE["math_shepherd"]


def test_heads_of_another_kind_are_refused(tmp_path):
    sequence = tiny(transformers.LlamaConfig, CHARS, transformers.LlamaForSequenceClassification, num_labels=2)
    with pytest.raises(ConfigError, match=r"score\.bias"):
        StepClassifier(saved(sequence, CHARS, tmp_path / "sequence")).load()
    with pytest.raises(ConfigError, match="none for a step"):
        StepClassifier(sequence, tokenizer=CHARS).load()
    path = saved(language_model(), CHARS, tmp_path / "two_layers")
    add_weights(path, {"score.0.weight": torch.ones(32, 32), "score.2.weight": torch.ones(2, 32)})
    with pytest.raises(ConfigError, match="without the weights"):
        StepClassifier(path).load()
    steps = saved(token_classifier(), CHARS, tmp_path / "steps")
    edit_config(steps, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    with pytest.raises(ConfigError, match="do not fit its own config"):
        RewardModel(steps).load()
    with pytest.raises(ConfigError, match="convention='nobody'"):
        StepClassifier(steps, convention="nobody").load()


def test_a_value_head_beside_a_classifier_is_not_left_unread(tmp_path):
    path = saved(tiny(transformers.LlamaConfig, CHARS, transformers.LlamaForSequenceClassification, num_labels=1), CHARS, tmp_path)  # fmt: skip
    add_weights(path, {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)})
    with pytest.raises(ConfigError, match=r"another head \(v_head"):
        RewardModel(path).load()


def test_an_adapter_brings_its_head_or_is_refused(tmp_path):
    peft = pytest.importorskip("peft")
    base = saved(language_model(), CHARS, tmp_path / "base")
    model = transformers.AutoModelForTokenClassification.from_pretrained(base, num_labels=2)
    with_head = peft.get_peft_model(model, peft.LoraConfig(task_type="TOKEN_CLS", r=2, init_lora_weights=False)).eval()
    with_head.save_pretrained(tmp_path / "adapter")
    expected = StepClassifier(with_head.merge_and_unload(), tokenizer=CHARS)(char_rollouts())
    found = StepClassifier(str(tmp_path / "adapter"))(char_rollouts())
    assert torch.allclose(found.values, expected.values, atol=1e-5)
    bare = peft.get_peft_model(language_model(), peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    bare.peft_config["default"].base_model_name_or_path = base
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match="an adapter of"):
        StepClassifier(str(tmp_path / "bare")).load()


def test_what_training_writes_is_read_back(tmp_path):
    model = token_classifier()
    note_convention(model.config, TABLE["pure"].__class__(**{**vars(TABLE["pure"]), "separator": "#"}))
    path = saved(model, CHARS, tmp_path)
    loaded = load_reward_model(path, None, "process")
    assert loaded.convention.separator == "#" and loaded.convention.name == "pure"
    assert convention_of(path, loaded.model.config, "outcome") is None
    by_hand = StepClassifier(token_classifier(), tokenizer=CHARS, delimiter="#")(char_rollouts())
    assert torch.equal(StepClassifier(path)(char_rollouts()).values, by_hand.values)


# -- two vocabularies ------------------------------------------------------------------------------------------------------------


def token_rollouts(tokenizer, prompt="2+3?", text="Add.\nThen so\n"):
    from guerdon.engines.trl.batch import Sampled, build_rollouts
    from guerdon.rollouts import Clock

    encode = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, text)]
    batch = build_rollouts(
        Sampled([encode[0]], [[*encode[1], tokenizer.eos_token_id]]), [prompt], {}, tokenizer=tokenizer,
        stop_ids={tokenizer.eos_token_id}, cap=10**6, group_size=1, rank=0, clock=Clock(),
    )  # fmt: skip
    return batch.with_spans(steps=ByDelimiter(None, "\n")(batch))


def test_ids_of_another_vocabulary_are_refused_and_encoded_anew_on_request():
    theirs = real_tokenizer("qwen")
    ours = real_tokenizer("mistral")
    ours.pad_token = ours.eos_token
    prm = tiny(transformers.LlamaConfig, ours, transformers.LlamaForTokenClassification, num_labels=2)
    rm = tiny(transformers.LlamaConfig, ours, transformers.LlamaForSequenceClassification, num_labels=1)
    crossing, own = token_rollouts(theirs), token_rollouts(ours)
    for signal, name in ((StepClassifier, prm), (RewardModel, rm)):
        with pytest.raises(CapabilityError, match=r"another vocabulary.*retokenize=True"):
            signal(name, tokenizer=ours)(crossing)
        again = signal(name, tokenizer=ours, retokenize=True)(crossing)
        expected = signal(name, tokenizer=ours, retokenize=True)(own)
        assert torch.allclose(again.values[again.mask], expected.values[expected.mask], atol=1e-5)
        assert signal(name, tokenizer=ours)(own).values.isfinite().all()


def test_one_added_token_is_named_and_not_an_index_error():
    policy = char_tokenizer()
    model = token_classifier()
    policy.add_tokens(["<tool>"])
    with pytest.raises(CapabilityError, match=r"id \d+ is beyond the \d+ embeddings"):
        StepClassifier(model, tokenizer=CHARS)(token_rollouts(policy, "a3+b5=?\n", "3+b5=8\n<tool>"))
    wide = token_classifier(vocab_size=len(CHARS) + 8)  # embeddings are often padded beyond the vocabulary
    with pytest.raises(CapabilityError, match="<tool>"):
        StepClassifier(wide, tokenizer=CHARS)(token_rollouts(policy, "a3+b5=?\n", "3+b5=8\n<tool>"))
    assert (
        StepClassifier(model, tokenizer=CHARS)(token_rollouts(policy, "a3+b5=?\n", "3+b5=8\n")).values.isfinite().all()
    )


# -- the other way round: what is asked to be a language model ---------------------------------------------------------------------


def test_a_reward_model_is_no_language_model(tmp_path):
    from guerdon.engines.trl import CreditTrainer
    from guerdon.lm import LocalModel, load_model

    path = saved(token_classifier(), CHARS, tmp_path / "prm")
    with pytest.raises(
        ConfigError, match=r"no whole language model \(LlamaForTokenClassification; lm_head.weight missing\)"
    ):
        load_model(path)
    with pytest.raises(ConfigError, match="made up at random"):
        LocalModel(path)
    system = gd_system()
    with pytest.raises(ConfigError, match="a policy needs one"):
        CreditTrainer(path, system, args=trl_config(tmp_path), train_dataset=None)
    tied = tiny(transformers.LlamaConfig, CHARS, transformers.LlamaForCausalLM, tie_word_embeddings=True)
    assert load_model(saved(tied, CHARS, tmp_path / "tied"))[0].lm_head is not None, "a tied head is no missing one"


def gd_system():
    from guerdon.credit import GroupNorm, ToTokens
    from guerdon.signals import Length
    from guerdon.system import System

    return System({"length": Length(target=3)}, [GroupNorm("length"), ToTokens("length", "whole")])


def trl_config(folder):
    from trl import GRPOConfig

    return GRPOConfig(str(folder / "out"), use_cpu=True, bf16=False, report_to=[], num_generations=2)
