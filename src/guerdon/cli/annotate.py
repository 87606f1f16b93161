"""`guerdon annotate`: preference pairs by any reward that `guerdon score` knows. The work is `guerdon.preference.annotate_file`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from guerdon.cli.score import bind_models, reward_by_name


def annotate_command(
    source: Path,
    target: Path,
    reward: str,
    *,
    part: str | None,
    prompt: str | None,
    responses: str,
    completion: str | None,
    length_tolerance: float | None,
    seed: int,
    batch_size: int,
    model: str | None,
    device: str | None = None,
    dtype: str | None = None,
    sets: Sequence[str],
    on_broken: Any = "raise",
    restart: bool,
    quiet: bool,
    console: Console,
) -> None:
    """Annotate a file and say how it went.

    Raises:
        ConfigError: an unknown reward or option, or several sources and none named.
        DataError: a broken file, or not one prompt that gave a pair.
    """
    from guerdon.io.names import COMPLETION_COLUMNS, PROMPT_COLUMNS, first_of, names_of
    from guerdon.preference import annotate_file

    there = names_of(source)
    prompt, completion = prompt or first_of(PROMPT_COLUMNS, there), completion or first_of(COMPLETION_COLUMNS, there)
    name, signal = reward_by_name(reward, sets, there)
    bind_models(signal, model, device=device, dtype=dtype)
    with Progress(console=console, disable=quiet, transient=True) as progress:
        bar = progress.add_task(name, total=None)

        def show(rows: int, left_out: int) -> None:
            progress.update(bar, description=f"{name}: {rows} pairs, {left_out} prompts without one")

        done = annotate_file(
            source,
            target,
            signal,
            source=part,
            prompt_column=prompt,
            responses_column=responses,
            completion_column=completion,
            length_tolerance=length_tolerance,
            seed=seed,
            batch_size=batch_size,
            on_progress=show,
            on_broken=on_broken,
            restart=restart,
        )
    if quiet:
        return
    console.print(
        f"{done.file.rows} pairs -> {done.file.path}; {done.file.left_out} prompts without one",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"correlation of reward and length: {done.length_correlation:.2f} (far from 0, the pairs teach length)",
        highlight=False,
        soft_wrap=True,
    )
    for line in done.file.problems:
        console.print(f"note: {escape(line)}", highlight=False, soft_wrap=True)
