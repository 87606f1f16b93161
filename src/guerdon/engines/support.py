"""What each engine can do, as data: the table in the docs and the sentences of refusals come from here.

`python -m guerdon.engines.support` prints the table as Markdown (docs/engines.md is that output).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

COLUMNS = {
    "built": "state",
    "scopes": "signal scopes",
    "credit": "credit",
    "objectives": "auxiliary losses",
    "updates": "online updates of a signal",
    "filters": "filters",
    "together": "rows that must meet",
    "models": "models that move",
    "resume": "resume",
}


@dataclass(frozen=True)
class Support:
    """One engine's abilities, each a sentence.

    Attributes:
        engine: its name, with the version the facts were checked against.
        built: whether this library has it.
        scopes, credit, objectives, updates, filters, together, models, resume: what is possible.
        limits: name -> why something is impossible and what to do; used as the text of refusals.
    """

    engine: str
    built: str
    scopes: str
    credit: str
    objectives: str
    updates: str
    filters: str
    together: str
    models: str
    resume: str
    limits: dict[str, str]


TRL_LIMITS = {
    "chain": "this system has an empty chain: it scores but gives no advantages to train on; add links that end in ToTokens(...)",
    "scale_rewards": "scale_rewards={value!r} would do nothing: normalisation is a link of the chain (GroupNorm(), GroupNorm(std_over='batch'), GroupNorm(std=None)); leave it at its default",
    "reward_weights": "reward_weights={value!r} would do nothing: weights belong to Fuse(..., weights=(...)) in the chain; leave it None",
    "multi_objective_aggregation": "multi_objective_aggregation={value!r} would do nothing: fusion is a link of the chain "
    "(Fuse(...) and GroupNorm(...), or PerRewardNorm(...) for normalize_then_sum); leave it at its default",
    "use_liger_kernel": "use_liger_kernel exchanges layers under a policy that this engine has patched and measured, and is deprecated in TRL; set it to False",
    "reference_path": "beta={beta} makes TRL reload the reference from config._name_or_path={path!r}, no model folder: save the policy (model.save_pretrained) and pass its folder, or set beta=0",
    "reference_differs": "beta={beta} made TRL load {path!r} as the reference, and that is not the policy you passed ({name} differs): "
    "save a warm-started policy (model.save_pretrained) and pass its folder, or set beta=0",
    "environment_reward": "{environment} has get_reward, which TRL makes a reward column of its own after the system's: name it in the system, "
    "signals=dict(environment=guerdon.signals.EnvironmentReward()), and use that source in the chain. A second reward of an environment is a method "
    "with a leading underscore, EnvironmentReward(method='_judge'): every other public method becomes one of the policy's tools",
    "save_steps": "save_steps={value!r}: checkpoints must fall on generation boundaries, which come every {cycle} optimiser step(s) here; give a number of steps, a multiple of {cycle}",
    "save_steps_rounded": "save_steps={value!r} is rounded up to {rounded}: checkpoints fall on generation boundaries, which come every {cycle} optimiser step(s) here",
    "save_only_model": "save_only_model=True leaves the optimiser out of checkpoints: they are weights to start from, are not marked as complete, and no run resumes from them",
    "no_cap": "max_completion_length=None and loss_type='dr_grpo', which divides by it: give a number of tokens",
    "truncated": "mask_truncated_completions takes rows cut at the length cap out of training and out of the statistics of their groups; in TRL their rewards stay in the means",
    "save_strategy": "save_strategy={value!r} does not keep to generation boundaries; use save_strategy='steps' with save_steps a multiple of {cycle}, or 'no'",
    "no_data": "the data gave no generation batch of {prompts} prompts after step {step} of {steps}: give more data, or make batches smaller",
    "few_prompts": "the data has {have} prompt(s) and a generation batch holds {need} different ones, so that not one batch would be sampled: "
    "give more data, or lower generation_batch_size / num_generations (per_device_train_batch_size, gradient_accumulation_steps, steps_per_generation)",
    "prompt_column": "the data has no column 'prompt' (it has: {have}){hint}",
    "sharded_policy": "{part} {problem}, and under FSDP or ZeRO-3 no rank has the policy whole (ranks can read it together, and nothing more): use DDP or "
    "ZeRO stage 1 or 2, or a system without it",
    "role": "{part} asks for a model by the role {role!r}, and the system names none: System(models={{{role!r}: Model('path or hub id')}})",
    "refresh": "models[{role!r}] has refresh={refresh!r}; this engine keeps models frozen, copies them at the start of a phase, or moves them with the policy (ema, every:N)",
    "moving_adapter": "models[{role!r}] has refresh={refresh!r} and the policy is trained by an adapter: an average of adapters is not the adapter of an average; train all weights",
    "moving_sharded": "models[{role!r}] has refresh={refresh!r}, which averages whole weights, and FSDP or ZeRO-3 leaves none whole: use DDP or ZeRO stage 1 or 2",
    "adapter_reference": "the policy's {kind} adapter changes the base already, so the policy it began as needs a frozen copy of the adapter, and it cannot be there "
    "twice ({why}): merge it into the base (merge_and_unload) and train a new one, or name a reference, System(models={{'reference': Model('path')}})",
    "reference_missing": "logprobs.reference is needed and there is no reference: name one (System(models={'reference': Model('path')})), train LoRA (the policy without its adapter) or set beta > 0",
    "values": "the system needs a critic's values, and TRL 1.16 has no trainer with a critic: give rollouts that carry values to the system directly, or choose a system without GAE",
    "together_columns": "parts ask for rows of equal {columns} in one batch: one sampler can keep the rows of one column together",
    "together_stream": "rows that must meet in one generation batch need a sampler, and an iterable data set has none: load it as a map-style one",
    "together_batch": "a generation batch has {prompts} prompts and rows that must meet come in units of {size}: make generation_batch_size / num_generations a multiple of {size}",
    "together_few": "the data has {units} unit(s) of rows that must meet and a generation batch holds {per_batch}: fewer prompts a batch, or more data",
    "together_eval": "TRL's own evaluation does not keep rows of equal {column!r} in one batch: leave eval_dataset out and pass an Evaluator in monitors",
    "dpo": "args is a {kind}: this engine drives GRPOConfig only (TRL's DPO has its loss inside one method, and its collator drops every extra column)",
    "copies": "copy.deepcopy(trainer.model) computes with the original's weights, because TRL binds the forward: save it and load it instead",
    "resample": "TRL cannot draw again for a filtered group: filters mask rows, and the batch gets smaller",
}

TRL = Support(
    engine="TRL 1.16 (GRPOTrainer)",
    built="built: `guerdon.engines.trl.CreditTrainer`",
    scopes="row, group and batch; row signals on each rank's own rows, the others on the gathered batch on every rank",
    credit="[B, T], any chain; every loss type of 1.16 (vespo and sapo apply sign rules per token, and warn)",
    objectives="yes, a second forward through the wrapped policy; divided by the accumulation steps",
    updates="before scoring, after scoring, after the policy step; once for each generation",
    filters="mask: kept-out rows leave group statistics and loss denominators (bnpo: those of their own micro-batch); TRL cannot resample, so a batch gets smaller where a paper draws again",
    together='yes, by a sampler of its own: rows of equal value in one data column are in one generation batch (`needs` "together.COLUMN"), on one process and on several',
    models="frozen, copied at the start of a phase, an average that follows the policy (ema), a copy every N steps; in the checkpoint. As the reference of TRL's KL term too",
    resume="exact from the newest complete checkpoint at a generation boundary, after Ctrl-C, TERM, HUP or kill -9; a checkpoint of other settings is refused; "
    "a run in which nothing is trained stops by itself, resumably (`stop_when_failed`, `stop_when_flat`; status failed)",
    limits=TRL_LIMITS,
)

VERL = Support(
    engine="verl 0.9.1",
    built="not built yet",
    scopes="possible: row in reward workers; group and batch on the driver, through a registered subclass of PPOTrainerSync (a registry estimator gets one summed reward only)",
    credit="possible: [B, T] from `_compute_advantage` of that subclass",
    objectives="not without replacing workers",
    updates="possible in reward workers or a server; the driver has no GPU",
    filters="possible, with resampling: filter_groups on any extra-info key",
    together="not without another sampler: the data loader shuffles rows one by one",
    models="its own reference model is frozen",
    resume="verl's own",
    limits={
        "likelihood": "likelihood signals of the current policy need the workers replaced",
        "nan": "NaN poisons statistics and an exception fails the whole prompt group: answer a finite value with a flag and exclude it in the subclass",
    },
)

OPENRLHF = Support(
    engine="OpenRLHF 0.11.2",
    built="not built yet",
    scopes="possible: row, one sample a call, as a function or over HTTP",
    credit="a scalar a rollout; per-token only with an own launcher that swaps compute_advantages_and_returns (experimental)",
    objectives="no",
    updates="inside the reward server",
    filters="an excluded row must be flagged in extra_logs; None can end the run",
    together="no: the reward server sees one sample a call",
    models="its own EMA of the actor is saved, not used for rollouts",
    resume="OpenRLHF's own",
    limits={
        "columns": "only `label` carries data-set columns: pack JSON into it",
        "nan": "NaN kills its group or batch and an error is retried five times, then may end the run: always answer a finite value and a flag",
    },
)

ENGINES = (TRL, VERL, OPENRLHF)


# What a user of TRL's GRPOTrainer writes, and what it becomes: (there, here).
FROM_GRPO = (
    (
        "`reward_funcs=[f]`, a function, plain or async",
        '`signals={"f": RewardFunction(f)}`; None = does not apply, NaN = the instrument failed',
    ),
    (
        '`reward_funcs=["org/reward-model"]`, or a loaded model',
        '`RewardFunction("org/reward-model")`, read as TRL reads it; `reward_processing_classes` is its `tokenizer=`',
    ),
    ("`reward_weights=[0.7, 0.3]`", '`Fuse("f", "g", weights=(0.7, 0.3), into="reward")` before `GroupNorm("reward")`'),
    (
        '`scale_rewards="group"`, `"batch"`, `"none"`',
        '`GroupNorm("reward")`, `GroupNorm("reward", std_over="batch")`, `GroupNorm("reward", std=None)`',
    ),
    (
        '`multi_objective_aggregation="normalize_then_sum"`',
        '`PerRewardNorm(("f", "g"), (0.7, 0.3), into="reward")` in place of `Fuse` and `GroupNorm`',
    ),
    ("one advantage a completion", 'last link `ToTokens("reward", "whole")`'),
    (
        "`trainer_state`, `log_extra`, `log_metric`, data columns, `environments`",
        "handed to the function as TRL hands them; texts are also in `rollouts.jsonl`, metrics in `metrics.jsonl`",
    ),
    (
        "an environment's `get_reward`",
        '`EnvironmentReward()` as a signal; other rewards of an environment: `EnvironmentReward(method="_judge")`',
    ),
    ("a weight of 0, to watch a reward", "`Diagnostic(RewardFunction(f))`: logged, in no sum, drops no row"),
    (
        "the metric `reward`",
        "what the chain makes advantages of, weights included; `System(reward=...)` states another",
    ),
    (
        "everything else of GRPOTrainer and GRPOConfig",
        "the same arguments of `CreditTrainer`; what would do nothing is refused, see below",
    ),
)

FROM_GRPO_EXAMPLE = """from guerdon import System
from guerdon.credit import Fuse, GroupNorm, ToTokens
from guerdon.signals import RewardFunction


def short(completions, **kwargs):
    return [-len(completion) / 100 for completion in completions]


def right(completions, answer, **kwargs):
    return [float(a in completion) if a else None for completion, a in zip(completions, answer)]


system = System(
    {"short": RewardFunction(short), "right": RewardFunction(right)},
    [Fuse("short", "right", weights=(0.3, 0.7), into="reward"), GroupNorm("reward"), ToTokens("reward", "whole")],
)"""


def limit(key: str, /, **values: object) -> str:
    """The sentence for something TRL cannot do, with the offending values in it."""
    return TRL_LIMITS[key].format(**values) if values else TRL_LIMITS[key]


def to_markdown() -> str:
    """docs/engines.md: the table, and beneath it what each engine refuses."""
    lines = [
        "# Engines",
        "",
        "<!-- made by `python -m guerdon.engines.support`; edit src/guerdon/engines/support.py -->",
        "",
        "Which part of a system each engine can carry. What is impossible is refused when the trainer is constructed, with the sentence given below the table.",
        "",
        "| | " + " | ".join(engine.engine for engine in ENGINES) + " |",
        "| --- " * (len(ENGINES) + 1) + "|",
    ]
    for item in fields(Support):
        if item.name in COLUMNS:
            cells = " | ".join(str(getattr(engine, item.name)).replace("|", "\\|") for engine in ENGINES)
            lines.append(f"| {COLUMNS[item.name]} | {cells} |")
    lines += ["", "## From GRPOTrainer", ""]
    lines += ["| there | here |", "| --- | --- |", *(f"| {there} | {here} |" for there, here in FROM_GRPO)]
    lines += ["", "```python", FROM_GRPO_EXAMPLE, "```"]
    for engine in ENGINES:
        lines += ["", f"## {engine.engine}: what is refused or left out", ""]
        lines += [f"- **{name}**: {text}" for name, text in engine.limits.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(to_markdown(), end="")
