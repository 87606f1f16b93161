"""Tiny policies that answer in a few characters: taught from drawn answers, then trained through the real trainer, in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from guerdon.cache import cached_artifact
from guerdon.system import System
from guerdon.systems.reproductions.arm import TrainingPlan, train_arm
from guerdon.tasks import tiny
from guerdon.tasks.base import Task


@dataclass(frozen=True)
class Start:
    """A starting policy: `steps` of supervised learning on `batch` drawn answers each."""

    steps: int = 500
    batch: int = 128
    hidden: int = 64
    layers: int = 2
    lr: float = 5e-3


SMOKE_START = Start(steps=3, batch=8, hidden=16, layers=1)
Draw = Callable[[int], list[tuple[str, str]]]  # n -> n prompts with answers


def starting_policy(kind: str, draw: Draw, settings: Start, sources: Sequence[ModuleType], seed: int = 0) -> str:
    """Path of a policy that has learned from `draw`, made on first use (half a minute on one core) and cached.

    sources: the modules whose code decides what is drawn.
    """

    def build(directory: Path) -> None:
        tokenizer = tiny.char_tokenizer()
        model = _taught(tokenizer, draw, settings, seed)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        (directory / "card.json").write_text(json.dumps(asdict(settings), indent=2) + "\n")

    return str(cached_artifact(kind, {"seed": seed, **asdict(settings)}, [tiny, *sources], build))


def _taught(tokenizer: Any, draw: Draw, settings: Start, seed: int) -> Any:
    model = tiny.new_model(
        tokenizer, tiny.TinyConfig(settings.hidden, settings.layers, 4, 3 * settings.hidden, 64), seed
    )
    schedule = tiny.Schedule(settings.lr, settings.steps, min(50, settings.steps))
    optimizer = tiny.adamw(model.parameters(), settings.lr, 0.01)
    model.train()
    for step in tiny.progress(settings.steps, "warm-starting a policy of short answers"):
        pairs = draw(settings.batch)
        # A token a character, so a prompt's length in characters says where the answer begins.
        rows = tokenizer([p + a for p, a in pairs], padding=True, padding_side="right", return_tensors="pt")
        end = torch.full((len(pairs), 1), tokenizer.pad_token_id)
        ids = torch.cat([rows["input_ids"], end], 1)
        lengths = rows["attention_mask"].sum(1)
        ids[torch.arange(len(pairs)), lengths] = tokenizer.eos_token_id
        place = torch.arange(ids.shape[1])
        asked = (place >= torch.tensor([len(p) for p, _ in pairs])[:, None]) & (place <= lengths[:, None])
        schedule.apply(optimizer, step)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        targets = torch.where(asked, ids, -100)[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@dataclass(frozen=True)
class Plan(TrainingPlan):
    """The budget of a run: optimiser steps of `prompts` x `group` rollouts, a measurement every `every` steps."""

    steps: int = 100
    prompts: int = 16
    lr: float = 5e-4


SMOKE = Plan(steps=2, warmup=1, prompts=2, group=2, every=1)


def train(system: System, task: Task, policy: str, seed: int, plan: Plan, measure: Any) -> None:
    """On-policy, one update a batch, no KL term, temperature 1, the loss a mean over rollouts.

    measure: a monitor, which is asked once more at the end: `measure(step, seed)`.
    """
    train_arm(
        policy,
        system,
        task.to_dataset("train"),
        plan,
        tokens=task.max_completion_length,
        seed=seed,
        loss_type="grpo",
        monitors=[measure],
    )
    measure.measure(plan.steps, seed)
