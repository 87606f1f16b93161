"""RewardFunction: a reward function of TRL's GRPOTrainer as a signal, unchanged.

    def shorter(completions, **kwargs):                       # what you give to GRPOTrainer(reward_funcs=[shorter])
        return [-len(completion) / 100 for completion in completions]

    System({"shorter": RewardFunction(shorter)}, [GroupNorm("shorter"), ToTokens("shorter", "whole")])

The function is called once a batch, by keyword, with `prompts`, `completions` (texts, or lists of chat messages where the prompts
are chats), `completion_ids`, every data column, `trainer_state`, `log_extra` and `log_metric`. It may be asynchronous. What it
returns is one number a completion; None = it does not apply to that row, which is then masked and counts nowhere. NaN is the
instrument's failure, as everywhere here: such a row is never trained on (TRL itself reads NaN as None).

A name or a loaded model in the function's place is a sequence classifier with one label, read exactly as TRL reads it.
Written against TRL 1.16 (`GRPOTrainer._calculate_rewards`).
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guerdon.errors import CapabilityError, ConfigError, MissingColumn, ShapeError
from guerdon.lm.background import run
from guerdon.lm.encode import render_chat
from guerdon.rewards import Rewards, Scored, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.held import Held, held_by
from guerdon.signals.learned.layouts import PrmInput, pad_rows, padding_id
from guerdon.signals.learned.scalar import RewardModel
from guerdon.spans import Spans
from guerdon.system import TRAINER_STATE

_OWN = frozenset({"prompts", "completions", "completion_ids", "prompt", "completion", TRAINER_STATE})


class RewardFunction:
    """Signal: any reward function TRL takes.

    Args:
        function: (prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **columns) -> B numbers or None,
            plain or async; or a hub id, a folder or a loaded sequence classifier with one label.
        name: shown in logs; default the function's own, or the last part of the model's.
        tokenizer: of a model given in place of a function (TRL's `reward_processing_classes`); default the one beside it.
        model_options: for `from_pretrained` of a model given by name (TRL's `model_init_kwargs`).
        chat_template_kwargs: for the model's chat template.

    Raises:
        ConfigError: `function` is nothing TRL would take.
    """

    scope = "row"
    level = "sequence"
    needs: frozenset[str] = frozenset()
    roles = (TRAINER_STATE,)
    asked = "rows"  # its own rows on each rank, as in TRL; once where every rank would call it with the same rows

    def __init__(
        self,
        function: Callable[..., Any] | str | Path | torch.nn.Module,
        *,
        name: str | None = None,
        tokenizer: Any = None,
        model_options: dict[str, Any] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self._model: TRLRewardModel | None = None
        self._state: Callable[[], Any] | None = None
        if isinstance(function, (str, Path, torch.nn.Module)):
            self._model = TRLRewardModel(function, tokenizer, model_options or {}, chat_template_kwargs or {})
            self.name = name or self._model.name
        elif callable(function):
            if tokenizer is not None or model_options or chat_template_kwargs:
                raise ConfigError(
                    "tokenizer, model_options and chat_template_kwargs are for a model, not for a function"
                )
            self.name = name or callable_name(function)
        else:
            raise ConfigError(
                f"RewardFunction takes a reward function of TRL's kind, or a sequence classifier by hub id, folder or as a "
                f"loaded model; got {function!r}"
            )
        self.function = function

    def __repr__(self) -> str:
        return f"RewardFunction({self.name!r})"

    def held(self) -> list[Held]:
        """The model in the function's place, where there is one."""
        return held_by(self._model)

    def to(self, device: Any, dtype: Any = None) -> None:
        """Place the model, where there is one."""
        if self._model is not None:
            self._model.to(device, dtype)

    @property
    def tokenizer(self) -> Any:
        """Of the model in the function's place, loading it; None for a function."""
        return None if self._model is None else self._model.load()[1]

    def bind(self, role: str, instrument: Callable[[], Any]) -> None:
        """Take the trainer's state, as a function that gives the current one."""
        self._state = instrument

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> Rewards | Scored:
        """Score a batch.

        Raises:
            ShapeError: not one reward a completion. Exceptions of the function go through: they are bugs, not scores.
        """
        if self._model is not None:
            return self._model(rollouts, scores)
        texts: dict[str, list[Any]] = defaultdict(list)
        metrics: dict[str, list[float]] = defaultdict(list)
        arguments: dict[str, Any] = {name: column for name, column in rollouts.columns.items() if name not in _OWN}
        arguments |= {
            "prompts": list(rollouts.prompts),
            "completions": as_trl_completions(rollouts),
            "completion_ids": completion_id_lists(rollouts),
            TRAINER_STATE: self._current_state(rollouts),
            "log_extra": lambda column, values: texts[column].extend(values),
            "log_metric": lambda name, value: metrics[name].append(float(value)),
        }
        for wanted in required_arguments(self.function):
            if wanted not in arguments:
                raise MissingColumn(wanted, list(rollouts.columns))
        answer: Any = self.function(**arguments)  # type: ignore[operator]
        rewards = self._rewards(run(_awaited(answer)) if inspect.isawaitable(answer) else answer, rollouts)
        if not texts and not metrics:
            return rewards
        for column, cells in texts.items():
            if len(cells) != len(rollouts):
                raise ShapeError(
                    f"{self!r}: log_extra({column!r}) got {len(cells)} values for {len(rollouts)} completions; one each"
                )
        return Scored(rewards, {name: sum(v) / len(v) for name, v in metrics.items()}, dict(texts))

    def _current_state(self, rollouts: Rollouts) -> Any:
        if self._state is not None:
            return self._state()
        from transformers import TrainerState  # only where no trainer is: `import guerdon` stays light

        return TrainerState(global_step=rollouts.clock.step, max_steps=rollouts.clock.total or 0)

    def _rewards(self, answer: Any, rollouts: Rollouts) -> Rewards:
        cells = read_cells(answer, self)
        if len(cells) != len(rollouts):
            raise ShapeError(
                f"{self!r} returned {len(cells)} rewards for {len(rollouts)} completions: a reward function returns exactly one "
                f"for each completion, None where it does not apply"
            )
        applies = torch.tensor([cell is not None for cell in cells], dtype=torch.bool)[:, None]
        values = torch.tensor([0.0 if cell is None else cell for cell in cells], dtype=torch.float32)[:, None]
        reasons = {
            (row, 0): f"{self.name} returned NaN"
            for row, cell in enumerate(cells)
            if cell is not None and math.isnan(cell)
        }
        spans = Spans.sequence(rollouts.lengths.cpu())
        return Rewards(values, Spans(spans.start, spans.end, applies, spans.unit, spans.name), reasons)


async def _awaited(answer: Any) -> Any:
    return await answer


def read_cells(answer: Any, signal: Any) -> list[float | None]:
    """Numbers and None out of what a reward function returned: a list, a tuple, an array, a tensor.

    Raises:
        ShapeError: nothing of that kind.
    """
    if isinstance(answer, Tensor):
        answer = answer.detach().cpu().reshape(-1).tolist() if answer.dim() <= 1 else answer
    if isinstance(answer, (str, dict)) or not hasattr(answer, "__iter__"):
        raise ShapeError(f"{signal!r} returned {type(answer).__name__}, not a list of numbers, one for each completion")
    cells: list[float | None] = []
    for row, cell in enumerate(answer):
        try:
            cells.append(None if cell is None else float(cell))
        except (TypeError, ValueError) as error:
            raise ShapeError(
                f"{signal!r}: the reward of completion {row} is {cell!r}, neither a number nor None"
            ) from error
    return cells


def required_arguments(function: Any) -> list[str]:
    """Names of the arguments a function cannot do without; none where it does not say."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built-ins have no signature
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in named and p.default is inspect.Parameter.empty]


def callable_name(function: Callable[..., Any]) -> str:
    """What a function is called: its name, that of what a partial wraps, or its type's."""
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__name__", type(inner).__name__))


def as_trl_completions(rollouts: Rollouts) -> list[Any]:
    """Completions as TRL hands them over: what the trainer made of them, else texts, as an assistant's turn after a chat."""
    if rollouts.messages is not None:
        return list(rollouts.messages)
    return [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(rollouts.prompts, rollouts.completions, strict=True)
    ]


def completion_id_lists(rollouts: Rollouts) -> list[list[int]] | None:
    """B lists of ids without padding; None where the rollouts are texts."""
    if rollouts.completion_ids is None:
        return None
    return [ids[mask].tolist() for ids, mask in zip(rollouts.completion_ids, rollouts.mask, strict=True)]


# -- a model in the function's place ---------------------------------------------------------------------------------------


class TRLRewardModel(RewardModel):
    """Signal: a sequence classifier's score, its input laid out as TRL's GRPOTrainer does it.

    Texts: prompt and completion joined and tokenised as one, nothing added. Chats: the whole conversation, tool turns included,
    through the model's own template. The score is the logit at the last token.
    """

    def __init__(self, model: Any, tokenizer: Any, options: dict[str, Any], template: dict[str, Any]) -> None:
        source = str(model) if isinstance(model, Path) else model
        self._template = template
        if isinstance(source, torch.nn.Module) and tokenizer is None:
            tokenizer = _tokenizer_beside(source)
        super().__init__(source, tokenizer=tokenizer, convention="sequence", retokenize=True, options=options)
        path = source if isinstance(source, str) else source.config._name_or_path
        self.name = str(path).rstrip("/").split("/")[-1] or type(source).__name__

    def _input(self, rollouts: Rollouts) -> PrmInput:
        tokenizer = self._tokenizer
        rows, lengths = [], []
        for prompt, completion in zip(rollouts.prompts, as_trl_completions(rollouts), strict=True):
            if isinstance(prompt, str):
                text, before = prompt + completion, prompt
            else:
                owner = "the reward model's tokenizer"
                text = render_chat(tokenizer, [*prompt, *completion], owner=owner, **self._template)
                before = render_chat(tokenizer, prompt, owner=owner, **self._template)
            rows.append(tokenizer(text, add_special_tokens=False)["input_ids"])
            lengths.append(len(tokenizer(before, add_special_tokens=False)["input_ids"]) if before else 0)
        ids, mask = pad_rows(rows, padding_id(tokenizer))
        return PrmInput(ids, mask, mask.sum(1, keepdim=True) - 1, torch.tensor(lengths, dtype=torch.long))


def _tokenizer_beside(model: Any) -> Any:
    from transformers import AutoTokenizer

    path = getattr(model.config, "_name_or_path", "")
    if not path:
        raise ConfigError("a loaded reward model that came from no folder has no tokenizer beside it: pass tokenizer=")
    return AutoTokenizer.from_pretrained(path)


# -- an environment's own reward ---------------------------------------------------------------------------------------------


class EnvironmentReward(RewardFunction):
    """Signal: what each rollout's environment says of it, by a method without arguments (TRL's `get_reward`), plain or async.

    Args:
        environment: only environments of exactly this class are asked, the rows of others are masked; None = all that have the
            method.
        method: its name. TRL shows every public method of an environment to the policy as a tool, but for `reset` and
            `get_reward`: another reward's name begins with an underscore.
    """

    def __init__(self, environment: type | None = None, *, method: str = "get_reward", name: str | None = None) -> None:
        if method != "get_reward" and not method.startswith("_"):
            raise ConfigError(
                f"method={method!r}: TRL would offer it to the policy as a tool; name it _{method}, or get_reward"
            )
        self.environment, self.method = environment, method
        super().__init__(self._ask, name=name or (environment.__name__ if environment else "environment"))

    @property
    def owns_get_reward(self) -> bool:
        """Whether it stands in place of the reward column that TRL makes of `get_reward`."""
        return self.method == "get_reward"

    def _ask(self, environments: Sequence[Any] | None = None, **_: Any) -> list[Any]:
        if environments is None:
            raise CapabilityError(
                f"{self!r} asks the environments of rollouts, and these have none: train with environment_factory"
            )
        answers = [getattr(each, self.method)() if self._concerns(each) else None for each in environments]
        return [run(_awaited(answer)) if inspect.isawaitable(answer) else answer for answer in answers]

    def _concerns(self, environment: Any) -> bool:
        return type(environment) is self.environment if self.environment else hasattr(environment, self.method)


__all__ = ["EnvironmentReward", "RewardFunction", "TRLRewardModel"]
