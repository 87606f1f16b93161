"""The embedded policy: a character tokenizer, a Llama of under a million parameters, and its warm-start.

`tiny_policy()` returns the path of a policy that has seen flawed step-by-step sums for a minute: it is right about two
times in three, slips, gets lucky and writes filler now and then, so reward designs have something to improve and
something to hack. It is a plain `transformers` directory (AutoModelForCausalLM, AutoTokenizer).

To be quick on one thread, demonstrations are packed into rows of fixed length (positions start anew and attention stays
inside each), and the first part of the training shows no errors, because they make the arithmetic slow to learn.
Simplifications: loss on the solutions only, AdamW with a cosine schedule, no validation during training.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from guerdon.cache import cached_artifact
from guerdon.extras import require
from guerdon.tasks import arithmetic
from guerdon.tasks.arithmetic import Noise

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
ALPHABET = "\n" + "".join(chr(code) for code in range(32, 127))


def char_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer with one token per character: newline, printable ASCII, and an unknown token for the rest.

    Pad (id 0) and end-of-sequence (id 1) differ, nothing is added at the beginning, padding is on the left, as
    generation wants it; decoding gives back exactly the characters.
    """
    transformers = require("transformers", extra="train")
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate([PAD, EOS, UNKNOWN, *ALPHABET])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


@dataclass(frozen=True)
class TinyConfig:
    """The shape of the tiny Llama; the default has 0.86M parameters."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 384
    positions: int = 2048


@dataclass(frozen=True)
class WarmStart:
    """The warm-start's settings: `steps` updates on `rows` rows of `row_tokens` tokens, packed with demonstrations; the
    first `clean` of them without errors (filler there is from the start).

    The noise is what the policy ends up imitating; with its own mistakes, about a third of the solutions end wrong.
    """

    steps: int = 400
    rows: int = 8
    row_tokens: int = 128
    clean: float = 0.6
    lr: float = 3e-3
    warmup: int = 30
    weight_decay: float = 0.01
    terms: tuple[int, int] = (3, 4)
    noise: Noise = field(
        default_factory=lambda: Noise(wrong_sum=0.1, wrong_answer=0.03, lucky=0.25, filler=0.06, nod=0.12)
    )


def tiny_policy(
    seed: int = 0, steps: int = 400, *, config: TinyConfig | None = None, warm_start: WarmStart | None = None
) -> str:
    """Path of a warm-started tiny policy, trained on first use (about a minute on one thread) and cached.

    Beside the weights lies ``card.json``: the settings, parameters, losses, and what 256 held-out samples at
    temperature 1 were like.
    """
    config = config or TinyConfig()
    warm_start = replace(warm_start or WarmStart(), steps=steps)
    settings = {"seed": seed, "model": asdict(config), "warm_start": asdict(warm_start)}

    def build(directory: Path) -> None:
        model, tokenizer, losses = warm_start_policy(seed, config, warm_start)
        card = {**settings, "parameters": sum(p.numel() for p in model.parameters())}
        card["loss_first"], card["loss_last"] = losses[0], sum(losses[-20:]) / len(losses[-20:])
        card["held_out"] = sample_statistics(model, tokenizer, arithmetic.sums(terms=warm_start.terms), seed=seed)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        (directory / "card.json").write_text(json.dumps(card, indent=2) + "\n")

    return str(cached_artifact("tiny-policy", settings, [arithmetic, sys.modules[__name__]], build))


def warm_start_policy(
    seed: int, config: TinyConfig, settings: WarmStart
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, list[float]]:
    """Train a fresh policy on noisy demonstrations, none of them of a held-out prompt.

    Returns the model in eval mode, its tokenizer, and the loss of every step. The caller's random state is untouched.
    """
    tokenizer = char_tokenizer()
    model = new_model(tokenizer, config, seed)
    rng = random.Random(seed)

    def demonstration(noise: Noise) -> tuple[str, str]:
        while True:
            operands = arithmetic.sample_operands(rng, settings.terms)
            prompt = arithmetic.make_prompt(operands)
            if not arithmetic.is_held_out(prompt):
                return prompt, arithmetic.DELIMITER.join(arithmetic.solve(operands, noise, rng))

    unflawed = Noise(filler=settings.noise.filler, nod=settings.noise.nod)
    losses = teach(
        model,
        tokenizer,
        lambda step: demonstration(settings.noise if step >= settings.clean * settings.steps else unflawed),
        steps=settings.steps,
        rows=settings.rows,
        width=settings.row_tokens,
        lr=settings.lr,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        description="warm-starting the tiny policy",
    )
    return model, tokenizer, losses


def new_model(
    tokenizer: PreTrainedTokenizerFast, config: TinyConfig, seed: int, *, architecture: str = "LlamaForCausalLM"
) -> PreTrainedModel:
    """An untrained tiny Llama; a classifier has two labels. Same seed, same weights; the caller's random state is untouched."""
    transformers = require("transformers", extra="train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(transformers, architecture)(
            transformers.LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                intermediate_size=config.intermediate,
                max_position_embeddings=config.positions,
                initializer_range=config.hidden**-0.5,  # the usual 0.02 learns half as fast at this width
                tie_word_embeddings=True,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
            )
        )


class Packed(NamedTuple):
    """ids, positions: [R, W] int64. targets: [R, W] the NEXT token where it belongs to a solution, else -100.
    attention: [R, 1, W, W] bool, True where a token may look: itself and what precedes it in its own demonstration."""

    ids: Tensor
    positions: Tensor
    targets: Tensor
    attention: Tensor


def pack_rows(
    tokenizer: PreTrainedTokenizerFast,
    draw: Callable[[], tuple[str, str]],
    rows: int,
    width: int,
    after_end: int | Callable[[str, str], int] | None = None,
) -> Packed:
    """Fill `rows` rows of `width` tokens with (prompt, solution) demonstrations, each ended by end-of-sequence.

    after_end: the token that is due after the end, or what says it of a (prompt, solution); None = nothing is learned there.

    A demonstration that does not fit any more goes to the next row; one longer than a row is an error.
    """
    ids = torch.full((rows, width), tokenizer.pad_token_id)
    targets = torch.full((rows, width), -100)
    positions = torch.zeros(rows, width, dtype=torch.long)
    owner = torch.zeros(rows, width, dtype=torch.long)  # which demonstration a token belongs to; 0 = padding
    row, column, count = 0, 0, 0
    while row < rows:
        prompt, solution = draw()
        head = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        text = torch.tensor(
            [*tokenizer(prompt + solution, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        )
        if len(text) > width:
            raise ValueError(
                f"a demonstration of {len(text)} tokens does not fit rows of {width}: {prompt + solution!r}"
            )
        if column + len(text) > width:
            row, column = row + 1, 0
            if row == rows:
                break
        count += 1
        end = column + len(text)
        ids[row, column:end], owner[row, column:end] = text, count
        positions[row, column:end] = torch.arange(len(text))
        targets[row, column + head - 1 : end - 1] = text[head:]
        if after_end is not None:
            targets[row, end - 1] = after_end(prompt, solution) if callable(after_end) else after_end
        column = end
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    return Packed(ids, positions, targets, ((owner[:, :, None] == owner[:, None]) & causal)[:, None])


@torch.no_grad()
def sample_statistics(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task: Any, *, seed: int, count: int = 256
) -> dict[str, float]:
    """One sample at temperature 1 for each of `count` held-out prompts of "sums": true success, share of solutions with
    filler or with a wrong line, share of the right answers that were lucky, mean tokens."""
    generator: Any = model  # mypy cannot see generate through Module.__getattr__
    rows = [task.held_out[i % len(task.held_out)] for i in range(count)]
    inputs = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        output = generator.generate(
            **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=task.max_completion_length
        )
    ids = output[:, inputs["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    right = [verdict.value == 1.0 for verdict in task.true_success(texts, rows)]
    kinds = [
        arithmetic.label_steps(row["prompt"], arithmetic.split_solution(text))
        for row, text in zip(rows, texts, strict=True)
    ]
    lucky = sum("wrong" in k for k, ok in zip(kinds, right, strict=True) if ok)
    return {
        "true_success": sum(right) / count,
        "with_filler": sum("filler" in k for k in kinds) / count,
        "with_wrong_line": sum("wrong" in k for k in kinds) / count,
        "lucky_among_right": lucky / max(1, sum(right)),
        "mean_tokens": float((ids != tokenizer.pad_token_id).sum(1).float().mean()),
    }


# --- warm-start, shared by the policies of other tasks ---------------------------------------------------------------


def teach(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    demonstration: Callable[[int], tuple[str, str]],
    *,
    steps: int,
    rows: int,
    width: int,
    lr: float = 3e-3,
    warmup: int = 30,
    weight_decay: float = 0.01,
    after_end: int | Callable[[str, str], int] | None = None,
    description: str,
) -> list[float]:
    """Supervised learning on packed demonstrations; the model is in eval mode afterwards.

    Args:
        demonstration: of a step, a (prompt, solution) drawn anew at each call.
        rows, width, after_end: of the packed batch of a step, see `pack_rows`.
        lr, warmup, weight_decay: of AdamW with a cosine after `warmup` steps.

    Returns:
        The loss of every step.
    """
    losses = []
    schedule = Schedule(lr, steps, min(warmup, steps))
    optimizer = adamw(model.parameters(), lr, weight_decay)
    model.train()
    for step in progress(steps, description):
        packed = pack_rows(tokenizer, partial(demonstration, step), rows, width, after_end)
        schedule.apply(optimizer, step)
        losses.append(update_on(model, optimizer, packed))
    model.eval()
    return losses


def update_on(model: Any, optimizer: torch.optim.Optimizer, packed: Packed) -> float:
    """One step on the mean cross-entropy of a packed batch, the gradient clipped to norm 1; returns the loss."""
    logits = model(
        input_ids=packed.ids, attention_mask=packed.attention, position_ids=packed.positions, use_cache=False
    ).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), packed.targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


# --- training loop parts, shared with signals/learned ----------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up over `warmup` steps, then a cosine from `lr` to a hundredth of it at `steps`."""

    lr: float
    steps: int
    warmup: int = 0

    def at(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.at(step)


def adamw(parameters: Any, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with beta2 0.95, decay on matrices only."""
    trained = [p for p in parameters if p.requires_grad]
    matrices, vectors = [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.95))


def progress(steps: int, description: str) -> Any:
    """`range(steps)` with a progress bar on standard error; silent where nobody is watching."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(range(steps), description, console=console, disable=not console.is_terminal)
