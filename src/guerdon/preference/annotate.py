"""Preference annotation of a file: n responses of each prompt in, (prompt, chosen, rejected) out, by any sequence reward.

    annotate_file("responses.jsonl", "pairs.jsonl", DensityRatio("org/chat-dpo", "org/chat-sft"))
    guerdon annotate responses.jsonl pairs.jsonl --reward cdr:strong=org/chat-dpo,weak=org/chat-sft

Input rows hold a prompt and a list of responses, or one response each, a prompt's rows next to each other. Output rows hold what preference
trainers read: `prompt`, `chosen`, `rejected`, with `chosen_reward`, `rejected_reward` and `margin`; other columns of the (first) row are kept. A prompt
that gives no pair is left out, with its reason counted. Streaming and resumable (`guerdon.io.derive`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from guerdon.errors import ConfigError, DataError
from guerdon.identity import describe, digest
from guerdon.io.columns import description, lift
from guerdon.io.derive import Derived, DeriveResult, derive_file
from guerdon.io.read import Row
from guerdon.io.records import group_key
from guerdon.preference.pairs import draw_pair
from guerdon.rollouts import Rollouts
from guerdon.system import System

MADE = ("chosen", "rejected", "chosen_reward", "rejected_reward", "margin", "rewards", "domain")


@dataclass
class Annotation:
    """How annotation went.

    Attributes:
        file: rows written and prompts left out, with reasons.
        length_correlation: Pearson correlation of reward and response length in characters, over the prompts of this call; NaN for
            fewer than two responses. Far from 0, the pairs teach length: use reduction="mean" or length_tolerance.
    """

    file: DeriveResult
    length_correlation: float = float("nan")
    lengths: list[float] = field(default_factory=list, repr=False)
    rewards: list[float] = field(default_factory=list, repr=False)


def annotate_file(
    in_path: str | Path,
    out_path: str | Path,
    reward: Any,
    *,
    source: str | None = None,
    prompt_column: str = "prompt",
    responses_column: str = "responses",
    completion_column: str = "completion",
    length_tolerance: float | None = None,
    seed: int = 0,
    batch_size: int = 16,
    on_broken: Literal["raise", "skip"] = "raise",
    on_progress: Callable[[int, int], None] | None = None,
    restart: bool = False,
) -> Annotation:
    """Annotate a file of responses.

    Args:
        in_path, out_path: JSONL or Parquet, by their endings.
        reward: a signal with one value a row; its models bound or given.
        source: which of a signal's several sources counts; default "ratio" where there is one, else the only one.
        prompt_column, responses_column: of rows with a list of responses.
        completion_column: of rows with one response each.
        length_tolerance, seed: see `draw_pair`. The draw depends on seed and prompt alone.
        batch_size: input rows at once.
        on_broken, on_progress, restart: see `derive_file`.

    Raises:
        DataError: no row has responses, or not one prompt gave a pair (two equal models, a reward that is flat).
    """
    system = reward if isinstance(reward, System) else lift(reward, None, None)
    asked = {
        "reward": description(system), "reward_code": digest(describe(system, trust_repr=True)), "source": source, "length_tolerance": length_tolerance, "seed": seed,
        "columns": [prompt_column, responses_column, completion_column],
    }  # fmt: skip
    note = Annotation(DeriveResult(Path(out_path), 0, 0, 0, 0, []))

    def derive(rows: list[Row]) -> Derived:
        groups = _groups(rows, prompt_column, responses_column, completion_column)
        scored = _scored(system, groups, prompt_column, source)
        made, why = [], []
        for (row, responses), rewards in zip(groups, scored, strict=True):
            note.lengths += [float(len(text)) for text in responses]
            note.rewards += rewards
            prompt = row.get(prompt_column)
            rng = random.Random(f"{seed}|{prompt!r}")
            pair = draw_pair(rewards, responses, rng, length_tolerance=length_tolerance)
            if isinstance(pair, str):
                why.append(f"{str(prompt)[:60]!r}: {pair}")
                continue
            made.append(_pair_row(row, responses, rewards, pair, (prompt_column, responses_column, completion_column)))
        return made, why

    def empty(left_out: int, problems: list[str]) -> str:
        first = problems[0] if problems else "no reason is known"
        return (
            f"{in_path}: not one of {left_out} prompts gave a pair; the first: {first}. Are strong and weak the same?"
        )

    note.file = derive_file(
        in_path, out_path, derive, asked=asked, batch_size=batch_size, group_column=prompt_column, on_broken=on_broken,
        on_progress=on_progress, restart=restart, refuse_empty=empty,
    )  # fmt: skip
    note.length_correlation = _correlation(note.lengths, note.rewards)
    return note


def _groups(rows: Sequence[Row], prompt: str, responses: str, completion: str) -> list[tuple[Row, list[str]]]:
    """(the first row, the responses) of each prompt."""
    groups: list[tuple[Row, list[str]]] = []
    previous: Any = None
    for row in rows:
        if isinstance(row.get(responses), list):
            groups.append((row, [str(text) for text in row[responses]]))
            previous = None
            continue
        if not isinstance(row.get(completion), str):
            raise DataError(f"a row has neither a list {responses!r} nor a text {completion!r}; it has {sorted(row)}")
        key = group_key(row, prompt, None)
        if previous is None or key != previous:
            groups.append((row, []))
        groups[-1][1].append(row[completion])
        previous = key
    return groups


def _scored(
    system: System, groups: Sequence[tuple[Row, list[str]]], prompt: str, source: str | None
) -> list[list[float]]:
    """The rewards of each group's responses."""
    prompts = [row.get(prompt) or "" for row, responses in groups for _ in responses]
    texts = [text for _, responses in groups for text in responses]
    if not texts:
        return [[] for _ in groups]
    columns = {key for row, _ in groups for key in row if key != prompt}
    given = {key: [row.get(key) for row, responses in groups for _ in responses] for key in sorted(columns)}
    ids = [i for i, (_, responses) in enumerate(groups) for _ in responses]
    rollouts = Rollouts.from_texts(prompts, texts, given, group_ids=ids)
    scores = system.score(system.segmented(rollouts))
    values = scores.raw[_source_name(list(scores.raw), source)].row_total().tolist()
    found, at = [], 0
    for _, responses in groups:
        found.append(values[at : at + len(responses)])
        at += len(responses)
    return found


def _source_name(names: list[str], source: str | None) -> str:
    ending = source or ("ratio" if len(names) > 1 else names[0])
    found = [name for name in names if name == ending or name.endswith(f".{ending}")]
    if len(found) != 1:
        raise ConfigError(f"source={source!r}: the reward gives {', '.join(names)}; name one of them")
    return found[0]


def _pair_row(
    row: Row, responses: Sequence[str], rewards: Sequence[float], pair: tuple[int, int], named: tuple[str, str, str]
) -> Row:
    """The output row; a chat prompt gets its responses as messages, as preference trainers want them."""
    prompt = row.get(named[0])
    chosen, rejected = pair
    kept = {key: value for key, value in row.items() if key not in (*named, *MADE)}

    def shown(text: str) -> Any:
        return [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text

    return {
        **kept,
        "prompt": prompt,
        "chosen": shown(responses[chosen]),
        "rejected": shown(responses[rejected]),
        "chosen_reward": rewards[chosen],
        "rejected_reward": rewards[rejected],
        "margin": rewards[chosen] - rewards[rejected],
        "rewards": list(rewards),
    }


def _correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    both = torch.tensor([[x, y] for x, y in zip(xs, ys, strict=True) if y == y], dtype=torch.float64).reshape(-1, 2)
    if len(both) < 2 or bool((both.std(0) == 0).any()):
        return float("nan")
    return float(torch.corrcoef(both.T)[0, 1])
