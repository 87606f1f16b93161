"""The `guerdon` command: one function a command, each a thin layer over a function that can be called from Python.

Exit codes: 0 done, 1 it ran and something is wrong (a vector fails, a run failed), 2 it was asked wrongly, 130 Ctrl-C (the
run is saved; the same command continues it).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from guerdon.cli import trouble
from guerdon.cli.lifeline import end_with_parent, patience_s
from guerdon.errors import GuerdonError
from guerdon.interrupt import raise_on_stop
from guerdon.redact import without_credentials

app = typer.Typer(
    name="guerdon",
    help="Reward design for reinforcement learning: train under published reward systems, compare them, score files.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console(stderr=True)

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file; any setting, see --help of the flags")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value for any setting of --settings; dots nest: --set grpo.num_iterations=2"),
]
Options = Annotated[list[str] | None, typer.Option("--set", help="key=value for any option of the reward")]
Prompt = Annotated[str | None, typer.Option(help="name of the prompt column; default: prompt, question or problem")]
Completion = Annotated[
    str | None,
    typer.Option(
        help="name of the column with one completion a row; default: completion, response, output or generation"
    ),
]
Steps = Annotated[int | None, typer.Option(help="optimiser steps")]
Task = Annotated[
    str | None, typer.Option(help="sums | reasoning-gym:NAME[,key=value] | FILE.jsonl | FILE.parquet | hub data set")
]
ModelName = Annotated[str | None, typer.Option("--model", help="tiny | smollm2 | hub id | path")]
Device = Annotated[
    str | None, typer.Option(help="where models are loaded: cpu | cuda | cuda:1 (a trainer: cpu or cuda)")
]
Dtype = Annotated[str | None, typer.Option(help="of models' weights: float32 | bfloat16 | float16")]
Out = Annotated[str | None, typer.Option(help="folder for results")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of torch")]
JsonOut = Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")]
OnBroken = Annotated[
    str,
    typer.Option("--on-broken", help="input lines that cannot be read: raise = stop there, skip = leave out and count"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no bars, no table")]
Restart = Annotated[bool, typer.Option("--restart", help="throw away what a run wrote there before")]
GroupSize = Annotated[int | None, typer.Option(help="rollouts of each prompt")]
PromptsPerStep = Annotated[int | None, typer.Option(help="prompts of each optimiser step")]
LearningRate = Annotated[float | None, typer.Option(help="default: the model's suggested one")]
EvalEvery = Annotated[int | None, typer.Option(help="steps between measurements on held-out prompts")]


def named_dtype(word: str | None) -> str | None:
    """`--dtype bf16` as settings write it."""
    from guerdon.cli.device import dtype_name

    return None if word is None else dtype_name(word)


def _print_version(asked: bool) -> None:
    if asked:
        from guerdon import __version__

        print(f"guerdon {__version__}")
        raise typer.Exit


def _print_settings(asked: bool) -> None:
    if asked:
        from guerdon.cli.config import CompareConfig, describe_settings

        print(describe_settings(CompareConfig))
        raise typer.Exit


Settings = Annotated[
    bool,
    typer.Option(
        "--settings", callback=_print_settings, is_eager=True, help="show every setting with its default, and exit"
    ),
]


@app.callback()
def guerdon(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="show the version, and exit")
    ] = False,
) -> None:
    """Reward design for reinforcement learning: train under published reward systems, compare them, score files."""


@app.command(epilog="Example: guerdon train --system pure --steps 60 --out runs/pure")
def train(
    system: Annotated[str | None, typer.Option(help="a system of `guerdon systems`, options after a colon")] = None,
    task: Task = None,
    model: ModelName = None,
    steps: Steps = None,
    seed: Annotated[int | None, typer.Option(help="seed of sampling and training")] = None,
    out: Out = None,
    group_size: GroupSize = None,
    prompts_per_step: PromptsPerStep = None,
    learning_rate: LearningRate = None,
    eval_every: EvalEvery = None,
    lora_rank: Annotated[int | None, typer.Option(help="0 = train all weights")] = None,
    device: Device = None,
    dtype: Dtype = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what would be loaded where, with bytes, from configurations alone")
    ] = False,
    threads: Threads = None,
    config: ConfigFile = None,
    set_: Sets = None,
    restart: Restart = False,
    quiet: Quiet = False,
    settings_: Settings = False,
) -> None:
    """Train a policy under a reward system; true success beside reward, and a report at the end.

    Ctrl-C saves and stops; the same command continues.
    """
    from guerdon.cli.config import RunConfig, resolve

    flags = {
        "system": system, "task": task, "model": model, "steps": steps, "seed": seed, "out": out, "group_size": group_size,
        "prompts_per_step": prompts_per_step, "learning_rate": learning_rate, "eval_every": eval_every, "lora_rank": lora_rank,
        "threads": threads, "device": device, "dtype": named_dtype(dtype),
    }  # fmt: skip
    settings = resolve(RunConfig, config, flags, set_ or [])
    if dry_run:
        from guerdon.cli.dry_run import dry_run as show_plan

        show_plan(settings, Console())
        return
    from guerdon.cli.train import train_run

    train_run(settings, restart=restart, quiet=quiet, console=console, wait_s=patience_s())


@app.command(epilog="Example: guerdon compare outcome pure pure:credit=sum --seeds 2 --steps 60")
def compare(
    systems: Annotated[list[str] | None, typer.Argument(help="systems to compare, options after a colon")] = None,
    systems_option: Annotated[
        str | None, typer.Option("--systems", help="the same as one comma-separated list")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="runs of each system")] = None,
    task: Task = None,
    model: ModelName = None,
    steps: Steps = None,
    out: Out = None,
    group_size: GroupSize = None,
    prompts_per_step: PromptsPerStep = None,
    learning_rate: LearningRate = None,
    eval_every: EvalEvery = None,
    jobs: Annotated[int | None, typer.Option(help="runs at once; default one per core")] = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    config: ConfigFile = None,
    set_: Sets = None,
    json_out: JsonOut = None,
    restart: Restart = False,
    quiet: Quiet = False,
    settings_: Settings = False,
) -> None:
    """Several systems, the same task and budget, several seeds: intervals, a verdict for each, one report."""
    from guerdon.cli.config import CompareConfig, resolve

    names = list(systems or []) or (split_specs(systems_option) if systems_option else None)
    flags = {
        "systems": names, "seeds": seeds, "task": task, "model": model, "steps": steps, "out": out, "group_size": group_size,
        "prompts_per_step": prompts_per_step, "learning_rate": learning_rate, "eval_every": eval_every, "jobs": jobs,
        "threads": threads, "device": device, "dtype": named_dtype(dtype),
    }  # fmt: skip
    settings = resolve(CompareConfig, config, flags, set_ or [])
    from guerdon.cli.compare import compare_systems

    failed = compare_systems(settings, json_out=json_out, restart=restart, quiet=quiet, console=console)
    raise typer.Exit(1 if failed else 0)


def split_specs(text: str) -> list[str]:
    """`a,b:x=1,c` -> [a, b:x=1, c]: a part with `=` and without `:` goes on with the options of the one before."""
    specs: list[str] = []
    for part in text.split(","):
        if specs and "=" in part and ":" not in part:
            specs[-1] += f",{part}"
        elif part.strip():
            specs.append(part.strip())
    return specs


@app.command(epilog="Example: guerdon score rollouts.jsonl scored.jsonl --reward math --set reference=answer")
def score(
    source: Annotated[Path, typer.Argument(help="JSONL or Parquet of rollouts")],
    target: Annotated[Path, typer.Argument(help="file to write; the ending says the format")],
    reward: Annotated[
        str, typer.Option(help="a signal or a system, options after a colon: math, qa:reference=gold, pure")
    ],
    prompt: Prompt = None,
    completion: Completion = None,
    group: Annotated[
        str | None, typer.Option(help="column that names a rollout's group; default: equal prompts in a row")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="rows scored at once")] = 256,
    model: ModelName = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="URL of a server that scores given text (http://host:8000/v1); --model is its name there"),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="with --endpoint: the served model's tokenizer; default: loaded by --model's name"),
    ] = None,
    set_: Options = None,
    device: Device = None,
    dtype: Dtype = None,
    on_broken: OnBroken = "raise",
    restart: Restart = False,
    quiet: Quiet = False,
) -> None:
    """Score a file of rollouts: every input column is kept; `reward`, `reward_level` and `reward_reason` are added.

    A score that cannot be computed is empty with a reason, never 0. Rerunning goes on where the last run stopped.
    """
    from guerdon.cli.score import score_command

    score_command(
        source, target, reward, prompt=prompt, completion=completion, group=group, batch_size=batch_size, model=model,
        endpoint=endpoint, tokenizer=tokenizer, device=device, dtype=dtype, sets=set_ or [],
        on_broken=on_broken, restart=restart, quiet=quiet, console=console,
    )  # fmt: skip


@app.command(
    epilog="Example: guerdon annotate responses.jsonl pairs.jsonl --reward cdr:strong=org/chat-dpo,weak=org/chat-sft"
)
def annotate(
    source: Annotated[Path, typer.Argument(help="JSONL or Parquet of prompts and responses")],
    target: Annotated[Path, typer.Argument(help="file of pairs to write; the ending says the format")],
    reward: Annotated[str, typer.Option(help="as in `guerdon score`: cdr:strong=A,weak=B, math, conciseness")],
    part: Annotated[
        str | None, typer.Option("--source", help="which of the reward's sources counts, where it has several")
    ] = None,
    prompt: Prompt = None,
    responses: Annotated[str, typer.Option(help="name of the column with a list of responses")] = "responses",
    completion: Completion = None,
    length_tolerance: Annotated[
        float | None, typer.Option(help="rejected responses of about the chosen one's length only: 0.1 = within 10 %")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the draw of rejected responses")] = 0,
    batch_size: Annotated[int, typer.Option(help="input rows at once")] = 16,
    model: ModelName = None,
    set_: Options = None,
    device: Device = None,
    dtype: Dtype = None,
    on_broken: OnBroken = "raise",
    restart: Restart = False,
    quiet: Quiet = False,
) -> None:
    """Turn responses into preference pairs (prompt, chosen, rejected), the best by a reward against another of the same prompt.

    Prompts that give no pair are left out and counted with their reasons. Rerunning goes on where the last run stopped.
    """
    from guerdon.cli.annotate import annotate_command

    annotate_command(
        source, target, reward, part=part, prompt=prompt, responses=responses, completion=completion,
        length_tolerance=length_tolerance, seed=seed, batch_size=batch_size, model=model, device=device, dtype=dtype, sets=set_ or [],
        on_broken=on_broken, restart=restart, quiet=quiet, console=console,
    )  # fmt: skip


@app.command()
def systems(
    name: Annotated[str | None, typer.Argument(help="show one system: what it composes, with its defaults")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print a list of objects")] = False,
) -> None:
    """The published systems: what each is, whether its vectors pass, how many of its claims held."""
    from guerdon.cli.catalogue import show_systems

    show_systems(name, as_json=as_json)


@app.command(epilog="Example: guerdon conform tests/vectors/*.json")
def conform(files: Annotated[list[Path], typer.Argument(help="vector files")]) -> None:
    """Run conformance vectors: a line per function, exit code 1 on any failure or unknown function."""
    from guerdon.conformance import main as run_files

    raise typer.Exit(run_files(files))


@app.command(epilog="Example: guerdon reproduce pure")
def reproduce(
    names: Annotated[list[str], typer.Argument(help="systems, or 'all'")],
    seeds: Annotated[int | None, typer.Option(help="default: the reproduction's own")] = None,
    smoke: Annotated[
        bool, typer.Option(help="a small version that only shows that it runs; not written to results/")
    ] = False,
    out: Out = None,
) -> None:
    """Reproduce a system's claim against the baseline it beats; writes results/NAME.json and a figure."""
    from guerdon.cli.catalogue import run_reproductions

    raise typer.Exit(run_reproductions(names, seeds=seeds, smoke=smoke, out=out, console=console))


@app.command(epilog="Example: guerdon bench math --json benchmarks/results/math.json")
def bench(
    name: Annotated[str, typer.Argument(help="a benchmark; 'list' shows them")],
    json_out: JsonOut = None,
) -> None:
    """Measure speed against the peer that is replaced, in one run, as a ratio."""
    from guerdon.cli.catalogue import run_benchmark

    raise typer.Exit(run_benchmark(name, json_out))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="folder of a run or of a comparison")],
    out: Annotated[Path | None, typer.Option(help="default: report.html in the folder")] = None,
) -> None:
    """Write the report of a run or a comparison anew, finished or not."""
    from guerdon.cli.outcome import write_report

    print(write_report(folder, out))


def main() -> None:
    """Entry point: errors of ours are one paragraph without a traceback (GUERDON_TRACEBACK=1 shows it)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        raise_on_stop()
        end_with_parent()
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, typer.Abort):
        console.print("\nstopped; what was done is saved, and the same command goes on from there")
        sys.exit(130)
    except (GuerdonError, ImportError) as error:
        if os.environ.get("GUERDON_TRACEBACK"):
            raise
        console.print(f"[bold red]error:[/] {_plain(error)}", highlight=False)
        sys.exit(2)
    except SystemExit:
        raise
    except BrokenPipeError:  # whoever read what we print has gone: `guerdon systems | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            said = None if os.environ.get("GUERDON_TRACEBACK") else trouble.sentence(error)
            if said is None:
                raise
            console.print(f"[bold red]error:[/] {_plain(said)}", highlight=False)
            sys.exit(1)
        if hasattr(error, "show"):  # a usage error of the command line itself
            error.show()
        sys.exit(code)


def _plain(error: BaseException | str) -> str:
    from rich.markup import escape

    return escape(without_credentials(str(error)))


if __name__ == "__main__":
    main()
