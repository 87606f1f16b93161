"""RewardFunction under the engine against plain TRL with the same functions: rewards and everything logged, number for number."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_kit import dataset, lines, parameters, same, tiny_model, tokenizer
from trl import GRPOTrainer

from guerdon.credit import Fuse, GroupNorm, PerRewardNorm, ToTokens
from guerdon.engines.trl import CreditTrainer
from guerdon.errors import CapabilityError
from guerdon.signals import EnvironmentReward, RewardFunction
from guerdon.system import System

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def even(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    """Applies to rollouts that begin with an even token; three of four points."""
    return [0.75 if ids[0] % 2 == 0 else None for ids in completion_ids]


def short(completions: list[str], **_: Any) -> list[float]:
    return [-0.1 * len(completion) for completion in completions]


async def answered(prompts: list[str], completions: list[str], answer: list[str], **_: Any) -> list[float | None]:
    return [float(a[:1] in c) if len(c) > 2 else None for c, a in zip(completions, answer, strict=True)]


def never(completions: list[str], **_: Any) -> list[None]:
    return [None] * len(completions)


def talkative(completions: list[str], trainer_state: Any, log_extra: Any, log_metric: Any, **_: Any) -> list[float]:
    log_extra("first", [completion[:1] for completion in completions])
    log_metric("step_seen", float(trainer_state.global_step))
    log_metric("epoch_seen", float(trainer_state.epoch or 0.0))
    return [float(trainer_state.global_step) + len(completion) for completion in completions]


FUNCTIONS = {f.__name__: f for f in (even, short, answered, never, talkative)}


def system_of(names: list[str], weights: list[float] | None = None, gdpo: bool = False) -> System:
    signals = {name: RewardFunction(FUNCTIONS[name]) for name in names}
    if gdpo:
        return System(signals, [PerRewardNorm(tuple(names), tuple(weights or ()) or None), ToTokens("credit", "whole")])
    join = [Fuse(*names, weights=weights, into="reward")] if len(names) > 1 else []
    credit = "reward" if join else names[0]
    return System(signals, [*join, GroupNorm(credit), ToTokens(credit, "whole")])


def numbers(trainer: Any, *, leave: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """What was logged a step, without what only one of the two has."""
    skip = {"kept", "step_time", *leave}  # and chain/..., which are ours
    return [
        {k: v for k, v in line.items() if k not in skip and "runtime" not in k and not k.startswith("chain/")}
        for line in trainer.state.log_history[:-1]
    ]


@pytest.mark.parametrize(
    "names, weights, gdpo",
    [
        (["even"], None, False),
        (["short"], None, False),
        (["answered"], None, False),
        (["even", "short"], None, False),
        (["even", "short", "answered"], [0.7, 0.3, 2.0], False),
        (["even", "never"], None, False),
        (["talkative", "even"], [0.5, 1.0], False),
        (["short", "talkative"], [0.7, 0.3], True),
    ],
)
def test_logged_rewards_are_trls(policy_path: str, config: Any, names: list[str], weights: Any, gdpo: bool) -> None:
    aggregation = "normalize_then_sum" if gdpo else "sum_then_normalize"
    plain = GRPOTrainer(
        policy_path,
        [FUNCTIONS[name] for name in names],
        config(reward_weights=weights, multi_objective_aggregation=aggregation, max_steps=2),
        dataset(),
    )
    plain.train()
    ours = CreditTrainer(policy_path, system_of(names, weights, gdpo), config(max_steps=2), dataset())
    ours.train()
    leave = ("frac_reward_zero_std",) if gdpo or "even" in names else ()
    for theirs, mine in zip(numbers(plain, leave=leave), numbers(ours, leave=leave), strict=True):
        assert theirs.keys() == mine.keys()
        for key, value in theirs.items():
            if value is None or math.isnan(value):
                assert mine[key] is None or math.isnan(mine[key]), key
            else:
                assert mine[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
    assert all(torch.allclose(weight, parameters(ours)[name], atol=2e-6) for name, weight in parameters(plain).items())
    assert dict(plain._logs["extra"]) == dict(ours._logs["extra"])


def test_where_nothing_applies_nan_is_logged_and_said(
    policy_path: str, config: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    trainer = CreditTrainer(policy_path, system_of(["never"]), config(max_steps=1), dataset(), log_dir=tmp_path)
    before = parameters(trainer)
    with caplog.at_level(logging.WARNING, logger="guerdon"):
        trainer.train()
    assert (
        "All reward functions returned None for the following kwargs" in caplog.text
        and "other 7 rollouts" in caplog.text
    )
    line = trainer.state.log_history[0]
    assert line["reward"] is None and line["rewards/never/mean"] is None
    (record,) = lines(tmp_path / "metrics.jsonl")
    assert record["reward"] is None and record["components"]["never"] == {"mean": None, "std": None, "nan": 0.0}
    assert same(before, parameters(trainer)), "nothing to learn from"


def test_the_log_of_a_function_reaches_ours(policy_path: str, config: Any, tmp_path: Path) -> None:
    trainer = CreditTrainer(policy_path, system_of(["talkative"]), config(max_steps=2), dataset(), log_dir=tmp_path)
    trainer.train()
    records = lines(tmp_path / "metrics.jsonl")
    assert [record["logged"]["step_seen"] for record in records] == [0.0, 1.0]
    shown = lines(tmp_path / "rollouts.jsonl")
    assert all(row["texts"]["first"] == row["completion"][:1] for row in shown)


class Guess:
    """An environment that pays for its own reset count."""

    def reset(self, **_: Any) -> None:
        self.worth = getattr(self, "worth", 0.0) + 1.0

    def get_reward(self) -> float:
        return self.worth


def chat_policy() -> tuple[Any, Any]:
    """The tiny policy with a chat template that can call tools."""
    tok = tokenizer()
    tok.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }}"
        "{% if m.get('tool_calls') %}{% for c in m['tool_calls'] %}{{ c['function']['name'] }}{{ c['function']['arguments'] }}{% endfor %}{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}a{% endif %}{% if tools %}{% endif %}"
    )
    return tiny_model(), tok


def test_chats_and_reward_models_are_read_as_trl_reads_them(config: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

    model, tok = chat_policy()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        judge = LlamaForSequenceClassification(
            LlamaConfig(**{**model.config.to_dict(), "num_labels": 1, "architectures": None})
        )
    judge.save_pretrained(tmp_path / "judge")
    tok.save_pretrained(tmp_path / "judge")
    model.save_pretrained(tmp_path / "policy")
    tok.save_pretrained(tmp_path / "policy")
    rows = dataset().map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    for path in (str(tmp_path / "judge"), AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge")):
        for data in (rows, dataset()):
            plain = GRPOTrainer(str(tmp_path / "policy"), path, config(max_steps=2), data)
            plain.train()
            signal = RewardFunction(path)
            assert signal.name == "judge"
            system = System({"judge": signal}, [GroupNorm("judge"), ToTokens("judge", "whole")])
            ours = CreditTrainer(str(tmp_path / "policy"), system, config(max_steps=2), data)
            ours.train()
            for theirs, mine in zip(numbers(plain), numbers(ours), strict=True):
                assert mine["reward"] == pytest.approx(theirs["reward"], abs=1e-5)
                assert mine["rewards/judge/std"] == pytest.approx(theirs["rewards/judge/std"], abs=1e-5)


def test_an_environment_that_owns_its_reward_is_named_or_refused(config: Any) -> None:
    model, tok = chat_policy()
    rows = dataset().map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    options = {"processing_class": tok, "environment_factory": Guess}
    with pytest.raises(CapabilityError, match=r"Guess has get_reward.*EnvironmentReward\(\).*leading underscore"):
        CreditTrainer(model, system_of(["short"]), config(), rows, **options)
    system = System(
        {"own": EnvironmentReward(), "short": RewardFunction(short)},
        [Fuse("own", "short", weights=(1.0, 0.0)), GroupNorm("own"), ToTokens("own", "whole")],
    )
    trainer = CreditTrainer(tiny_model(), system, config(max_steps=2), rows, **options)
    assert trainer.reward_func_names == ["own", "short"]
    trainer.train()
    assert [line["rewards/own/mean"] for line in trainer.state.log_history[:2]] == [1.0, 2.0]


def test_an_environment_may_bring_the_prompt(config: Any) -> None:
    model, tok = chat_policy()
    system = System({"own": EnvironmentReward()}, [GroupNorm("own"), ToTokens("own", "whole")])
    rows = dataset().remove_columns("prompt").add_column("environment", ["guess"] * len(dataset()))
    trainer = CreditTrainer(
        model, system, config(max_steps=1), rows, processing_class=tok, environment_factory={"guess": Guess}
    )
    trainer.train()
    assert trainer.state.log_history[0]["rewards/own/mean"] == 1.0
