"""A token world with a known reward: what imitation loses to errors that compound, and what training on the endogenous reward gets back.

Tokens are six letters, the state is the last two, and in each state one letter, drawn at random, pays 1. The expert is the soft-optimal policy
for a horizon; a tiny language model learns a few of its trajectories by next-token prediction; then the model is trained, through the
real trainer, on the endogenous reward of its own frozen copy. Where the model has seen little it guesses, and a guess leads to states it has
seen even less of: the true return tells.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guerdon.systems.endogenous import endogenous
from guerdon.systems.reproductions.arm import TrainingPlan, train_arm

LETTERS = "abcdef"
SIZE = len(LETTERS)


@dataclass(frozen=True)
class Plan(TrainingPlan):
    """demos: expert trajectories. temperature: of the expert. epochs: updates of the language model, each on all demonstrations. The rest is
    of the training on the reward. samples: trajectories of a measurement."""

    demos: int = 24
    temperature: float = 0.3
    epochs: int = 150
    steps: int = 30
    prompts: int = 12
    lr: float = 1e-3
    samples: int = 720


SMOKE = Plan(demos=4, epochs=3, steps=2, warmup=1, prompts=2, group=2, samples=36)


class World:
    """The reward table and the expert. One seed, one world."""

    def __init__(self, seed: int, temperature: float) -> None:
        self.rng = random.Random(seed)
        self.temperature = temperature
        good = torch.tensor([self.rng.randrange(SIZE) for _ in range(SIZE * SIZE)])
        self.reward = torch.nn.functional.one_hot(good, SIZE).double()  # [S, A]
        states = torch.arange(SIZE * SIZE)
        self.following = (states % SIZE)[:, None] * SIZE + torch.arange(SIZE)  # [S, A]

    def expert(self, horizon: int) -> tuple[list[Tensor], float]:
        """Soft-optimal policies [S, A] of each step, and their expected return from a uniform start."""
        value, policies = torch.zeros(SIZE * SIZE, dtype=torch.float64), []
        for _ in range(horizon):
            q = self.reward + value[self.following]
            policies.append((q / self.temperature).softmax(1))
            value = self.temperature * (q / self.temperature).logsumexp(1)
        policies.reverse()
        expected = torch.zeros(SIZE * SIZE, dtype=torch.float64)
        for policy in reversed(policies):
            expected = (policy * (self.reward + expected[self.following])).sum(1)
        return policies, float(expected.mean())

    def demonstrations(self, horizon: int, count: int) -> list[str]:
        """Trajectories of the expert: two letters to start from, then `horizon` of its own."""
        policies, _ = self.expert(horizon)
        texts = []
        for _ in range(count):
            letters = [self.rng.randrange(SIZE), self.rng.randrange(SIZE)]
            for policy in policies:
                letters.append(self.rng.choices(range(SIZE), policy[letters[-2] * SIZE + letters[-1]].tolist())[0])
            texts.append("".join(LETTERS[i] for i in letters))
        return texts

    def returns(self, prompts: list[str], completions: list[str], horizon: int) -> list[float]:
        """The true return of each completion; letters that are none, and steps that are missing, pay nothing."""
        totals = []
        for prompt, completion in zip(prompts, completions, strict=True):
            letters, total = list(prompt), 0.0
            for letter in completion[:horizon]:
                if letter not in LETTERS or letters[-1] not in LETTERS or letters[-2] not in LETTERS:
                    letters.append(letter)
                    continue
                state = LETTERS.index(letters[-2]) * SIZE + LETTERS.index(letters[-1])
                total += float(self.reward[state, LETTERS.index(letter)])
                letters.append(letter)
            totals.append(total)
        return totals


STARTS = [a + b for a in LETTERS for b in LETTERS]


def imitator(world: World, horizon: int, plan: Plan, seed: int, folder: Path) -> str:
    """Path of a language model trained on the expert's demonstrations."""
    from guerdon.tasks import tiny

    tokenizer = tiny.char_tokenizer()
    model = tiny.new_model(
        tokenizer, tiny.TinyConfig(hidden=32, layers=2, heads=2, intermediate=64, positions=64), seed
    )
    texts = world.demonstrations(horizon, plan.demos)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts])
    schedule, optimizer = (
        tiny.Schedule(5e-3, plan.epochs, min(10, plan.epochs)),
        tiny.adamw(model.parameters(), 5e-3, 0.05),
    )
    model.train()
    for step in range(plan.epochs):
        schedule.apply(optimizer, step)
        logits = model(input_ids=ids, use_cache=False).logits[:, 1:-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 2:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def true_return(path: str, world: World, horizon: int, plan: Plan, seed: int) -> float:
    """Mean return of sampled trajectories from every start."""
    from guerdon.lm import LocalModel

    policy = LocalModel(path)
    made = policy.generate(STARTS, n=max(1, plan.samples // len(STARTS)), max_new_tokens=horizon, seed=seed)
    prompts = [start for start in STARTS for _ in range(max(1, plan.samples // len(STARTS)))]
    found = world.returns(prompts, made.texts, horizon)
    return sum(found) / len(found)


def train_on_own_reward(path: str, horizon: int, plan: Plan, seed: int, folder: Path) -> str:
    """Train a copy of the model at `path` on the endogenous reward of that model, frozen; KL 0.01, no entropy bonus. Returns its path."""
    from datasets import Dataset

    from guerdon.lm.load import load_tokenizer

    tokenizer = load_tokenizer(path)
    # Episodes have a fixed length and no end: V is 0 after the last token, and there is nothing for the guards to do.
    system = endogenous(terminal="zero", min_tokens=0, max_repeated=None)
    trained = train_arm(
        path,
        system,
        Dataset.from_list([{"prompt": start} for start in STARTS]),
        plan,
        tokens=horizon,
        seed=seed,
        loss_type="dapo",
        generation_kwargs={"min_new_tokens": horizon},
    )
    policy: Any = trained.trainer.accelerator.unwrap_model(trained.trainer.model)
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run(horizon: int, seed: int, plan: Plan, *, again: bool = False) -> dict[str, float]:
    """True returns in one world: of the expert, of its imitator, of the imitator trained on its own reward, and (`again`) of that policy
    trained on the reward extracted from itself, and of the imitator trained on its own reward for as many steps as both together."""
    world = World(seed, plan.temperature)
    found = {"expert": world.expert(horizon)[1]}
    with tempfile.TemporaryDirectory() as scratch:
        first = imitator(world, horizon, plan, seed, Path(scratch, "imitator"))
        found["imitator"] = true_return(first, world, horizon, plan, seed)
        second = train_on_own_reward(first, horizon, plan, seed, Path(scratch, "trained"))
        found["trained"] = true_return(second, world, horizon, plan, seed)
        if again:
            third = train_on_own_reward(second, horizon, plan, seed + 1, Path(scratch, "again"))
            found["again"] = true_return(third, world, horizon, plan, seed)
            longer = replace(plan, steps=2 * plan.steps)
            fourth = train_on_own_reward(first, horizon, longer, seed, Path(scratch, "longer"))
            found["longer"] = true_return(fourth, world, horizon, plan, seed)
    return found
