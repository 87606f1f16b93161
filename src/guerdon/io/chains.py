"""Gold chains for a file of questions, written once: the synthesis and filter of `signals.likelihood.gold_chain` as a pipeline.

    write_gold_chains("questions.jsonl", "chains.jsonl", "path/to/instruct-model")
    guerdon train --system p2s:gold=gold_chain --task chains.jsonl --model path/to/instruct-model

P2S makes its chains with the CURRENT policy at every step; chains made beforehand are cheaper, may come from a better model, and do not follow
the policy. Every input row is kept, with the columns `gold_chain` (null where no candidate survived), `gold_logprob` (mean log-probability of the
answer after the chain, in nats a token), `gold_survived` (share of well-formed candidates) and `gold_reason`. Streaming and resumable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from guerdon.errors import DataError
from guerdon.io.derive import Derived, DeriveResult, derive_file
from guerdon.io.read import Row
from guerdon.lm.offsets import decode_text
from guerdon.phases import Phase
from guerdon.rollouts import Clock
from guerdon.segment.reasoning import ChainLayout, layout_of
from guerdon.signals.likelihood.gold_chain import HINT, Chain, SynthesisedChains
from guerdon.signals.likelihood.reference import references_of

ADDED = ("gold_chain", "gold_logprob", "gold_survived", "gold_reason")


def write_gold_chains(
    in_path: str | Path,
    out_path: str | Path,
    model: Any,
    *,
    prompt_column: str = "prompt",
    answer_column: str = "answer",
    layout: str | ChainLayout | Sequence[str] = "think",
    hint: str | Callable[[Any, str], Any] = HINT,
    candidates: int = 4,
    temperature: float = 1.0,
    max_new_tokens: int = 512,
    leak_pieces: int = 0,
    seed: int = 0,
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
    restart: bool = False,
) -> DeriveResult:
    """Write the file. Samples depend on the seed and on a batch's prompts, so a resumed run gives the same chains.

    Args:
        in_path, out_path: JSONL or Parquet, by their endings.
        model: a `LocalModel`, or a path or hub id.
        prompt_column: texts or chat messages.
        answer_column: the reference, or several of which the first counts.
        layout, hint, candidates, temperature, leak_pieces: see `SynthesisedChains`.
        max_new_tokens: length cap of a candidate.
        seed: of the sampling.
        batch_size: questions at once.
        on_progress, restart: see `derive_file`.

    Raises:
        DataError: no row of a batch has the columns.
    """
    source = SynthesisedChains(
        layout_of(layout), answer_column, candidates, hint, "likelihood", temperature, max_new_tokens, leak_pieces
    )
    named = (
        model if isinstance(model, str | Path) else getattr(getattr(model.model, "config", None), "_name_or_path", "")
    )
    shown = repr(source) if isinstance(hint, str) else repr(source).split(", hint=")[0]
    asked = {"chains": shown, "model": str(named), "columns": [prompt_column, answer_column], "seed": seed}
    loaded: list[Any] = []

    def derive(rows: list[Row]) -> Derived:
        if not any(prompt_column in row and answer_column in row for row in rows):
            raise DataError(
                f"no row has {prompt_column!r} and {answer_column!r}; they have {sorted({k for r in rows for k in r})}"
            )
        if not loaded:
            loaded.append(_instrument(model))
        return _with_chains(loaded[0], source, rows, prompt_column, answer_column, seed, max_new_tokens)

    return derive_file(
        in_path, out_path, derive, asked=asked, batch_size=batch_size, on_progress=on_progress, restart=restart
    )


def gold_chain_phase(in_path: str | Path, model: Any, *, name: str = "gold-chains", **options: Any) -> Phase:
    """The pipeline as a phase of a recipe: writes `chains.jsonl` into the phase's folder. options: of `write_gold_chains`."""

    def run(folder: Path) -> dict[str, Any]:
        done = write_gold_chains(in_path, folder / "chains.jsonl", model, **options)
        return {"file": str(done.path), "rows": done.rows, "without_chain": done.left_out}

    return Phase(name, run, {"source": str(in_path), **{key: str(value) for key, value in options.items()}})


def _instrument(model: Any) -> Any:
    from guerdon.lm import LocalModel

    return LocalModel(model) if isinstance(model, str | Path) else model


def _with_chains(
    model: Any, source: SynthesisedChains, rows: list[Row], prompt: str, answer: str, seed: int, cap: int
) -> Derived:
    """The rows with their chains, and why some have none."""
    live = [i for i, row in enumerate(rows) if row.get(prompt) and references_of(row.get(answer))]
    prompts = [rows[i][prompt] for i in live]
    answers = [references_of(rows[i][answer])[0].strip() for i in live]
    found: dict[int, Chain | str] = {}
    if live:
        chains, shares = source.sample(
            model, prompts, answers, cap, Clock(seed=seed).generator("chains", repr(prompts))
        )
        found = dict(zip(live, source.filter(model, prompts, answers, chains, shares), strict=True))
    made, why = [], []
    for i, row in enumerate(rows):
        chain = found.get(i, "no question or no answer")
        kept = {key: value for key, value in row.items() if key not in ADDED}
        if isinstance(chain, str):
            why.append(f"{str(row.get(prompt))[:60]!r}: {chain}")
            made.append({**kept, "gold_chain": None, "gold_logprob": None, "gold_survived": 0.0, "gold_reason": chain})
            continue
        text = decode_text(model.tokenizer, chain.ids)
        made.append(
            {
                **kept,
                "gold_chain": text,
                "gold_logprob": chain.logprob,
                "gold_survived": chain.survived,
                "gold_reason": None,
            }
        )
    return made, why
