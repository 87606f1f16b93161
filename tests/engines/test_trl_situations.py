"""Situations from other trainers' bug reports that go well here, and are to stay so: streams, failures in a window, ends, truncation, accumulation.

Each names the reports it comes from. The policy is tiny and random; what is compared is exact or a stated rounding.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset
from engine_kit import Letters, dataset, grpo_config, parameters, plain_system, same, tiny_model, tokenizer

from guerdon.credit import (
    Accumulate,
    Fuse,
    GroupNorm,
    LeaveOneOut,
    MinReturn,
    OnFailure,
    PerRewardNorm,
    ToTokens,
    Whiten,
)
from guerdon.engines.trl import CreditTrainer, multi_turn
from guerdon.engines.trl.checkpoint import is_complete
from guerdon.lm.offsets import decode_offsets_batch
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.system import System

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
TOK = tokenizer()
LOSSES = ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")


def ids(text: str) -> list[int]:
    return list(TOK(text, add_special_tokens=False)["input_ids"])


def sampling(rows: Callable[[int], tuple[list[int], list[int] | None]]) -> Callable[..., dict[str, Any]]:
    """A rollout_func that gives row i's (ids, marks of the policy's own) in the place of samples."""

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        made = [rows(i) for i in range(len(prompts))]
        found = {
            "prompt_ids": [ids(prompt) for prompt in prompts],
            "completion_ids": [row for row, _ in made],
            "logprobs": None,
        }
        return found if made[0][1] is None else {**found, "env_mask": [own for _, own in made]}

    return rollout


class Given:
    """Values by row, or a function of the call's number."""

    scope, level = "row", "sequence"

    def __init__(self, values: Any) -> None:
        self.values, self.calls = values, 0

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        self.calls += 1
        values = self.values(self.calls, len(rollouts)) if callable(self.values) else torch.as_tensor(self.values)
        why = (
            {row: "judge down" for row in values.isnan().nonzero()[:, 0].tolist()} if values.is_floating_point() else {}
        )
        return Rewards.sequence(values.clone(), rollouts, why)


def step(policy_path: str, args: Any, system: System, **options: Any) -> tuple[CreditTrainer, torch.Tensor]:
    """A trainer after its run, and what the run added to the weights."""
    trainer = CreditTrainer(policy_path, system, args, dataset(), processing_class=tokenizer(), **options)
    before = torch.cat([p.detach().clone().flatten() for p in trainer.model.parameters()])
    trainer.train()
    return trainer, torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) - before


# -- data ------------------------------------------------------------------------------------------------------------------------


def test_a_stream_gives_whole_groups_and_is_resumed_where_it_was(policy_path: str, config: Any, tmp_path: Path) -> None:
    """trl 3213, 2942, 6351."""

    def rows() -> Iterator[dict[str, str]]:
        yield from ({"prompt": f"{i}=", "answer": str(i)} for i in range(64))

    def run(folder: str, steps: int, resume: bool = False) -> tuple[CreditTrainer, list[Rollouts]]:
        seen: list[Rollouts] = []
        args = grpo_config(tmp_path / folder, max_steps=steps, save_strategy="steps", save_steps=1)
        trainer = CreditTrainer(
            policy_path, plain_system(), args, IterableDataset.from_generator(rows), processing_class=tokenizer(), monitors=[lambda r, s: seen.append(r)]
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return trainer, seen

    whole, seen = run("whole", 4)
    for rollouts in seen:
        for group in rollouts.groups.unique():
            assert len({rollouts.prompts[i] for i in (rollouts.groups == group).nonzero()[:, 0].tolist()}) == 1
    _, first = run("parts", 2)
    rest, second = run("parts", 4, resume=True)
    assert [r.prompts for r in seen] == [r.prompts for r in first + second]
    assert same(parameters(whole), parameters(rest))


def test_the_best_checkpoint_is_kept_and_complete(policy_path: str, config: Any) -> None:
    """trl 3384, ms-swift 8030."""
    args = config(
        max_steps=3, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, save_total_limit=1,
        load_best_model_at_end=True, metric_for_best_model="reward", greater_is_better=True, per_device_eval_batch_size=8,
    )  # fmt: skip
    trainer = CreditTrainer(policy_path, plain_system(), args, dataset(), dataset(4), processing_class=tokenizer())
    trainer.train()
    rewards = {line["step"]: line["eval_reward"] for line in trainer.state.log_history if "eval_reward" in line}
    best = trainer.state.best_model_checkpoint
    assert len(rewards) == 3 and best is not None and best.endswith(f"-{max(rewards, key=rewards.__getitem__)}")
    assert is_complete(best)


# -- failures and logs -----------------------------------------------------------------------------------------------------------


def test_one_failed_generation_leaves_the_windows_means_numbers(policy_path: str, config: Any) -> None:
    """trl 4501, ms-swift 4653."""
    calls = 0

    def truth(completions: list[str], rows: list[dict[str, Any]]) -> list[Any]:
        nonlocal calls
        calls += 1
        return [(math.nan, "verifier down")] * len(completions) if calls == 1 else [1.0] * len(completions)

    def first_fails(call: int, size: int) -> torch.Tensor:
        return torch.full((size,), math.nan) if call == 1 else torch.rand(size)

    joined = [OnFailure("source", ("b",)), OnFailure("row"), Fuse("a", "b", into="x"), GroupNorm("x"), ToTokens("x")]
    for system, options in (
        (System({"a": Letters(), "b": Given(first_fails)}, joined), {"truth": truth}),
        (System({"b": Given(first_fails)}, [GroupNorm(), ToTokens()]), {}),
    ):
        trainer, _ = step(policy_path, config(max_steps=4, logging_steps=4), system, **options)
        line = trainer.state.log_history[0]
        assert not [
            name for name, value in line.items() if value is None or (isinstance(value, float) and math.isnan(value))
        ]
        assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())


def test_unscored_rows_leave_means_baselines_and_groups() -> None:
    """ms-swift 8123, trl 5775, 5902, verl 7581."""
    nan = math.nan
    a, b = [1.0, 0.0, nan, 0.0, 1.0, nan, nan, nan], [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    rollouts = Rollouts.from_texts(["p"] * 4 + ["q"] * 4, list("abcdefgh"))
    kept = [True, True, False, True, True, False, False, False]
    norm = System({"a": Given(a)}, [GroupNorm(), ToTokens()])(rollouts)
    x = torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(norm.advantages[[0, 1, 3], 0], (x - x.mean()) / (x.std() + 1e-4), rtol=0, atol=1e-5)
    loo = System({"a": Given(a)}, [LeaveOneOut(), ToTokens()])(rollouts)
    assert loo.advantages[:4, 0].tolist() == [1.0, -0.5, 0.0, -0.5]
    gdpo = System({"a": Given(a), "b": Given(b)}, [PerRewardNorm(into="c"), ToTokens()])(rollouts)
    for scores in (norm, loo, gdpo):
        assert scores.keep.tolist() == kept and bool(torch.isfinite(scores.advantages).all())
    for scores in (norm, loo):
        assert float(scores.advantages[4:].abs().sum()) == 0, "a group in which one row is scored"


# -- ends and truncation -----------------------------------------------------------------------------------------------------------


def test_every_end_token_is_an_end(tmp_path: Path) -> None:
    """trl 7039, compose-rl 31: generation_config.eos_token_id is a list."""
    second = TOK.convert_tokens_to_ids("\n")
    model = tiny_model()
    model.generation_config.eos_token_id = [TOK.eos_token_id, second]
    with torch.no_grad():
        model.lm_head.weight[second] *= 3
    seen: list[tuple[Rollouts, Scores]] = []
    args = grpo_config(
        tmp_path, max_steps=3, max_completion_length=12, mask_truncated_completions=True, learning_rate=0.0
    )
    trainer = CreditTrainer(
        model,
        plain_system(),
        args,
        dataset(),
        processing_class=tokenizer(),
        monitors=[lambda r, s: seen.append((r, s))],
    )
    trainer.train()
    ended = 0
    for rollouts, scores in seen:
        assert rollouts.completion_ids is not None and rollouts.finished is not None
        for row in range(len(rollouts)):
            own = rollouts.completion_ids[row][rollouts.mask[row]].tolist()
            if second in own:
                ended += 1
                assert own.index(second) == len(own) - 1 and bool(rollouts.finished[row]) and bool(scores.keep[row])
    assert ended > 0


@pytest.mark.parametrize("loss_type", LOSSES)
def test_where_everything_is_cut_nothing_is_trained_and_nothing_breaks(
    policy_path: str, config: Any, loss_type: str
) -> None:
    """trl 6369, 6439, 3248, unsloth-zoo 1286."""
    cut = sampling(lambda i: (ids("abcdefgh"[i % 8] * 8), None))
    args = config(max_steps=1, loss_type=loss_type, mask_truncated_completions=True)
    trainer, change = step(policy_path, args, plain_system(), rollout_func=cut)
    assert change.abs().max() == 0 and trainer.state.log_history[0]["loss"] == 0


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo", "grpo", "cispo"])
def test_cut_rows_leave_the_denominator(policy_path: str, config: Any, loss_type: str) -> None:
    """Four finished and four cut rows step as the four finished ones alone do."""
    changes = []
    for size in (8, 4):
        rows = sampling(lambda i: ([*ids("abcd"[i % 4] * 3), 1], None) if i < 4 else (ids("fp" * 4), None))
        args = config(
            max_steps=1, loss_type=loss_type, mask_truncated_completions=True, per_device_train_batch_size=size, optim="sgd",
            learning_rate=1.0, max_grad_norm=0.0,
        )  # fmt: skip
        signal = Given(lambda call, n: torch.arange(n).float())
        changes.append(step(policy_path, args, plain_system_of(signal), rollout_func=rows)[1])
    scale = float(changes[1].abs().max())
    assert scale > 0 and float((changes[0] - changes[1]).abs().max()) < 1e-4 * scale


def plain_system_of(signal: Any) -> System:
    return System({"x": signal}, [GroupNorm(), ToTokens()])


# -- accumulation, empty rows ------------------------------------------------------------------------------------------------------------


class Fifths:
    """Token rewards by id; chosen rows fail."""

    scope, level = "row", "token"

    def __init__(self, fail: Sequence[int] = ()) -> None:
        self.fail = fail

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        assert rollouts.completion_ids is not None
        values = ((rollouts.completion_ids % 5) == 0).float() - 0.2
        values[list(self.fail), 0] = math.nan
        return Rewards.tokens(values, rollouts)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "cispo", "sapo", "luspo"])
@pytest.mark.parametrize("fail", [(), (1, 6)], ids=["all kept", "two dropped"])
def test_accumulated_micro_batches_step_as_one(
    policy_path: str, config: Any, loss_type: str, fail: tuple[int, ...]
) -> None:
    """trl 3021, transformers 35207: with credit that differs by token, and with dropped rows."""
    generator = torch.Generator().manual_seed(5)
    rows = [[*torch.randint(3, 20, (3 + i % 5,), generator=generator).tolist(), 1] for i in range(8)]
    changes = []
    for size, accumulated in ((8, 1), (4, 2), (2, 4)):
        chain = [OnFailure("row"), Accumulate("h"), LeaveOneOut("h", "padded_tokens", padded_length=10)]
        args = config(
            max_steps=1, loss_type=loss_type, per_device_train_batch_size=size, gradient_accumulation_steps=accumulated, optim="sgd",
            learning_rate=1.0, max_grad_norm=0.0,
        )  # fmt: skip
        system = System({"h": Fifths(fail)}, chain)
        changes.append(step(policy_path, args, system, rollout_func=sampling(lambda i: (rows[i], None)))[1])
    scale = float(changes[0].abs().max())
    assert scale > 0 and max(float((c - changes[0]).abs().max()) for c in changes) < 2e-3 * scale


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_rows_of_which_nothing_is_the_policys_make_no_nan(
    policy_path: str, config: Any, loss_type: str, level: str
) -> None:
    """Flash-RL 19, miles 2796, trl 5826: a row of tool output alone, and an empty completion."""

    def row(i: int) -> tuple[list[int], list[int]]:
        if i % 4 == 0:
            return ids("7+8="), [0] * 4
        return ([1], [1]) if i % 4 == 1 else (ids("abc" * (i % 3 + 1)), [1] * 3 * (i % 3 + 1))

    args = config(max_steps=1, loss_type=loss_type, importance_sampling_level=level, beta=0.1)
    trainer, _ = step(policy_path, args, plain_system(), rollout_func=sampling(row))
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())
    assert not [k for k, v in trainer.state.log_history[0].items() if isinstance(v, float) and math.isnan(v)]


# -- what stands where nothing counts ---------------------------------------------------------------------------------------------------------


def tooled() -> Rollouts:
    texts = [("abcd", "11", "ef"), ("gh",), ("ijk", "1111"), ("l",)]
    rows = [[i for text in parts for i in ids(text)] for parts in texts]
    own = [[int(k % 2 == 0) for k, text in enumerate(parts) for _ in text] for parts in texts]
    width = max(map(len, rows))
    table = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[k < len(row) for k in range(width)] for row in rows])
    policy = torch.tensor([marks + [0] * (width - len(marks)) for marks in own]).bool()
    completions, offsets = decode_offsets_batch(TOK, table, mask)
    return Rollouts(
        ["q"] * 4, completions, completion_ids=table, completion_mask=mask, policy_mask=policy, offsets=offsets, group_ids=torch.tensor([0, 0, 1, 1])
    )  # fmt: skip


@pytest.mark.parametrize("fill", [1e6, math.nan, math.inf])
@pytest.mark.parametrize(
    "chain",
    [
        lambda: [Whiten("x")],
        lambda: [Accumulate("x"), LeaveOneOut("x", "padded_tokens"), Whiten("x")],
        lambda: [MinReturn("x"), Whiten("x")],
    ],
    ids=["whiten", "returns", "min"],
)
def test_what_stands_at_padding_reaches_no_statistic(chain: Any, fill: float) -> None:
    """SkyRL 1305, AReaL 1347."""

    class Filled:
        scope, level = "row", "token"

        def __init__(self, outside: float) -> None:
            self.outside = outside

        def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
            values = torch.rand(rollouts.mask.shape, generator=torch.Generator().manual_seed(0))
            return Rewards.tokens(torch.where(rollouts.mask, values, torch.tensor(self.outside)), rollouts)

    rollouts = tooled()
    clean, filled = (System({"x": Filled(outside)}, chain())(rollouts).advantages for outside in (0.0, fill))
    policy = rollouts.policy_mask
    assert policy is not None and torch.equal(torch.where(policy, filled, 0.0), torch.where(policy, clean, 0.0))


def test_a_return_reaches_what_came_before_the_tool() -> None:
    """verl 7278, 6376."""
    scores = System({"r": Given([1.0, 0.0, 1.0, 0.0])}, [ToTokens(), Accumulate()])(tooled())
    assert scores.advantages[0].tolist() == [1.0] * 8 and float(scores.advantages[1].abs().sum()) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rewards_in_half_precision_keep_their_baselines(dtype: torch.dtype) -> None:
    """OpenRLHF 1334; integers are no rewards."""
    rollouts = Rollouts.from_texts(["q"] * 4, list("abcd"))
    values = torch.tensor([1.0, 1.0, 1.0, 1.0078125])
    chain = [GroupNorm(), ToTokens()]
    whole = System({"x": Given(values)}, chain)(rollouts).advantages
    half = System({"x": Given(values.to(dtype))}, chain)(rollouts).advantages
    torch.testing.assert_close(half, whole, rtol=0, atol=0.02)
    with pytest.raises(Exception, match=r"signal 'x'.*floating"):
        System({"x": Given(torch.tensor([1, 0, 1, 0]))}, chain)(rollouts)


# -- ids ----------------------------------------------------------------------------------------------------------------------------------------

CASES = Path(os.environ.get("GUERDON_CASES") or Path(__file__).resolve().parents[3] / "shared" / "cases")


@pytest.mark.skipif(
    not (CASES / "tokenizers" / "qwen").exists(),
    reason="a byte-level BPE vocabulary of real size lies beside the clone only",
)
def test_in_several_turns_the_ids_that_are_trained_are_the_ids_that_were_sampled(tmp_path: Path) -> None:
    """trl 5224, SkyRL 123, slime 117, rllm 272: although the text would be encoded otherwise."""
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tok = PreTrainedTokenizerFast.from_pretrained(str(CASES / "tokenizers" / "qwen"))
    settings = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tok),
                initializer_range=0.2,
                pad_token_id=tok.pad_token_id,
                eos_token_id=tok.eos_token_id,
                **settings,
            )
        )

    class Answers:
        max_turns, turn_tokens, stop = 3, 6, ()

        def respond(self, turns: list[str]) -> list[str | None]:
            return ["ok é\n\n" for _ in turns]

    seen: list[Rollouts] = []
    trainer = CreditTrainer(
        model, plain_system(Letters()), grpo_config(tmp_path, max_steps=1, max_completion_length=40), dataset(), processing_class=tok,
        rollout_func=multi_turn(Answers()), monitors=[lambda r, s: seen.append(r)],
    )  # fmt: skip
    turns: list[list[int]] = []
    generate = trainer.instruments.policy.generate

    def spy(*args: Any, **kwargs: Any) -> Any:
        made = generate(*args, **kwargs)
        turns.extend(row[mask].tolist() for row, mask in zip(made.ids, made.mask, strict=True))
        return made

    trainer.instruments.policy.generate = spy  # type: ignore[method-assign]
    trainer.train()
    rollouts, drift = seen[0], 0
    assert rollouts.completion_ids is not None and rollouts.policy_mask is not None
    for row in range(len(rollouts)):
        own = rollouts.completion_ids[row][rollouts.policy_mask[row]].tolist()
        drift += tok(tok.decode(own), add_special_tokens=False).input_ids != own
        while own:
            turn = next(t for t in turns if t and (own[: len(t)] == t or t[: len(own)] == own))
            own = own[len(turn) :]
    assert drift > 0, "otherwise nothing was tested"
