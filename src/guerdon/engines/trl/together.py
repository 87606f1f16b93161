"""Rows that must meet in one generation batch: a sampler that keeps the rows of one value of a data column side by side.

A part that compares rollouts of several rows - two wordings of one question, say - declares `needs = {"together.COLUMN"}`. TRL's own
sampler shuffles rows one by one; here whole units are shuffled, and a generation batch holds only whole ones. Groups stay what they
are: each row is a prompt of its own with its own rollouts. Units may straddle ranks, as groups do: what compares them is of batch
scope and sees the gathered batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from guerdon.engines.support import limit
from guerdon.errors import CapabilityError, ConfigError, DataError
from guerdon.system import System

PREFIX = "together."


def together_column(system: System) -> str | None:
    """The column whose equal values must meet, or None.

    Raises:
        CapabilityError: parts that ask for two different columns.
    """
    columns = sorted(need.removeprefix(PREFIX) for need in system.needs if need.startswith(PREFIX))
    if len(columns) > 1:
        raise CapabilityError(f"{system.name}: {limit('together_columns', columns=columns)}")
    return columns[0] if columns else None


def units_of(values: Sequence[Any], column: str) -> list[list[int]]:
    """Row numbers by value, in order of first appearance; all of one size.

    Args:
        values: of the column, one a row.
        column: its name, for errors.

    Raises:
        DataError: values of different frequency, or that occur once: then there is nothing to meet.
    """
    units: dict[Any, list[int]] = {}
    for row, value in enumerate(values):
        units.setdefault(value, []).append(row)
    sizes = sorted({len(rows) for rows in units.values()})
    if len(sizes) != 1 or sizes[0] < 2:
        rarest: tuple[Any, list[int]] = min(units.items(), key=lambda item: len(item[1]), default=(None, []))
        raise DataError(
            f"rows of equal {column!r} are to meet in one batch, so every value must occur equally often and more than once; "
            f"{rarest[0]!r} occurs {len(rarest[1])} time(s), others up to {sizes[-1] if sizes else 0}"
        )
    return list(units.values())


def column_of(rows: Any, column: str) -> list[Any]:
    """A column of a data set or of a list of rows. Raises DataError where it is missing, CapabilityError for a stream."""
    if not hasattr(rows, "__len__"):
        raise CapabilityError(limit("together_stream"))
    missing = DataError(f"the system needs rows of equal {column!r} in one batch, and the data has no such column")
    names = getattr(rows, "column_names", None)
    if names is not None:
        if column not in names:
            raise missing
        return list(rows[column])
    if any(column not in row for row in rows):
        raise missing
    return [row[column] for row in rows]


class TogetherSampler(Sampler[int]):
    """TRL's RepeatSampler over units of rows.

    Args:
        units: row numbers, all of one size.
        mini_repeat_count: times each row is repeated side by side (rollouts of a prompt).
        batch_size: different rows of a generation batch; a multiple of the units' size.
        repeat_count: times a whole batch is repeated.
        shuffle: draw the units' order anew for each pass.
        seed: of these draws.

    Attributes:
        num_samples: how many things are permuted for each pass.

    Raises:
        ConfigError: a batch that cannot hold whole units.
    """

    def __init__(
        self,
        units: Sequence[Sequence[int]],
        mini_repeat_count: int,
        batch_size: int,
        repeat_count: int = 1,
        shuffle: bool = True,
        seed: int | None = None,
    ) -> None:
        size = len(units[0])
        if batch_size % size:
            raise ConfigError(limit("together_batch", prompts=batch_size, size=size))
        self.units, self.per_batch = [list(unit) for unit in units], batch_size // size
        if len(self.units) < self.per_batch:
            raise ConfigError(limit("together_few", units=len(self.units), per_batch=self.per_batch))
        self.mini_repeat_count, self.repeat_count, self.shuffle = mini_repeat_count, repeat_count, shuffle
        self.num_samples = len(self.units)
        self.generator = torch.Generator()
        if seed is not None:
            self.generator.manual_seed(seed)

    def __iter__(self) -> Iterator[int]:
        count = self.num_samples
        order = torch.randperm(count, generator=self.generator).tolist() if self.shuffle else range(count)
        whole = count // self.per_batch * self.per_batch  # an incomplete batch is left out, as TRL does
        for first in range(0, whole, self.per_batch):
            rows = [row for unit in order[first : first + self.per_batch] for row in self.units[unit]]
            for _ in range(self.repeat_count):
                for row in rows:
                    yield from [row] * self.mini_repeat_count

    def __len__(self) -> int:
        whole = self.num_samples // self.per_batch * self.per_batch
        return whole * len(self.units[0]) * self.mini_repeat_count * self.repeat_count


def together_sampler(trainer: Any, dataset: Any) -> TogetherSampler | None:
    """The sampler of a trainer whose system asks for one, over `dataset` or the trainer's own; None where it does not."""
    column = together_column(trainer.system)
    if column is None:
        return None
    args, rows = trainer.args, trainer.train_dataset if dataset is None else dataset
    return TogetherSampler(
        units_of(column_of(rows, column), column),
        trainer.num_generations,
        args.generation_batch_size // trainer.num_generations,
        trainer.num_iterations * args.steps_per_generation,
        trainer.shuffle_dataset,
        args.seed,
    )
