"""From a word on the command line to a System that can be trained on a task.

A published system is a function with keyword parameters (`prm`, `verifier`, `temperature`, ...). What a user did not give
and the task or the model can provide - the task's verifier, its step delimiter, a small reward model trained for it - is
filled in by parameter name. So nothing outside `systems/` knows a system by name, and a system asks for what it needs by
naming it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from guerdon.errors import ConfigError, nearest
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.system import System
from guerdon.systems.spec import parse_spec

if TYPE_CHECKING:
    from guerdon.tasks.base import Task


@dataclass(frozen=True)
class TaskReward:
    """The task's own verifier as an outcome reward: 1 right, 0 wrong, NaN where the verifier itself failed.

    An outcome-only run optimises the very thing that true success measures; it is the yardstick of a comparison.
    """

    task: Task
    scope = "row"
    level = "sequence"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        keys = list(rollouts.columns)
        rows = [dict(zip(keys, cells, strict=True)) for cells in zip(*rollouts.columns.values(), strict=True)]
        rows = [
            {"prompt": prompt, **row}
            for prompt, row in zip(rollouts.prompts, rows or [{}] * len(rollouts), strict=True)
        ]
        verdicts = self.task.true_success(rollouts.last_turns, rows)
        return Rewards.sequence([v.value for v in verdicts], rollouts, [v.reason or None for v in verdicts])

    def __repr__(self) -> str:
        return f"TaskReward({self.task.name!r})"


_OF_THE_TASK = ("tokenizer", "delimiter", "max_completion_length", "padded_length")


@dataclass
class Context:
    """What a run can offer to the system it builds.

    Attributes:
        task: prompts and the verifier of true success.
        tokenizer: the policy's.
        policy: path or hub id of the starting policy.
        model: the word the user chose it by ("tiny", ...).
        max_completion_length: the run's cap on completions, tokens; None = the task's.
        offers: further providers by parameter name; they win over the built-in ones.
    """

    task: Task
    tokenizer: Any
    policy: str
    model: str = "tiny"
    max_completion_length: int | None = None
    offers: Mapping[str, Callable[[], Any]] = field(default_factory=dict)

    def provide(self, name: str) -> Any:
        """What parameter `name` of a system gets, or `inspect.Parameter.empty` where nothing can be offered."""
        own: dict[str, Callable[[], Any]] = {
            "verifier": lambda: TaskReward(self.task),
            "tokenizer": lambda: self.tokenizer,
            "delimiter": lambda: self.task.delimiter,
            "max_completion_length": lambda: self._cap,
            # The embedded task keeps to the batch's own width, with which this repository's tables were recorded.
            "padded_length": lambda: "batch" if self.model == "tiny" else self._cap,
            "prm": self._process_reward_model,
            "crm": self._conciseness_model,
            "strong": lambda: self._tiny_model(aligned=True),
            "weak": lambda: self._tiny_model(aligned=False),
            **{key: partial(self.task.notes.__getitem__, key) for key in self.task.notes},
            **self.offers,
        }
        return own[name]() if name in own else inspect.Parameter.empty

    @property
    def _cap(self) -> int:
        """Tokens a completion of the run may have."""
        return self.max_completion_length or self.task.max_completion_length

    def _process_reward_model(self) -> Any:
        """The small process reward model trained for the built-in task; others have to be named."""
        if self.task.name.partition(":")[0] != "sums" or self.model != "tiny":
            return inspect.Parameter.empty
        from guerdon.signals.learned.tiny_prm import tiny_prm

        return str(tiny_prm())

    def _tiny_model(self, *, aligned: bool) -> Any:
        """For a density ratio on the built-in task: tiny policies that have seen right solutions only, or flawed ones as well."""
        if self.task.name.partition(":")[0] != "sums" or self.model != "tiny":
            return inspect.Parameter.empty
        from guerdon.tasks.arithmetic import NO_NOISE
        from guerdon.tasks.tiny import WarmStart, tiny_policy

        return tiny_policy(warm_start=WarmStart(noise=NO_NOISE)) if aligned else tiny_policy()

    def _conciseness_model(self) -> Any:
        """The small conciseness reward model trained for the built-in task, which any policy can use: it reads texts."""
        if self.task.name.partition(":")[0] != "sums":
            return inspect.Parameter.empty
        from guerdon.signals.learned.tiny_crm import tiny_crm

        return str(tiny_crm())


def fill(builder: Callable[..., System], context: Context, options: Mapping[str, Any], name: str) -> System:
    """Call a system's builder with the user's options and what the context offers for the rest.

    Raises:
        ConfigError: an option the system does not have, or a parameter it needs that nobody gave.
    """
    parameters = inspect.signature(builder).parameters
    _check_options(name, options, parameters)
    given = dict(options)
    for key, parameter in parameters.items():
        # An optional part (default None) is only filled in when asked for by the value "task"; how the task's texts are cut,
        # how long they may be and what else it notes is no choice, so that always comes from the task.
        noted = key in _OF_THE_TASK or key in context.task.notes
        wanted = parameter.default is inspect.Parameter.empty or given.get(key) == "task" or noted
        if not wanted or (key in given and given[key] != "task"):
            continue
        offer = context.provide(key)
        if offer is inspect.Parameter.empty:
            raise ConfigError(
                f"{name} needs {key}=..., and the task {context.task.name!r} with model {context.model!r} offers none; write {name}:{key}=PATH_OR_HUB_ID"
            )
        given[key] = offer
    return builder(**given)


def build(spec: str, context: Context) -> System:
    """`name:key=value,...` -> System.

    Raises:
        ConfigError: an unknown system (with the known ones), a wrong option or a missing one.
    """
    from guerdon.systems.base import builder_of

    name, options = parse_spec(spec)
    system = fill(builder_of(name), context, options, name)
    system.name = spec
    return system


def check_spec(spec: str) -> None:
    """Raise ConfigError for an unknown system, option or value without making any model: what a typing error should cost.

    The system is composed with placeholders where a run would bring a part, so a builder must not load what it is given.
    """
    from guerdon.systems.base import Placeholder, builder_of

    name, options = parse_spec(spec)
    builder = builder_of(name)
    parameters = inspect.signature(builder).parameters
    _check_options(name, options, parameters)
    needed = {key: Placeholder(key) for key, p in parameters.items() if p.default is p.empty and key not in options}
    builder(**needed, **{key: Placeholder(key) if value == "task" else value for key, value in options.items()})


def _check_options(name: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"{name} has no option {', '.join(unknown)}{nearest(unknown[0], known)}; its options: {', '.join(known)}"
        )
