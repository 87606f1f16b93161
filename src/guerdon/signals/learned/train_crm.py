"""Training a conciseness reward model: solutions written twice, scored by a judge, filtered, learned (CRM, arXiv 2511.09158).

    pairs  = write_pairs(writer, questions)              a concise and a redundant solution of each question
    scored = score_pairs(judge, pairs)                   how concise each is, in [0.1, 1]
    kept   = discriminative(scored)                      concise scored high AND redundant scored low
    train_crm(base, examples(kept), output=folder)       next-token loss on the score's tokens; then Conciseness(folder)
    train_rm(base, preferences(kept))                    or a scalar model that orders the two

The paper writes with Qwen2.5-Math-72B, judges with Qwen2.5-72B on DeepMath-103K and trains Qwen2.5-3B on 65,000 samples. The wording of the
prompts, the filter's thresholds and the masking of the prompt in the loss are not known: guesses, as arguments.

Simplifications: one process, float32, a cosine over the run, no evaluation during training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guerdon.errors import DataError
from guerdon.extras import require
from guerdon.signals.learned.conciseness import CARD, HIGHEST, LOWEST, TEMPLATE, ask_scores, conciseness_prompt
from guerdon.signals.learned.layouts import pad_rows
from guerdon.signals.learned.train_prm import TrainedClassifier, similar_lengths
from guerdon.signals.learned.train_rm import PreferencePair
from guerdon.tasks.tiny import Schedule, adamw, progress

CONCISE_PROMPT = """Solve the problem. Write only the steps that are needed, each once, in few words and good notation. {reference}

Problem:
{question}"""
REDUNDANT_PROMPT = """Solve the problem correctly, but redundantly on purpose: repeat calculations, check the same thing several times, explain what
is obvious, and go on tangents. {reference}

Problem:
{question}"""


@dataclass(frozen=True)
class SolutionPair:
    """Two solutions of a question, and, once judged, how concise each is (NaN = not known). note: why something is missing."""

    question: str
    concise: str
    redundant: str
    concise_score: float = float("nan")
    redundant_score: float = float("nan")
    note: str = ""


@dataclass(frozen=True)
class CrmExample:
    """One sample of the training: what the model shall say of a solution. score: in [0.1, 1]."""

    question: str
    solution: str
    score: float


# --- data ------------------------------------------------------------------------------------------------------------


def write_pairs(
    writer: Any,
    questions: Sequence[str],
    references: Sequence[str] | None = None,
    *,
    concise_prompt: str = CONCISE_PROMPT,
    redundant_prompt: str = REDUNDANT_PROMPT,
    temperature: float = 0.7,
    max_tokens: int = 2048,
) -> list[SolutionPair]:
    """Let a language model write a concise and a redundant solution of each question.

    Args:
        writer: anything with `chat`.
        questions: N texts.
        references: N final answers, told to the writer; None = it is on its own.
        concise_prompt, redundant_prompt: with {question} and {reference}.
        temperature, max_tokens: of the writing.

    Returns:
        N pairs; where a call failed, an empty solution and the note says why (`discriminative` leaves those out).
    """
    hints = [f"The final answer is {r}." if r else "" for r in references or [""] * len(questions)]
    prompts = [
        template.replace("{reference}", hint).replace("{question}", question)
        for template in (concise_prompt, redundant_prompt)
        for question, hint in zip(questions, hints, strict=True)
    ]
    replies = writer.chat(prompts, temperature=temperature, max_tokens=max_tokens)
    half = len(questions)
    return [
        SolutionPair(question, first.text or "", second.text or "", note=first.error or second.error or "")
        for question, first, second in zip(questions, replies[:half], replies[half:], strict=True)
    ]


def score_pairs(
    judge: Any, pairs: Sequence[SolutionPair], *, template: str = TEMPLATE, max_tokens: int = 512
) -> list[SolutionPair]:
    """The pairs with a judge's scores; NaN where it failed, could not be read, or there is nothing to judge."""
    prompts = [conciseness_prompt(p.question, text, template) for p in pairs for text in (p.concise, p.redundant)]
    values, reasons = ask_scores(judge, prompts, max_tokens=max_tokens)
    scored = []
    for i, pair in enumerate(pairs):
        known = [float(v) for v in values[2 * i : 2 * i + 2]]
        note = pair.note or reasons.get(2 * i, "") or reasons.get(2 * i + 1, "")
        texts = (pair.concise, pair.redundant)
        first, second = (v if text.strip() else float("nan") for v, text in zip(known, texts, strict=True))
        scored.append(replace(pair, concise_score=first, redundant_score=second, note=note))
    return scored


def is_discriminative(concise_scores: Tensor, redundant_scores: Tensor, high: float = 0.8, low: float = 0.5) -> Tensor:
    """[N] bool: the concise solution scored at least `high` AND the redundant one at most `low`; never where one is NaN.

    Scores are compared with a slack of 1e-9, so that a score computed as 0.8 is not below it. The thresholds are guesses.
    """
    return (concise_scores >= high - 1e-9) & (redundant_scores <= low + 1e-9)


def discriminative(pairs: Sequence[SolutionPair], *, high: float = 0.8, low: float = 0.5) -> list[SolutionPair]:
    """The scored pairs that teach something, see `is_discriminative`."""
    first, second = (
        torch.tensor([getattr(pair, name) for pair in pairs], dtype=torch.float64)
        for name in ("concise_score", "redundant_score")
    )
    keep = is_discriminative(first, second, high, low).tolist()
    return [pair for pair, kept in zip(pairs, keep, strict=True) if kept]


def examples(pairs: Sequence[SolutionPair]) -> list[CrmExample]:
    """Both versions of every pair, with their scores."""
    return [
        CrmExample(pair.question, text, score)
        for pair in pairs
        for text, score in ((pair.concise, pair.concise_score), (pair.redundant, pair.redundant_score))
    ]


def preferences(pairs: Sequence[SolutionPair]) -> list[PreferencePair]:
    """The pairs for `train_rm`: the concise solution is the chosen one."""
    return [PreferencePair(pair.question, pair.concise, pair.redundant) for pair in pairs]


# --- training --------------------------------------------------------------------------------------------------------


def score_text(score: float) -> str:
    """What the model learns to say: one decimal."""
    return f"Score: {min(HIGHEST, max(LOWEST, score)):.1f}"


def answer_loss(logits: Tensor, ids: Tensor, answer: Tensor) -> Tensor:
    """Mean next-token cross-entropy over the answer's tokens.

    logits: [B, L, V]. ids: [B, L]. answer: [B, L] bool, the tokens that are predicted (never the first of a row).
    """
    picked = logits[:, :-1][answer[:, 1:]].float()
    return torch.nn.functional.cross_entropy(picked, ids[:, 1:][answer[:, 1:]])


def train_crm(
    base: Any,
    samples: Sequence[CrmExample],
    *,
    template: str = TEMPLATE,
    lr: float = 1e-5,
    epochs: int = 1,
    batch_size: int = 32,
    lora_rank: int = 0,
    weight_decay: float = 0.0,
    tokenizer: Any = None,
    seed: int = 0,
    output: str | Path | None = None,
) -> TrainedClassifier:
    """Teach a causal language model to say how concise a solution is.

    Args:
        base: hub id or path, or a loaded model with its `tokenizer`. A tokenizer without a chat template gets one that shows the
            message and a line break, so that the model can be asked like any judge.
        samples: question, solution, score.
        template: with {question} and {solution}; saved beside the model, where `Conciseness` finds it.
        lr, epochs, batch_size, weight_decay: of AdamW with a cosine.
        lora_rank: 0 = all weights; above, a LoRA adapter on all linear layers, merged at the end.
        output: where to save model and tokenizer.

    The caller's random state is untouched; the same seed gives the same model on one machine.

    Raises:
        DataError: no samples, or a score that is no number in [0.1, 1].
    """
    _check(samples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, tokenizer = _loaded(base, tokenizer, lora_rank)
        rows = [_encoded(tokenizer, sample, template) for sample in samples]
        sizes = [len(prompt) + len(answer) for prompt, answer in rows]
        batches = [b for _ in range(epochs) for b in similar_lengths(sizes, batch_size)]
        optimizer, schedule = adamw(model.parameters(), lr, weight_decay), Schedule(lr, len(batches))
        device, losses = next(model.parameters()).device, []
        model.train()
        for step in progress(len(batches), "conciseness reward model"):
            chosen = [rows[i] for i in batches[step].tolist()]
            ids, mask = pad_rows([[*prompt, *answer] for prompt, answer in chosen], tokenizer.pad_token_id)
            begins = torch.tensor([len(prompt) for prompt, _ in chosen])
            said = mask & (torch.arange(ids.shape[1])[None] >= begins[:, None])
            logits = model(input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False).logits
            loss = answer_loss(logits, ids.to(device), said.to(device))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            schedule.apply(optimizer, step)
            optimizer.step()
            losses.append(float(loss.detach()))
        model = model.merge_and_unload() if lora_rank else model
    model.eval()
    if output is not None:
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
        (Path(output) / CARD).write_text(json.dumps({"template": template}, indent=1) + "\n", "utf-8")
    return TrainedClassifier(model, tokenizer, losses)


def _check(samples: Sequence[CrmExample]) -> None:
    if not samples:
        raise DataError("no samples; there is nothing to learn from")
    for i, sample in enumerate(samples):
        if not LOWEST - 1e-9 <= sample.score <= HIGHEST + 1e-9:
            raise DataError(f"sample {i} has the score {sample.score}; it must lie in [{LOWEST}, {HIGHEST}]")


def _loaded(base: Any, tokenizer: Any, lora_rank: int) -> tuple[Any, Any]:
    from guerdon.lm.load import load_model

    if isinstance(base, torch.nn.Module):
        if tokenizer is None:
            raise DataError("a loaded base model comes without its tokenizer: pass tokenizer=")
        model: Any = base
    else:
        model, own = load_model(base)
        tokenizer = tokenizer or own
    if getattr(tokenizer, "chat_template", None) is None:
        tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    if lora_rank:
        peft = require("peft", extra="train")
        model = peft.get_peft_model(
            model,
            peft.LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    return model, tokenizer


def _encoded(tokenizer: Any, sample: CrmExample, template: str) -> tuple[list[int], list[int]]:
    """Prompt ids, and the ids of the answer with its end of sequence."""
    from guerdon.lm.encode import encode_continuation, encode_prompt

    message = {"role": "user", "content": conciseness_prompt(sample.question, sample.solution, template)}
    answer = encode_continuation(tokenizer, score_text(sample.score)).tolist()
    return encode_prompt(tokenizer, [message]).tolist(), [*answer, tokenizer.eos_token_id]
