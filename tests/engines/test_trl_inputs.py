"""What people hand to a trainer: signals that return something else, templates that refuse, no cap, settings that do not fit - each works or says how."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from engine_kit import ALPHABET, dataset, grpo_config, parameters, plain_system, same, tiny_model, tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaForTokenClassification

from guerdon.credit import GroupNorm, ToTokens
from guerdon.engines.trl import CreditTrainer, multi_turn, newest_complete_checkpoint
from guerdon.engines.trl.batch import Sampled, build_rollouts, finished_rows
from guerdon.engines.trl.checkpoint import MARKER, holds_optimiser, is_complete, weights_only
from guerdon.engines.trl.environments import reply_frame
from guerdon.errors import ChainError, ConfigError, DataError, ShapeError
from guerdon.lm.encode import encode_prompt, render_chat
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Clock, Rollouts
from guerdon.segment import ByDelimiter
from guerdon.signals import RewardModel, StepClassifier
from guerdon.system import System

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


# -- what a signal returns -----------------------------------------------------------------------------------------------------


class Returns:
    scope, level = "row", "sequence"

    def __init__(self, function: Callable[[Rollouts], Any]) -> None:
        self.function = function

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Any:
        return self.function(rollouts)


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        (lambda r: [1.0] * len(r), ChainError, "a list"),
        (lambda r: None, ChainError, r"nothing \(None\)"),
        (lambda r: torch.ones(len(r)), ChainError, "a Tensor"),
        (lambda r: 1.0, ChainError, "a float"),
        (lambda r: {"x": torch.ones(len(r))}, ChainError, r"a Tensor under the names \['x'\]"),
        (lambda r: {"x": None}, ChainError, r"nothing \(None\) under the names"),
        (lambda r: {}, ChainError, "under the names"),
        (lambda r: Rewards.sequence(torch.tensor([1.0]), r), ShapeError, r"\(1,\) for 4 rollouts"),
        (lambda r: Rewards.sequence(torch.ones(5), r), ShapeError, r"\(5,\) for 4 rollouts"),
        (lambda r: Rewards.sequence(torch.ones(4, 1), r), ShapeError, r"\(4, 1\) for 4 rollouts"),
        (lambda r: Rewards.sequence(torch.ones(2), r.select([0, 1])), ChainError, "2 rows for 4"),
    ],
)
def test_what_is_no_rewards_is_refused_with_the_signals_name(function: Any, error: type, said: str) -> None:
    rollouts = Rollouts.from_texts(["q"] * 4, list("abcd"), group_ids=[0] * 4)
    system = System({"mine": Returns(function)}, [GroupNorm("mine"), ToTokens("mine")], name="own")
    with pytest.raises(error, match=rf"own: signal 'mine'.*{said}"):
        system(rollouts)


class Broken:
    """A link of the caller's own that returns something else."""

    def __init__(self, given: Any, stateful: bool = False) -> None:
        self.given = given
        if stateful:
            self.init_state = dict

    def __call__(self, scores: Scores, rollouts: Rollouts, *state: Any) -> Any:
        return self.given

    def __repr__(self) -> str:
        return "Broken()"


@pytest.mark.parametrize(
    ("link", "said"),
    [
        (Broken(None), r"nothing \(None\): a link returns Scores"),
        (Broken(torch.ones(4)), "a Tensor: a link returns Scores"),
        (Broken(None, stateful=True), "has a state and returned a NoneType"),
        (Broken((None, {}), stateful=True), r"nothing \(None\): a link returns Scores"),
    ],
)
def test_what_is_no_scores_is_refused_with_the_links_name(link: Broken, said: str) -> None:
    rollouts = Rollouts.from_texts(["q"] * 4, list("abcd"))
    signal = Returns(lambda r: Rewards.sequence(torch.ones(len(r)), r))
    with pytest.raises(ChainError, match=rf"own: link 2 Broken\(\).*{said}"):
        System({"mine": signal}, [link, ToTokens("mine")], name="own")(rollouts)


def test_held_out_data_without_prompts_is_refused(policy_path: str, config: Any) -> None:
    rows = Dataset.from_list([{"problem": "1+1=", "answer": "2"}] * 4)
    for held_out in (rows, {"x": dataset(4), "y": rows}):
        with pytest.raises(DataError, match=r"no column 'prompt'.*rename_column\('problem', 'prompt'\)"):
            CreditTrainer(policy_path, plain_system(), config(), dataset(), held_out)


# -- chat templates --------------------------------------------------------------------------------------------------------------

NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)
SWITCHED = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:"
    "{% if enable_thinking is defined and enable_thinking is false %}no {% endif %}{% endif %}"
)
CHAT = [{"role": "system", "content": "be good"}, {"role": "user", "content": "1+1"}]


def classifier(kind: Any, labels: int) -> Any:
    settings = dict(
        vocab_size=3 + len(ALPHABET) + 40,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return kind(LlamaConfig(**settings, num_labels=labels, pad_token_id=0))


def test_a_template_without_a_system_role_is_named_with_the_cure() -> None:
    wide = tokenizer(ALPHABET + "qrstuvwxyz<>:ABCDEFGHIJKLMNOPQRSTUVWXYZ_")
    rollouts = build_rollouts(
        Sampled([[5, 6]], [wide("a\nb")["input_ids"]]), [CHAT], {}, tokenizer=wide, stop_ids={1}, cap=99, group_size=1, rank=0, clock=Clock()
    )  # fmt: skip
    rollouts = rollouts.with_spans(steps=ByDelimiter(None, "\n")(rollouts))
    theirs = tokenizer(ALPHABET + "qrstuvwxyz<>:ABCDEFGHIJKLMNOPQRSTUVWXYZ_")
    theirs.chat_template = NO_SYSTEM
    for signal in (
        StepClassifier(classifier(LlamaForTokenClassification, 2), tokenizer=theirs, retokenize=True),
        RewardModel(classifier(LlamaForSequenceClassification, 1), tokenizer=theirs, retokenize=True),
    ):
        with pytest.raises(ConfigError, match=r"System role not supported.*before the first user message"):
            signal(rollouts)
    with pytest.raises(ConfigError, match=r"roles system, user \(System role not supported\)"):
        encode_prompt(theirs, CHAT)
    assert render_chat(theirs, CHAT[1:], ask=True) == "<user>1+1\n<model>"
    with pytest.raises(ConfigError, match="has no chat template"):
        render_chat(tokenizer(), CHAT)


class Answers:
    """Two turns, and "ok" between them."""

    max_turns, turn_tokens, stop = 2, 4, ()

    def respond(self, turns: list[str]) -> list[str | None]:
        return ["ok" for _ in turns]


@pytest.mark.parametrize("turns", [False, True], ids=["one turn", "several turns"])
def test_switches_of_the_chat_template_reach_every_prompt(tmp_path: Path, turns: bool) -> None:
    tok = tokenizer(ALPHABET + "qrstuvwxyz:")
    tok.chat_template = SWITCHED
    model = tiny_model()
    model.resize_token_embeddings(len(tok))
    seen: list[Rollouts] = []
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "1+1"}]}] * 16)
    trainer = CreditTrainer(
        model, plain_system(), grpo_config(tmp_path, max_steps=1, max_completion_length=60, chat_template_kwargs={"enable_thinking": False}),
        data, processing_class=tok, rollout_func=multi_turn(Answers()) if turns else None, monitors=[lambda r, s: seen.append(r)],
    )  # fmt: skip
    trainer.train()
    assert seen[0].prompt_ids is not None and seen[0].prompt_mask is not None
    assert tok.decode(seen[0].prompt_ids[0][seen[0].prompt_mask[0]]) == "user:1+1\nassistant:no "
    if turns:
        assert "user:ok\nassistant:no " in seen[0].completions[0], "and what asks for the next turn, too"
    assert reply_frame(tok)[1] == "\nassistant:" and reply_frame(tok, enable_thinking=False)[1] == "\nassistant:no "


# -- no cap ------------------------------------------------------------------------------------------------------------------------


def test_without_a_cap_only_a_stop_token_is_an_end() -> None:
    rows = [[5, 1], [5, 6], [], [5, 6, 7, 1]]
    assert finished_rows(rows, {1}, None).tolist() == [True, False, False, True]
    assert finished_rows(rows, {1}, 3).tolist() == [True, True, False, True]


def test_a_run_without_a_cap_ends_where_the_model_does(tmp_path: Path) -> None:
    model = tiny_model()
    model.generation_config.max_length = 20
    seen: list[Rollouts] = []
    trainer = CreditTrainer(
        model, plain_system(), grpo_config(tmp_path, max_steps=1, max_completion_length=None), dataset(), processing_class=tokenizer(),
        monitors=[lambda r, s: seen.append(r)],
    )  # fmt: skip
    trainer.train()
    assert trainer.status == "finished" and int(seen[0].lengths.max()) == 16
    ended = [int(ids[mask][-1]) == 1 for ids, mask in zip(seen[0].completion_ids, seen[0].mask, strict=True)]  # type: ignore[arg-type]
    assert seen[0].finished.tolist() == ended and not all(ended)  # type: ignore[union-attr]


def test_what_needs_a_cap_says_so(tmp_path: Path) -> None:
    args = {"max_steps": 1, "max_completion_length": None}
    with pytest.raises(ConfigError, match="dr_grpo"):
        CreditTrainer(tiny_model(), plain_system(), grpo_config(tmp_path, loss_type="dr_grpo", **args), dataset())
    trainer = CreditTrainer(
        tiny_model(), plain_system(), grpo_config(tmp_path, **args), dataset(), processing_class=tokenizer(), rollout_func=multi_turn(Answers())
    )  # fmt: skip
    with pytest.raises(ConfigError, match="max_completion_length=None"):
        trainer.train()


# -- checkpoints without an optimiser ------------------------------------------------------------------------------------------------


def test_weights_alone_are_no_checkpoint_to_resume(policy_path: str, config: Any) -> None:
    args = config(max_steps=2, save_strategy="steps", save_steps=1, save_only_model=True)
    with pytest.warns(UserWarning, match="save_only_model=True leaves the optimiser out"):
        trainer = CreditTrainer(policy_path, plain_system(), args, dataset(), processing_class=tokenizer())
    trainer.train()
    folder = Path(args.output_dir)
    assert (folder / "checkpoint-2" / "model.safetensors").exists() and not (folder / "checkpoint-2" / MARKER).exists()
    assert newest_complete_checkpoint(folder) is None and weights_only(folder) == folder / "checkpoint-2"
    for resume in (True, str(folder / "checkpoint-2")):
        with pytest.raises(
            ConfigError, match=r"checkpoint-2 holds weights and no optimiser state.*start from its weights"
        ):
            CreditTrainer(policy_path, plain_system(), args, dataset()).train(resume_from_checkpoint=resume)
    CreditTrainer(policy_path, plain_system(), args, dataset()).train()  # anew is what was asked for


def test_weights_alone_are_rotated_as_well(policy_path: str, config: Any) -> None:
    args = config(max_steps=4, save_strategy="steps", save_steps=1, save_only_model=True, save_total_limit=2)
    CreditTrainer(policy_path, plain_system(), args, dataset()).train()
    assert sorted(path.name for path in Path(args.output_dir).glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_a_marker_over_weights_alone_does_not_count(policy_path: str, config: Any) -> None:
    """Checkpoints marked by an earlier version, and those whose optimiser was deleted to save space."""
    args = config(max_steps=4, save_strategy="steps", save_steps=2)
    whole = CreditTrainer(policy_path, plain_system(), args, dataset())
    whole.train()
    newest = Path(args.output_dir) / "checkpoint-4"
    (newest / "optimizer.pt").unlink()
    assert not is_complete(newest)
    marker = (newest / MARKER).read_text()
    (newest / MARKER).write_text(marker.replace('"optimizer.pt"', '"trainer_state.json"'))
    assert not is_complete(newest)
    assert newest_complete_checkpoint(args.output_dir) == Path(args.output_dir) / "checkpoint-2"
    again = CreditTrainer(policy_path, plain_system(), args, dataset())
    again.train(resume_from_checkpoint=True)
    assert same(parameters(whole), parameters(again)), "it went on from the one before, exactly"


def test_optimisers_of_sharded_runs_are_known() -> None:
    assert holds_optimiser(["model.safetensors", "optimizer_0/__0_0.distcp"])
    assert holds_optimiser(["global_step4/mp_rank_00_model_states.pt", "latest"])
    assert not holds_optimiser(["model.safetensors", "scheduler.pt", "trainer_state.json"])


# -- settings that do not fit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "cycle", "rounded", "told"),
    [(500, 3, 501, True), (500, 2, 500, False), (1, 4, 4, True), (0.5, 3, 6, True), (0.3, 3, 3, False)],
)
def test_save_steps_are_rounded_up_to_a_boundary(
    policy_path: str, config: Any, given: float, cycle: int, rounded: int, told: bool
) -> None:
    args = config(max_steps=10, save_strategy="steps", save_steps=given, num_iterations=cycle)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CreditTrainer(policy_path, plain_system(), args, dataset(), processing_class=tokenizer())
    assert args.save_steps == rounded
    assert any(f"rounded up to {rounded}" in str(w.message) for w in caught) == told


def test_the_best_of_what_was_measured_is_among_what_was_saved(policy_path: str, config: Any) -> None:
    args = config(
        max_steps=12, save_strategy="steps", save_steps=4, num_iterations=3, eval_strategy="steps", eval_steps=4,
        load_best_model_at_end=True, metric_for_best_model="reward", per_device_eval_batch_size=8,
    )  # fmt: skip
    trainer = CreditTrainer(policy_path, plain_system(), args, dataset(), dataset(4), processing_class=tokenizer())
    assert args.save_steps == 12
    trainer.train()
    assert trainer.status == "finished"


@pytest.mark.parametrize(("size", "batch"), [(1, 1), (1, 4), (2, 4), (8, 8)])
def test_evaluation_takes_groups_of_its_own_size(policy_path: str, config: Any, size: int, batch: int) -> None:
    args = config(
        max_steps=1, eval_strategy="steps", eval_steps=1, num_generations_eval=size, per_device_eval_batch_size=batch
    )
    held_out = {"x": dataset(3), "y": dataset(4)} if size == 2 else dataset(5)
    trainer = CreditTrainer(policy_path, plain_system(), args, dataset(), held_out, processing_class=tokenizer())
    trainer.train()
    rewards = [
        v
        for line in trainer.state.log_history
        for k, v in line.items()
        if k.startswith("eval_") and k.endswith("reward")
    ]
    assert rewards and all(reward == reward for reward in rewards)
