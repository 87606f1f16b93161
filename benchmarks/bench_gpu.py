"""What a GPU does with the instruments and a training step: the CPU's numbers within the dtype's error, speed, and peak memory by role.

    make gpu        or        guerdon bench gpu --json gpu.json        (under five minutes on one card; send the JSON back)

Models are random and made here, nothing is downloaded. Instruments are compared with the CPU on a small model and timed on a larger
one. The training step is bfloat16 with LoRA, gradient checkpointing and a process reward model by path, on fixed completions, once
on the device and once on the CPU, each in a process of its own: accelerate chooses a device once a process.

GUERDON_GPU_DEVICE=cpu runs all of it with the CPU in the device's place: it shows that the script works, not how a GPU does.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

SMALL = {"hidden": 64, "layers": 2, "heads": 4, "intermediate": 128}
LARGE = {"hidden": 1024, "layers": 16, "heads": 16, "intermediate": 2816}
# Largest difference of a log-probability, in nats, from the CPU's in float32.
TOLERANCE = {"float32": 2e-3, "bfloat16": 0.25}
# Of losses, gradient norms and rewards, relative to the CPU's and at least to 0.1.
TRAINING_TOLERANCE = {"losses": 0.05, "grad_norms": 0.1, "rewards": 0.05}
STEPS, PROMPTS, GROUP, LENGTH = 3, 4, 4, 48


def device_name() -> str:
    """The device under test: CUDA's, unless GUERDON_GPU_DEVICE says otherwise."""
    return os.environ.get("GUERDON_GPU_DEVICE", "cuda")


# -- models and texts ----------------------------------------------------------------------------------------------------


def model(shape: dict[str, int], architecture: str = "LlamaForCausalLM", seed: int = 0) -> Any:
    from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

    return new_model(char_tokenizer(), TinyConfig(**shape), seed, architecture=architecture).eval()


def texts(rows: int, length: int) -> tuple[list[str], list[str]]:
    """Prompts, four rollouts of each, and what they say."""
    prompts = [f"{n // 4} + {n // 4 + 1} + {n // 4 + 2} = ?\n" for n in range(rows)]
    return prompts, [(f"{n % 7} and {n % 5} make {n % 11}\n" * length)[:length] for n in range(rows)]


def rollouts(rows: int, length: int) -> Any:
    from guerdon import Rollouts
    from guerdon.lm.forward import pad_ids
    from guerdon.lm.offsets import decode_offsets_batch
    from guerdon.tasks.tiny import char_tokenizer

    tokenizer = char_tokenizer()
    prompts, completions = texts(rows, length)
    ids, mask = pad_ids([torch.tensor(tokenizer(text)["input_ids"]) for text in completions])
    prompt_ids, prompt_mask = pad_ids([torch.tensor(tokenizer(text)["input_ids"]) for text in prompts], left=True)
    decoded, offsets = decode_offsets_batch(tokenizer, ids, mask)
    return Rollouts(
        prompts, decoded, prompt_ids=prompt_ids, prompt_mask=prompt_mask, completion_ids=ids, completion_mask=mask,
        offsets=offsets, group_ids=torch.arange(rows) // 4, finished=torch.ones(rows, dtype=torch.bool),
        columns={"answer": ["12"] * rows},
    )  # fmt: skip


def instruments(shape: dict[str, int]) -> dict[str, tuple[Any, Callable[[Any, Any], torch.Tensor]]]:
    """{name: (model, (model on its device, rollouts) -> numbers)}: everything that reads a model."""
    from guerdon.lm import LocalModel, PrefixScorer, SpanScorer
    from guerdon.segment import ByDelimiter
    from guerdon.signals.learned import RewardModel, StepClassifier
    from guerdon.signals.likelihood.density_ratio import DensityRatio
    from guerdon.signals.likelihood.endogenous import EndogenousReward
    from guerdon.signals.likelihood.relative_perplexity import RelativePerplexity
    from guerdon.tasks.tiny import char_tokenizer

    tokenizer = char_tokenizer()
    policy = model(shape)

    def span(share: Any) -> Callable[[Any, Any], torch.Tensor]:
        def read(lm: Any, batch: Any) -> torch.Tensor:
            scorer = SpanScorer(LocalModel(lm, tokenizer), share=share)
            return scorer.score(list(batch.prompts), list(batch.completions)).values

        return read

    def prefixes(lm: Any, batch: Any) -> torch.Tensor:
        cuts = [[0, n // 2, n] for n in batch.lengths.tolist()]
        return PrefixScorer(LocalModel(lm, tokenizer)).score_rollouts(batch, cuts, "12").sum()

    def role(signal: Any, name: str) -> Callable[[Any, Any], torch.Tensor]:
        def read(lm: Any, batch: Any) -> torch.Tensor:
            signal.bind(name, LocalModel(lm, tokenizer))
            return signal(batch).values

        return read

    def steps(lm: Any, batch: Any) -> torch.Tensor:
        cut = batch.with_spans(steps=ByDelimiter(None, "\n")(batch))
        return StepClassifier(lm, tokenizer=tokenizer)(cut).values

    def ratio(lm: Any, batch: Any) -> torch.Tensor:
        weak = LocalModel(model(shape, seed=1).to(next(lm.parameters())), tokenizer)
        return DensityRatio(LocalModel(lm, tokenizer), weak)(batch)["ratio"].values / batch.lengths[:, None]

    return {
        **{f"span scorer, {share}": (policy, span(share)) for share in ("padded", "packed", "cached")},
        "prefix scorer": (policy, prefixes),
        "relative perplexity": (policy, role(RelativePerplexity(), "policy")),
        "endogenous reward": (policy, role(EndogenousReward(level="token"), "reference")),
        "density ratio": (policy, ratio),
        "step classifier": (model(shape, "LlamaForTokenClassification"), steps),
        "reward model": (
            one_label(shape),
            lambda lm, batch: RewardModel(lm, tokenizer=tokenizer)(batch).values,
        ),
    }


def one_label(shape: dict[str, int]) -> Any:
    from transformers import AutoModelForSequenceClassification

    config = model(shape).config
    config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config).eval()


# -- instruments -----------------------------------------------------------------------------------------------------------


def measure_instruments(device: str, large: dict[str, int], rows: int, length: int) -> list[dict[str, Any]]:
    """Differences from the CPU on small models, and seconds on larger ones, for both dtypes."""
    found = []
    batch, long = rollouts(8, 40), rollouts(rows, length)
    exact = {name: read(lm, batch).detach().cpu().float() for name, (lm, read) in instruments(SMALL).items()}
    for dtype in ("float32", "bfloat16"):
        kind = getattr(torch, dtype)
        for name, (lm, read) in instruments(SMALL).items():
            values = read(lm.to(device, kind), batch).detach().cpu().float()
            difference = float((values - exact[name]).abs().nan_to_num(0).max())
            same = values.shape == exact[name].shape and torch.equal(values.isnan(), exact[name].isnan())
            agrees = bool(same and difference <= TOLERANCE[dtype])
            found.append({"instrument": name, "dtype": dtype, "difference": difference, "agrees": agrees})
        timed = {entry["instrument"]: entry for entry in found if entry["dtype"] == dtype}
        for name, (lm, read) in instruments(large).items():
            lm.to(device, kind)
            with peak(device) as memory:
                read(lm, long)  # what the model can do is tried on the first batch
                began = time.perf_counter()
                read(lm, long)
                synchronise(device)
                seconds = time.perf_counter() - began
            timed[name] |= {"seconds": round(seconds, 4), "tokens": int(long.lengths.sum()), "peak_bytes": memory[0]}
            del lm
    return found


@contextmanager
def peak(device: str) -> Iterator[list[int]]:
    """Peak bytes on the device inside the block, as the one item of a list; 0 where the device does not count."""
    found = [0]
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield found
    if cuda:
        found[0] = torch.cuda.max_memory_allocated()


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


# -- a training step -------------------------------------------------------------------------------------------------------


def fixed(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """The same completions on every device: sampling is not what is compared."""
    from guerdon.tasks.tiny import char_tokenizer

    tokenizer, step = char_tokenizer(), trainer.state.global_step
    _, completions = texts(len(prompts), LENGTH - 8)
    ids = [
        tokenizer(text[n % 5 :] + str(step))["input_ids"] + [tokenizer.eos_token_id]
        for n, text in enumerate(completions)
    ]
    return {"prompt_ids": [tokenizer(p)["input_ids"] for p in prompts], "completion_ids": ids, "logprobs": None}


def train(device: str, shape: dict[str, int], folder: Path) -> dict[str, Any]:
    """Losses of a few steps, and what lay in memory when."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig

    import guerdon
    from guerdon.engines.trl import CreditTrainer, Evaluator
    from guerdon.tasks.tiny import char_tokenizer

    tokenizer = char_tokenizer()
    for name, kind, seed in (("policy", "LlamaForCausalLM", 0), ("prm", "LlamaForTokenClassification", 1)):
        model(shape, kind, seed).to(torch.bfloat16).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    data = Dataset.from_list([{"prompt": f"{n} + {n + 1} = ?\n", "answer": str(2 * n + 1)} for n in range(32)])
    # Not whitened: the loss of whitened advantages is 0 whatever they are.
    system = guerdon.systems.pure(prm=str(folder / "prm"), delimiter="\n", padded_length=LENGTH, adv_norm=False)
    gpu = device != "cpu"
    args = GRPOConfig(
        str(folder / "run"), per_device_train_batch_size=PROMPTS * GROUP // 2, gradient_accumulation_steps=2,
        num_generations=GROUP, max_completion_length=LENGTH, max_steps=STEPS, learning_rate=1e-3, seed=0,
        lr_scheduler_type="constant", bf16=True, use_cpu=not gpu, gradient_checkpointing=True, report_to=[], disable_tqdm=True,
        logging_steps=1, save_strategy="no", model_init_kwargs={"dtype": "bfloat16"},
    )  # fmt: skip
    memory: dict[str, int] = {}
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    evaluator = Evaluator(list(data)[:8], None, system, every=STEPS, samples=8)
    with peak(device) as held:
        trainer = CreditTrainer(
            str(folder / "policy"), system, args, data, processing_class=tokenizer, peft_config=lora, monitors=[evaluator],
            rollout_func=fixed,
        )  # fmt: skip
        memory["policy and adapter"] = allocated(device)
        system.signals["steps"].load()
        memory["process reward model"] = allocated(device) - memory["policy and adapter"]
        began = time.perf_counter()
        trainer.train()
        synchronise(device)
    memory["peak of training and measuring"] = held[0]
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    parameters = {
        name: sum(p.numel() * p.element_size() for p in lm.model.parameters()) for name, lm in roles(trainer).items()
    }
    return {
        "losses": losses,
        "grad_norms": [line["grad_norm"] for line in trainer.state.log_history if "loss" in line],
        "rewards": [line["reward"] for line in trainer.state.log_history if "loss" in line],
        "seconds_a_step": round((time.perf_counter() - began) / STEPS, 4),
        "device": str(next(trainer.model.parameters()).device),
        "prm": [str(next(system.signals["steps"].load()[0].parameters()).device), str(trainer.instruments.dtype)],
        "weights_bytes": parameters,
        "memory_bytes": memory,
        "copies_of_the_base": len({id(lm.model) for lm in roles(trainer).values()}),
    }


def roles(trainer: Any) -> dict[str, Any]:
    return dict(trainer.instruments.by_role)


def allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device.startswith("cuda") else 0


def leg(device: str, size: str) -> dict[str, Any]:
    """`train` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "leg.json"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        command = [sys.executable, __file__, "--leg", device, size, str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise RuntimeError(f"the training step on {device} failed:\n{done.stderr[-3000:]}")
        return json.loads(out.read_text())


# -- the whole -------------------------------------------------------------------------------------------------------------


def run(json_path: Path | None = None) -> dict[str, Any]:
    """Measure, print, write; `agrees` says whether everything was the CPU's within the dtype's error."""
    device = device_name()
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; GUERDON_GPU_DEVICE=cpu runs the script with the CPU in its place")
    proof = device == "cpu"
    began = time.perf_counter()
    read = measure_instruments(device, SMALL if proof else LARGE, *((8, 60) if proof else (64, 512)))
    here, reference = leg(device, "small"), leg("cpu", "small")
    gaps = {
        name: max(abs(a - b) / max(abs(b), 0.1) for a, b in zip(here[name], reference[name], strict=True))
        for name in TRAINING_TOLERANCE
    }
    moved = min(map(abs, reference["losses"])) > 0 and min(reference["grad_norms"]) > 0
    close = moved and all(gaps[name] <= limit for name, limit in TRAINING_TOLERANCE.items())
    large = leg(device, "small" if proof else "large")
    result = {
        "environment": environment(device),
        "instruments": read,
        "training": {"device": here, "cpu": reference, "gaps": gaps, "agrees": close, "large": large},
        "agrees": all(entry["agrees"] for entry in read) and close,
        "seconds": round(time.perf_counter() - began, 1),
    }
    show(result)
    if json_path is not None:
        Path(json_path).write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {json_path}")
    return result


def environment(device: str) -> dict[str, Any]:
    import transformers
    import trl

    card = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
    return {"device": device, "card": card, "cuda": torch.version.cuda, "python": platform.python_version(), **versions}


def show(result: dict[str, Any]) -> None:
    print(f"{'instrument':24s}{'dtype':10s}{'difference':>12s}{'seconds':>10s}{'peak MB':>10s}")
    for entry in result["instruments"]:
        size = entry.get("peak_bytes", 0) / 1e6
        mark = "" if entry["agrees"] else "   NOT THE CPU'S"
        print(
            f"{entry['instrument']:24s}{entry['dtype']:10s}{entry['difference']:12.2e}{entry.get('seconds', 0):10.3f}{size:10.0f}{mark}"
        )
    training = result["training"]
    for name in TRAINING_TOLERANCE:
        print(f"{name:12s}{training['device'][name]}\n{'on cpu':12s}{training['cpu'][name]}")
    for name, size in training["large"]["memory_bytes"].items():
        print(f"{name:36s}{size / 1e6:10.0f} MB")
    print(
        f"{training['large']['copies_of_the_base']} copy of the base; agrees: {result['agrees']}; {result['seconds']} s"
    )


def main() -> int:
    if sys.argv[1:2] == ["--leg"]:
        device, size, out = sys.argv[2:5]
        with tempfile.TemporaryDirectory() as folder:
            shape = LARGE if size == "large" else SMALL
            Path(out).write_text(json.dumps(train(device, shape, Path(folder))))
        return 0
    result = run(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    return 0 if result["agrees"] else 1


if __name__ == "__main__":
    sys.exit(main())
