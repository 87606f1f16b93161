"""What a part of a System may declare, and the mistakes people make when they compose one: found at construction, with the cure.

A part is a plain callable. Everything else about it is optional attributes (`scope`, `needs`, `level`, ...), so a misspelt one would be
silent; names close to a declaration that the part does not have are refused here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from guerdon.errors import ChainError
from guerdon.rewards import Rewards, Scores

DECLARATIONS = (
    "scope", "needs", "level", "plan", "centres", "init_state", "update", "update_at", "roles", "bind", "handles_failure",
    "state_dict", "load_state_dict", "asked", "relative", "prepare", "version", "diagnostic", "to", "writes",
)  # fmt: skip
_WRONG_FORMS = {
    "scopes": "scope", "need": "needs", "requires": "needs", "levels": "level", "plans": "plan", "centre": "centres", "center": "centres",
    "initial_state": "init_state", "updates": "update", "updates_at": "update_at", "update_when": "update_at", "role": "roles",
    "handle_failure": "handles_failure", "statedict": "state_dict", "load_statedict": "load_state_dict", "ask": "asked", "asks": "asked",
    "prepares": "prepare", "versions": "version",
}  # fmt: skip

# Arguments by which TRL calls a reward function, and which no signal has.
_TRL_ARGUMENTS = frozenset({"completions", "completion_ids", "trainer_state", "log_extra", "log_metric"})


ASKED = ("everywhere", "rows", "once")


def asked_of(part: object) -> str:
    """Where a part that sees the whole batch is called: "everywhere" (on every rank), or "once", its answer handed to all ranks.

    A part says so itself (`asked`: also "rows", its own rows on each rank where the engine can, else once). One that says nothing is
    asked once where it holds a model behind an endpoint: those answers cost money, and may differ from rank to rank.
    """
    said = declared_asked(part)
    if said is None:
        return "once" if _holds_chat(part, 3) else "everywhere"
    return "once" if said == "rows" else said


def declared_asked(part: object) -> str | None:
    """A part's own word on where it is called. An attribute of that name that is no text is the part's own business."""
    said = getattr(part, "asked", None)
    return said if isinstance(said, str) else None


def _holds_chat(part: object, depth: int) -> bool:
    """Whether some attribute, not too deep, is a chat model that is not a local one."""
    if callable(getattr(type(part), "chat", None)):
        return not hasattr(type(part), "token_logprobs")  # a local model computes the same on every rank
    if depth == 0 or isinstance(part, (str, bytes, torch.Tensor, torch.nn.Module)):
        return False
    inner: list[Any] = list(getattr(part, "__dict__", {}).values())
    inner += list(part.values()) if isinstance(part, Mapping) else []
    inner += list(part) if isinstance(part, (list, tuple)) else []
    inner += [cell.cell_contents for cell in getattr(part, "__closure__", None) or () if _filled(cell)]
    return any(_holds_chat(value, depth - 1) for value in inner)


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True


def check_signals(signals: Any, system: str) -> None:
    """Raise ChainError unless `signals` is a dict from names to callables (rollouts, scores) -> Rewards."""
    if not isinstance(signals, Mapping):
        hint = (
            "; the chain comes second: System({name: signal}, [link, ...])"
            if _looks_like_a_chain(signals)
            else f": write signals={{{_name_for(signals)!r}: ...}}"
        )
        raise ChainError(f"{system}: signals is a dict from names to signals, got {_shown(signals)}{hint}")
    if not signals:
        raise ChainError(f"{system}: a system needs at least one signal")
    for name, signal in signals.items():
        if not isinstance(name, str) or not name:
            raise ChainError(f"{system}: the name of a signal is a text, got {name!r}")
        where = f"{system}: signal {name!r}"
        if _is_link(signal):
            raise ChainError(f"{where} is the link {_shown(signal)}; links belong into the chain")
        _check_callable(signal, where, "a signal is a callable (rollouts, scores) -> Rewards")
        check_declarations(signal, where)


def check_chain(chain: Any, system: str) -> None:
    """Raise ChainError unless `chain` is a sequence of links, which are objects and not classes."""
    if isinstance(chain, Mapping):
        raise ChainError(
            f"{system}: the chain is a list of links, got a dict; signals come first: System(signals, chain)"
        )
    if _is_link(chain) or not isinstance(chain, Sequence) or isinstance(chain, str):
        raise ChainError(f"{system}: the chain is a list of links, got {_shown(chain)}; write chain=[...]")
    for number, link in enumerate(chain, 1):
        where = f"{system}: link {number}"
        _check_callable(link, where, "a link is a callable (scores, rollouts) -> Scores")
        if _is_signal(link):
            raise ChainError(f"{where} is the signal {_shown(link)}; it belongs into signals={{name: ...}}")
        check_declarations(link, where)


def check_segments(segments: Any, system: str) -> None:
    """Raise ChainError unless `segments` is a dict from names to segmenters (or None: the rollouts bring them)."""
    if not isinstance(segments, Mapping):
        raise ChainError(f"{system}: segments is a dict from names to segmenters, got {_shown(segments)}")
    for name, segmenter in segments.items():
        if segmenter is not None and not callable(segmenter):
            raise ChainError(
                f"{system}: segment {name!r} is {_shown(segmenter)}; a segmenter is a callable (rollouts) -> Spans, "
                f"such as segment.ByDelimiter(tokenizer, '\\n\\n')"
            )


def check_given(given: Any, where: str) -> None:
    """Raise ChainError unless a signal returned Rewards, or a mapping from names to Rewards."""
    mapped = isinstance(given, Mapping)
    values = list(given.values()) if mapped else [given]
    if (
        values
        and all(isinstance(value, Rewards) for value in values)
        and not (mapped and set(map(type, given)) - {str})
    ):
        return
    wrong = next((value for value in values if not isinstance(value, Rewards)), None)
    inside = f" under the names {list(given)}" if mapped else ""
    raise ChainError(
        f"{where} returned {'nothing (None)' if wrong is None else f'a {type(wrong).__name__}'}{inside}, and a signal returns Rewards: "
        "Rewards.sequence(values, rollouts) for one number a rollout, Rewards.tokens for one a token. signals.text_signal lifts a function of "
        "one completion, signals.RewardFunction a reward function as TRL takes it"
    )


def check_credited(given: Any, stateful: bool, where: str) -> None:
    """Raise ChainError unless a link returned Scores, with its next state where it has one."""
    if stateful and not (isinstance(given, tuple) and len(given) == 2):
        raise ChainError(f"{where} has a state and returned a {type(given).__name__}: return (scores, next state)")
    scores = given[0] if stateful else given
    if not isinstance(scores, Scores):
        kind = "nothing (None)" if scores is None else f"a {type(scores).__name__}"
        raise ChainError(f"{where} returned {kind}: a link returns Scores, such as scores.with_source(name, rewards)")


def check_declarations(part: object, where: str) -> None:
    """Raise ChainError for a misspelt declaration that the part does not have in its right form: `scopes`, `need`, `centers`."""
    asked = declared_asked(part)
    if asked is not None and asked not in ASKED:
        raise ChainError(f"{where} {_shown(part)} has asked={asked!r}: use one of {', '.join(ASKED)}")
    own = _own_attributes(part)
    for name in sorted(own):
        known = _misspelt(name)
        if known is not None and known not in own:
            raise ChainError(
                f"{where} {_shown(part)} has an attribute {name!r}, which nothing reads; did you mean {known!r}?"
            )


def _misspelt(name: str) -> str | None:
    """The declaration meant by a common wrong form or by two swapped letters. Nearness alone would refuse `bins` for `bind`."""
    if name in DECLARATIONS:
        return None
    swapped = (known for known in DECLARATIONS if sorted(known) == sorted(name) and _swapped(name, known))
    return _WRONG_FORMS.get(name) or next(swapped, None)


def _swapped(name: str, known: str) -> bool:
    return any(name[:i] + name[i + 1] + name[i] + name[i + 2 :] == known for i in range(len(name) - 1))


def _check_callable(part: object, where: str, rule: str) -> None:
    if "signal" in rule and isinstance(part, (str, torch.nn.Module)):
        shown = repr(part) if isinstance(part, str) else type(part).__name__
        raise ChainError(
            f"{where} is {shown}; {rule}. A reward model becomes one with signals.RewardFunction({shown}), as TRL reads one, or with "
            f"signals.RewardModel({shown})"
        )
    if inspect.isclass(part):
        raise ChainError(f"{where} is the class {part.__name__}; write {part.__name__}(...)")
    if not callable(part):
        raise ChainError(f"{where} is {_shown(part)}; {rule}")
    if inspect.isfunction(part) and _is_factory(part):
        raise ChainError(f"{where} is the function {part.__name__}, which makes a part; write {part.__name__}(...)")
    if "signal" in rule and is_trl_reward(part):
        name = getattr(part, "__name__", "function")
        raise ChainError(
            f"{where} {_shown(part)} is a reward function of TRL's kind; {rule}. Write signals.RewardFunction({name})"
        )
    try:
        inspect.signature(part).bind(None, None)
    except TypeError as error:
        if _is_stateful(part):
            return
        hint = _lift(part) if "signal" in rule else ""
        raise ChainError(
            f"{where} {_shown(part)} cannot be called with two arguments ({error}); {rule}{hint}"
        ) from error
    except ValueError:  # a builtin without a signature: nothing to check
        return


def is_trl_reward(function: Any) -> bool:
    """Whether a callable is one that TRL would call as a reward function: asynchronous, by TRL's argument names, or by any."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        return True
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin has none
        return False
    if _TRL_ARGUMENTS & set(signature.parameters):
        return True
    try:
        signature.bind(None, None)
    except TypeError:
        return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    return False


def _lift(function: object) -> str:
    """How a function that is no signal becomes one."""
    return (
        ". A function of one completion becomes one with signals.text_signal(function, columns=[...]), a reward function as TRL takes "
        "it with signals.RewardFunction(function)"
    )


def _is_stateful(part: object) -> bool:
    """A link with a state takes three arguments: (scores, rollouts, state)."""
    return hasattr(part, "init_state")


def _is_factory(function: Any) -> bool:
    """One of this package's functions that return a part: public, with a capital, like the classes beside it."""
    return function.__module__.startswith("guerdon.") and function.__name__[:1].isupper()


def _is_link(part: object) -> bool:
    from guerdon.credit.link import LinkBase  # here: links are written in terms of the types above this module

    return isinstance(part, LinkBase) or (inspect.isclass(part) and issubclass(part, LinkBase))


def _is_signal(part: object) -> bool:
    return hasattr(part, "level") and not hasattr(part, "plan") and not hasattr(part, "centres")


def _looks_like_a_chain(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and any(map(_is_link, value))


def _name_for(value: object) -> str:
    """A name to suggest for what was given without one."""
    first = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and value else value
    name = getattr(first, "name", None)
    return name if isinstance(name, str) and name else "answer"


def _own_attributes(part: object) -> set[str]:
    """Attributes of the part and of its classes, without those every link inherits."""
    from guerdon.credit.link import LinkBase

    classes = [cls for cls in type(part).__mro__ if cls not in (object, LinkBase) and cls.__module__ != "builtins"]
    names = {*getattr(part, "__dict__", {}), *(name for cls in classes for name in vars(cls))}
    return {name for name in names if not name.startswith("_")}


def _shown(value: object) -> str:
    text = repr(value)
    if " at 0x" in text:
        text = getattr(value, "__name__", f"<{type(value).__name__}>")
    return text if len(text) <= 80 else text[:77] + "..."
