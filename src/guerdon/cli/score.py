"""`guerdon score`: a signal or a system by name, over a file. The work is `guerdon.io.score_file`; here words become parts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from guerdon.cli.device import torch_device, torch_dtype
from guerdon.cli.models import resolve_model
from guerdon.errors import ConfigError, nearest
from guerdon.system import System, model_roles
from guerdon.systems.spec import parse_scalar, parse_spec

# What a person types -> the factory in guerdon.signals. Keys are the words of the field, not our class names.
SIGNALS = {
    "math": "Math",
    "exact": "Exact",
    "numeric": "Numeric",
    "choice": "MultipleChoice",
    "qa": "QA",
    "embedding": "EmbeddingSimilarity",
    "answer_tag": "AnswerTag",
    "think_format": "ThinkFormat",
    "length": "Length",
    "repetition": "Repetition",
    "reasoning_patterns": "ReasoningPatterns",
    "relative_perplexity": "RelativePerplexity",
    "conciseness": "Conciseness",
    "last_token": "LastTokenScore",
    "endogenous_reward": "EndogenousReward",
}


def score_command(
    source: Path,
    target: Path,
    reward: str,
    *,
    prompt: str | None,
    completion: str | None,
    group: str | None,
    batch_size: int,
    model: str | None,
    endpoint: str | None = None,
    tokenizer: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    sets: Sequence[str],
    on_broken: Any = "raise",
    restart: bool,
    quiet: bool,
    console: Console,
) -> None:
    """Score a file and say how it went. Raises ConfigError for an unknown reward or option, DataError for a broken file.

    Column names that were not given are those of the file that people usually give them (`io.names`).
    """
    from guerdon.io import ScoreProgress, score_file
    from guerdon.io.names import COMPLETION_COLUMNS, PROMPT_COLUMNS, first_of, names_of

    there = names_of(source)
    prompt, completion = prompt or first_of(PROMPT_COLUMNS, there), completion or first_of(COMPLETION_COLUMNS, there)
    name, part = reward_by_name(reward, sets, there)
    provides = bind_models(part, model, endpoint, tokenizer, device=device, dtype=dtype)
    config = {"model": model} | ({"endpoint": endpoint, "tokenizer": tokenizer} if endpoint else {})
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[seen]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=quiet) as progress:
        bar = progress.add_task(name, total=1.0, seen="")

        def show(state: ScoreProgress) -> None:
            share = (
                state.fraction if state.fraction is not None else (state.rows / state.total if state.total else None)
            )
            progress.update(
                bar,
                completed=share or 0.0,
                seen=f"{state.rows} rows, mean {state.mean:.3f}, {state.failed} without a score",
            )

        result = score_file(
            source, target, part, name=name, prompt_column=prompt, completion_column=completion, group_column=group,
            batch_size=batch_size, provides=provides, config=config, on_broken=on_broken, on_progress=show,
            restart=restart,
        )  # fmt: skip
        progress.update(bar, completed=1.0)
    if quiet:
        return
    resumed = f" ({result.resumed_at} of them by an earlier call)" if result.resumed_at else ""
    console.print(f"{result.rows} rows{resumed} -> {result.path}", highlight=False)
    console.print(
        f"mean reward {result.mean:.4f}; {result.failed} rows have no score, each with its reason in reward_reason",
        highlight=False,
    )
    for line in [
        *(f"input column {old!r} is kept as {new!r}" for old, new in (result.renamed or {}).items()),
        *result.problems,
        *result.notes,
    ]:
        console.print(f"note: {escape(line)}", highlight=False)


def reward_by_name(spec: str, sets: Sequence[str] = (), columns: Sequence[str] = ()) -> tuple[str, Any]:
    """`math:reference=gold` or a system's spec -> (name, signal or System); `sets` are further key=value options.

    columns: of the file it will read; a verifier whose `reference` is not given reads the first usual name of an answer.

    Raises:
        ConfigError: an unknown name, with the known ones; an unknown option, with the signal's own.
    """
    name, options = parse_spec(spec)
    for pair in sets:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set takes key=value, got {pair!r}")
        options[key.strip()] = parse_scalar(value)
    if name in SIGNALS:
        return name, _signal(name, options, columns)
    from guerdon.systems import SYSTEMS, VARIANTS
    from guerdon.systems.base import builder_of

    if name not in SYSTEMS and name not in VARIANTS:
        near = nearest(name, [*SIGNALS, *SYSTEMS, *VARIANTS])
        raise ConfigError(
            f"no reward {name!r}{near}; signals: {', '.join(SIGNALS)}; systems: {', '.join([*SYSTEMS, *VARIANTS])}"
        )
    builder = builder_of(name)
    if isinstance(options.get("verifier"), str):
        options["verifier"] = signal_by_name(options["verifier"], columns)
    return name, call_with(builder, options, name)


def signal_by_name(spec: str, columns: Sequence[str] = ()) -> Any:
    """`math` or `math:reference=gold`, as a part of a system; several options go into brackets: `(qa:reference=gold,metric=f1)`.

    Raises:
        ConfigError: as `reward_by_name`; a system is no signal.
    """
    name, options = parse_spec(spec.removeprefix("(").removesuffix(")"))
    if name not in SIGNALS:
        raise ConfigError(f"no signal {name!r}{nearest(name, SIGNALS)}: use one of {', '.join(SIGNALS)}")
    return _signal(name, options, columns)


def _signal(name: str, options: dict[str, Any], columns: Sequence[str] = ()) -> Any:
    from guerdon import signals
    from guerdon.io.names import ANSWER_COLUMNS, first_of

    default = getattr(inspect.signature(getattr(signals, SIGNALS[name])).parameters.get("reference"), "default", None)
    if default in ANSWER_COLUMNS and "reference" not in options and columns and default not in columns:
        options = {**options, "reference": first_of(ANSWER_COLUMNS, columns)}
    return call_with(getattr(signals, SIGNALS[name]), options, name)


def call_with(factory: Any, options: dict[str, Any], name: str) -> Any:
    """Call a factory with options, naming its own where one is unknown or missing."""
    parameters = inspect.signature(factory).parameters
    unknown = sorted(set(options) - set(parameters))
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    missing = sorted(
        key for key, p in parameters.items() if p.default is p.empty and p.kind in named and key not in options
    )
    if unknown or missing:
        problem = (
            f"has no option {', '.join(unknown)}{nearest(unknown[0], parameters)}"
            if unknown
            else f"needs {', '.join(missing)}"
        )
        hint = f" (such as {name}:verifier=math; a verifier is any signal)" if "verifier" in missing else ""
        raise ConfigError(f"{name} {problem}; its options: {', '.join(parameters)}{hint}")
    return factory(**options)


def bind_models(
    part: Any,
    model: str | None,
    endpoint: str | None = None,
    tokenizer: str | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
) -> frozenset[str]:
    """Load `--model`, or reach it at `--endpoint`, for every role the reward asks for; returns what that provides.

    Raises:
        ConfigError: no model, an endpoint for a reward that reads none, a tokenizer that cannot be loaded.
        CapabilityError: an endpoint that does not score given text. Found here, before the file is read.
    """
    if tokenizer is not None and endpoint is None:
        raise ConfigError("--tokenizer goes with --endpoint: a local model brings its own")
    parts = part.parts() if isinstance(part, System) else [part]
    if device is not None or dtype is not None:
        for inner in parts:
            if callable(getattr(inner, "to", None)):
                inner.to(torch_device(device or "cpu"), torch_dtype(dtype))
    roles = sorted({role for inner in parts for role in model_roles(inner)})
    if not roles:
        if endpoint is not None:
            raise ConfigError(f"--endpoint {endpoint}: this reward reads no model")
        return frozenset()
    if model is None:
        raise ConfigError(
            f"this reward reads the model in the role of {', '.join(roles)}: give it with --model (a hub id, a path or smollm2; "
            f"with --endpoint the name the server knows)"
        )
    loaded = _served(model, endpoint, tokenizer) if endpoint is not None else _local(model, device, dtype)
    for inner in parts:
        for role in sorted(model_roles(inner)):
            inner.bind(role, loaded)
    return frozenset({*roles, *(f"{role}.score" for role in roles)})


def _local(model: str, device: str | None, dtype: str | None) -> Any:
    from guerdon.lm import LocalModel

    return LocalModel(resolve_model(model), device=torch_device(device), dtype=torch_dtype(dtype) or "float32")


def _served(model: str, url: str, tokenizer: str | None) -> Any:
    """A scoring endpoint, tried with a prompt of two tokens."""
    import torch

    from guerdon.lm import Endpoint, RemoteModel, load_tokenizer

    source = tokenizer or model
    try:
        loaded = load_tokenizer(source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the tokenizer of {source!r} cannot be loaded: give the served model's with --tokenizer (a hub id or a folder)"
        ) from error
    endpoint = Endpoint(RemoteModel(model, base_url=url), loaded)
    ids = endpoint.tokenizer("a b", add_special_tokens=False)["input_ids"]
    _, failed = endpoint.token_logprobs([torch.tensor([*ids, *ids][:2])])
    if failed:
        raise ConfigError(f"--endpoint {url}: {failed[0]}")
    return endpoint
