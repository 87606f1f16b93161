"""What a run is: one validated record for flags, YAML files and the copy saved beside every result.

Flags win over the file, the file over the defaults. Unknown keys are errors. The resolved record is written to
`config.yaml` in the run's folder; a rerun in that folder with another record is refused unless asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guerdon.cli.presets import with_preset
from guerdon.cli.runfolder import last_record
from guerdon.errors import ConfigError, nearest
from guerdon.folders import claim
from guerdon.redact import without_credentials
from guerdon.systems.spec import parse_scalar

CONFIG_NAME = "config.yaml"


class RunConfig(BaseModel):
    """One training run: one policy, one system, one seed. Defaults are the embedded default's (minutes on two cores)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str = Field(
        "outcome", description="published system or baseline, options after a colon: pure:credit=sum,temperature=0.1"
    )
    task: str = Field(
        "sums", description="sums | reasoning-gym:NAME[,key=value] | a JSONL/Parquet file | a hub data set"
    )
    model: str = Field("tiny", description="tiny | smollm2 | a hub id | a path")
    seed: int = Field(0, ge=0, description="of sampling and training")
    out: str | None = Field(None, description="folder of the run; default runs/SYSTEM-seedN")

    steps: int = Field(60, ge=0, description="optimiser steps")
    prompts_per_step: int = Field(8, ge=1, description="distinct prompts sampled for each optimiser step")
    group_size: int = Field(
        8, ge=2, description="rollouts of each prompt (G); rewards are compared within them, so at least 2"
    )
    learning_rate: float | None = Field(
        None, gt=0, description="default: the model's suggested one (2e-4 tiny, 1e-6 others)"
    )
    temperature: float = Field(1.0, gt=0, description="of sampling")
    top_p: float = Field(1.0, gt=0, le=1, description="of sampling; 1 = every token can be drawn")
    max_completion_length: int | None = Field(None, ge=1, description="tokens; default: the task's")
    beta: float = Field(0.0, ge=0, description="coefficient of TRL's KL term to the reference (the starting policy)")
    loss_type: str = Field("dapo", description="TRL's GRPO loss type")
    preset: Literal["published", "none"] = Field(
        "published",
        description="published = the paper's loss-side settings (`guerdon systems NAME`) where no other value is given; the tiny model takes the clip range alone",
    )
    lora_rank: int = Field(0, ge=0, description="0 = all weights are trained")
    micro_batch: int | None = Field(
        None, ge=1, description="rollouts per forward; default all of a step (8 for models that are not tiny)"
    )
    grpo: dict[str, Any] = Field(default_factory=dict, description="further fields of trl.GRPOConfig")

    eval_every: int = Field(5, ge=1, description="steps between measurements on held-out prompts")
    eval_prompts: int = Field(128, ge=1, description="held-out prompts for each measurement")
    kl_to_start: bool = Field(
        True, description="measure KL to the starting policy at each evaluation (one extra model in memory)"
    )
    save_every: int | None = Field(
        None, ge=1, description="steps between checkpoints: what a kill -9 may lose; default 1 for tiny, 10 otherwise"
    )
    stop_when_failed: int = Field(
        3,
        ge=0,
        description="save and stop after so many generations in a row that no instrument could score; 0 = never",
    )
    stop_when_flat: int = Field(
        20, ge=0, description="save and stop after so many generations when the reward has never varied; 0 = never"
    )
    log_rollouts_every: int = Field(5, ge=1, description="steps between rollouts kept for the report")
    device: str | None = Field(None, description="cpu | cuda; default: a GPU where there is one")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="of the policy's weights and of every frozen model beside it; default float32"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; default all")
    columns: dict[str, str] = Field(
        default_factory=dict, description="names of the data's columns: {prompt: ..., answer: ...}"
    )

    @property
    def folder(self) -> Path:
        return Path(self.out or f"runs/{slug(self.system)}-seed{self.seed}")


class CompareConfig(RunConfig):
    """Several systems on one task with one budget, over seeds. `system`, `seed` and `out` of RunConfig are set for each run."""

    systems: list[str] = Field(
        default_factory=lambda: ["outcome", "pure", "pure:credit=sum"], description="what is compared"
    )
    preset: Literal["published", "none"] = Field(
        "none",
        description="none = all arms have the same settings; published = each has its paper's where no other value is given",
    )
    seeds: int = Field(2, ge=1, description="runs of each system, with seeds seed, seed + 1, ...")
    jobs: int | None = Field(None, ge=1, description="runs at once; default: one per core, one thread each")
    out: str | None = Field("runs/compare", description="folder of the comparison; a folder for each run is in it")

    def runs(self) -> list[RunConfig]:
        """One RunConfig for each system and seed, seeds outermost so that a stopped comparison has whole seeds first."""
        shared = self.model_dump(exclude={"systems", "seeds", "jobs", "system", "seed", "out"})
        runs = [
            RunConfig(
                **shared,
                system=system,
                seed=self.seed + k,
                out=str(self.folder / slug(system) / f"seed{self.seed + k}"),
            )
            for k in range(self.seeds)
            for system in self.systems
        ]
        return [with_preset(run, self.model_fields_set) for run in runs]


def slug(spec: str) -> str:
    """A folder name out of a system spec: `pure:credit=sum` -> `pure-credit-sum`."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in spec).strip("-")


def resolve(kind: type[RunConfig], path: Path | None, flags: dict[str, Any], sets: list[str]) -> Any:
    """The record from a YAML file, flags (None = not given) and `--set key=value` pairs (dots nest); a run's published settings fill the rest.

    Raises:
        ConfigError: one line for each thing that is wrong, with the key and the value.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read the configuration {path}: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} must hold a mapping of settings, it holds {type(values).__name__}")
    values.update({key: value for key, value in flags.items() if value is not None})
    for pair in sets:
        dotted, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set takes key=value, got {pair!r}")
        *parents, key = dotted.strip().split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {pair!r}: {parent!r} is not a mapping")
        target[key] = parse_scalar(text)
    try:
        config = kind(**values)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']} (got {e['input']!r})" for e in error.errors()
        ]
        unknown = [str(e["loc"][0]) for e in error.errors() if e["type"] == "extra_forbidden"]
        near = "".join(nearest(key, kind.model_fields) for key in unknown)
        hint = f"{near}\nknown settings: {', '.join(sorted(kind.model_fields))}" if unknown else ""
        raise ConfigError("the configuration is not valid:\n  " + "\n  ".join(lines) + hint) from error
    text = yaml.safe_dump(config.model_dump(mode="json"), width=10**9)
    if without_credentials(text) != text:
        raise ConfigError(
            "a setting holds an address with a password or a key in it, and settings are saved beside the results: take it out, and set "
            "OPENAI_API_KEY in the environment"
        )
    return config if isinstance(config, CompareConfig) else with_preset(config)


def describe_settings(kind: type[RunConfig]) -> str:
    """Every setting, a line each: its name, its default and what it is."""
    lines = []
    for name, field in kind.model_fields.items():
        default = "" if field.is_required() else repr(field.get_default(call_default_factory=True))
        lines.append(f"{name:24s}{default:28s}{field.description or ''}".rstrip())
    return "\n".join(lines)


def save(config: RunConfig, folder: Path) -> None:
    """Write the resolved record to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{CONFIG_NAME}.new"
    scratch.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    scratch.replace(folder / CONFIG_NAME)


# Settings that do not change what a run computes: they may differ when it is continued.
HARMLESS = frozenset({"out", "threads", "jobs", "log_rollouts_every", "stop_when_failed", "stop_when_flat", "device"})
Found = Literal["new", "continue", "replace"]


def check_same(config: RunConfig, folder: Path, *, restart: bool) -> Found:
    """What a folder holds for this run; nothing in it is changed.

    Returns:
        "new": no run. "continue": this very run. "replace": a run that `claim.clear` may delete, because of `restart` or because
        it never took a step.

    Raises:
        ConfigError: another run, of which it says what differs; `restart` where no run is; other people's files in the way.
    """
    kind: claim.Kind = "compare" if isinstance(config, CompareConfig) else "train"
    known = claim.owner(folder)
    if known is None:
        if restart and claim.contents(folder):
            raise ConfigError(
                f"{folder} holds no run of Guerdon ({', '.join(claim.contents(folder)[:4])} in it): --restart deletes nothing there; "
                f"leave it out, or name another --out"
            )
        return "new"
    if known["kind"] != kind:
        word = {"train": "a single run", "compare": "a comparison", "trainer": "a run made from Python"}[known["kind"]]
        raise ConfigError(
            f"{folder} holds {word}, and this is {'a comparison' if kind == 'compare' else 'a single run'}: use another --out"
        )
    if restart:
        return "replace"
    if not (differing := differences(config, folder)):
        return "continue"
    if not has_steps(folder):
        return "replace"
    raise ConfigError(
        f"{folder} holds a run with other settings ({'; '.join(differing)}); use another --out, or --restart to throw it away"
    )


def differences(config: RunConfig, folder: Path) -> list[str]:
    """The settings in which the run in a folder differs, a text each. None where its configuration cannot be read any more: its
    checkpoints know the settings, too."""
    try:
        saved = yaml.safe_load((folder / CONFIG_NAME).read_text())
    except (OSError, yaml.YAMLError):
        saved = None
    if not isinstance(saved, dict) or not saved:
        return []
    new = config.model_dump(mode="json")
    defaults = {name: field.get_default(call_default_factory=True) for name, field in type(config).model_fields.items()}
    old = {**defaults, **saved}  # a setting that is younger than the run stood at its default
    differing = sorted(key for key in {*old, *new} - HARMLESS if old.get(key) != new.get(key))
    return [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in differing]


def has_steps(folder: Path) -> bool:
    """Whether the run in a folder, or one of a comparison's, has taken a step: whether there is something to lose."""
    arms = (claim.owner(folder) or {}).get("arms", [])
    places = [folder, *(folder / arm for arm in arms)]
    return any(
        last_record(place / "metrics.jsonl") or any(place.glob("checkpoints/checkpoint-*/COMPLETE")) for place in places
    )
