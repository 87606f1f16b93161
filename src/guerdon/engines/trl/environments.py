"""Rollouts of several turns: a `rollout_func` for TRL that samples a turn, asks an environment, and goes on until it has no answer.

    trainer = CreditTrainer(model, system, args, train_dataset, rollout_func=multi_turn(environment))

What TRL and this engine get for each row: the prompt's ids, the ids of everything after it, and `env_mask`, 1 where the policy sampled
the token. What the environment wrote, and whatever a chat template puts around it, is context: it is never in the loss, and
`Rollouts.policy_mask` is False there. Ids are joined, never tokenised again, so the policy is trained on what it sampled.

The prompts come repeated, one for each rollout. Sampling is the policy's own (`guerdon.lm.LocalModel`), seeded by one draw from the
global generator for each turn, so that runs repeat and resume. Left out: vLLM, models sharded by FSDP or ZeRO-3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guerdon.errors import CapabilityError, ConfigError
from guerdon.lm.encode import encode_continuation, encode_prompt, render_chat
from guerdon.lm.local import LocalModel, end_ids

if TYPE_CHECKING:
    from guerdon.tasks.environment import Environment

RolloutFunc = Callable[[list[Any], Any], dict[str, Any]]
_USER, _TURN, _REPLY = "question-7f3a", "turn-7f3a", "reply-7f3a"


@dataclass
class _Row:
    """One rollout in the making."""

    prompt: Tensor
    ids: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    running: bool = True

    def add(self, ids: Sequence[int], own: bool) -> None:
        self.ids += ids
        self.own += [int(own)] * len(ids)

    def history(self) -> Tensor:
        return torch.cat([self.prompt, torch.tensor(self.ids, dtype=torch.long)])


def multi_turn(environment: Environment, *, reply_role: str = "user") -> RolloutFunc:
    """A `rollout_func` over an environment.

    A rollout ends with the turn the environment does not answer, with its last turn, or where the next reply (and one token more)
    would not fit into `max_completion_length`, which counts replies too. Prompts of chat messages are rendered with the tokenizer's
    template, and so are replies; prompts that are texts stay bare and so do replies.

    Args:
        environment: what answers.
        reply_role: of the environment's messages in a chat.

    Returns:
        (prompts, trainer) -> {"prompt_ids", "completion_ids", "logprobs": None, "env_mask"}, for a `GRPOTrainer` or a `CreditTrainer`.
    """
    if environment.max_turns < 1:
        raise ConfigError(f"max_turns={environment.max_turns}: a rollout has at least one turn")

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        _refuse_sharded(trainer)
        if trainer.max_completion_length is None:
            raise ConfigError(
                "max_completion_length=None: rollouts of several turns need a length they end at; give a number of tokens"
            )
        model = _policy(trainer)
        settings = getattr(trainer, "generation_config", None)
        rows = sample_rollouts(
            model,
            prompts,
            environment,
            max_tokens=trainer.max_completion_length,
            temperature=_setting(settings, "temperature", trainer.temperature),
            top_p=_setting(settings, "top_p", trainer.top_p),
            reply_role=reply_role,
            template_options=getattr(trainer, "chat_template_kwargs", None),
        )
        return {
            "prompt_ids": [row.prompt.tolist() for row in rows],
            "completion_ids": [row.ids for row in rows],
            "logprobs": None,
            "env_mask": [row.own for row in rows],
        }

    return rollout


def sample_rollouts(
    model: LocalModel,
    prompts: Sequence[Any],
    environment: Environment,
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    reply_role: str = "user",
    template_options: Mapping[str, Any] | None = None,
) -> list[_Row]:
    """Rollouts of a batch of prompts, turn by turn, all rows that still run at once. Arguments as for `multi_turn`.

    template_options: switches of the chat template (`chat_template_kwargs` of a GRPOConfig), for prompts and for replies.
    """
    options = dict(template_options or {})
    tokenizer = model.tokenizer
    chat = bool(prompts) and not isinstance(prompts[0], str)
    frame = reply_frame(tokenizer, reply_role, **options) if chat else ("", "")
    ends = set(end_ids(model.model, tokenizer))
    rows = [_Row(encode_prompt(tokenizer, prompt, **options)) for prompt in prompts]
    for turn in range(environment.max_turns):
        live = [row for row in rows if row.running]
        if not live:
            break
        turns = _sample_turns(model, live, environment, max_tokens, temperature, top_p)
        texts = [tokenizer.decode([i for i in ids if i not in ends], skip_special_tokens=False) for ids in turns]
        last = turn == environment.max_turns - 1
        replies: list[str | None] = [None] * len(live) if last else environment.respond(texts)
        for row, ids, reply in zip(live, turns, replies, strict=True):
            row.add(ids, own=True)
            framed = [] if reply is None else _framed(tokenizer, reply, frame, closed=ids[-1] in ends, ends=ends)
            if reply is None or len(row.ids) + len(framed) >= max_tokens:
                row.running = False
            else:
                row.add(framed, own=False)
    return rows


def _sample_turns(
    model: LocalModel, live: list[_Row], environment: Environment, max_tokens: int, temperature: float, top_p: float
) -> list[list[int]]:
    """The next turn of each row, at least one token long."""
    room = [max_tokens - len(row.ids) for row in live]
    cap = min(max(room), environment.turn_tokens or max_tokens)
    sampled = model.generate(
        [row.history() for row in live],
        max_new_tokens=cap,
        temperature=temperature,
        top_p=top_p,
        seed=int(torch.randint(2**62, ())),
        stop=environment.stop,
    )
    return [ids[mask][:left].tolist() for ids, mask, left in zip(sampled.ids, sampled.mask, room, strict=True)]


def reply_frame(tokenizer: Any, role: str = "user", **options: Any) -> tuple[str, str]:
    """What a chat template puts between a turn and the reply to it, and between the reply and the next turn.

    Read off a rendered conversation, so that any template will do whose messages appear as they are.

    Raises:
        CapabilityError: the template does not show the messages in order (it drops or rewrites earlier turns).
    """
    messages = [
        {"role": "user", "content": _USER},
        {"role": "assistant", "content": _TURN},
        {"role": role, "content": _REPLY},
    ]
    text = render_chat(tokenizer, messages, ask=True, owner="the policy's tokenizer", **options)
    _, turn, rest = text.partition(_TURN)
    before, reply, after = rest.partition(_REPLY)
    if not turn or not reply:
        raise CapabilityError(
            f"this tokenizer's chat template does not show an assistant's turn followed by a message of {role!r}; try reply_role='user' or 'tool'"
        )
    return before, after


def _framed(tokenizer: Any, reply: str, frame: tuple[str, str], *, closed: bool, ends: set[int]) -> list[int]:
    """A reply's ids with its frame. The turn's own end token is not written twice."""
    before = encode_continuation(tokenizer, frame[0]).tolist() if frame[0] else []
    if closed and before and before[0] in ends:
        before = before[1:]
    after = encode_continuation(tokenizer, frame[1]).tolist() if frame[1] else []
    return [*before, *encode_continuation(tokenizer, reply).tolist(), *after]


def _policy(trainer: Any) -> LocalModel:
    """The live policy as an instrument: the engine's own, or one made for a plain GRPOTrainer."""
    instruments = getattr(trainer, "instruments", None)
    if instruments is not None:
        return instruments.policy
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    return LocalModel(trainer.accelerator.unwrap_model(trainer.model), tokenizer)


def _refuse_sharded(trainer: Any) -> None:
    from guerdon.engines.trl.compat import is_sharded  # needs TRL's own imports

    if is_sharded(trainer):
        raise CapabilityError(
            "rollouts of several turns are sampled by each rank's own copy of the policy, and FSDP or ZeRO-3 leaves none whole: use DDP"
        )
    if getattr(trainer, "use_vllm", False):
        raise CapabilityError(
            "multi_turn samples with transformers: set use_vllm=False, or give a rollout_func of your own"
        )


def _setting(config: Any, name: str, default: float | None) -> float:
    value = getattr(config, name, None)
    return 1.0 if value is None and default is None else float(value if value is not None else default)  # type: ignore[arg-type]


__all__ = ["multi_turn", "reply_frame", "sample_rollouts"]
