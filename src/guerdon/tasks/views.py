"""Two views of each question: a rewriter says it in other words, the output is checked, kept in a file, and put beside the original.

    rewrites = rewrite(questions, ModelRewriter(model), cache="rewrites.jsonl")     # asks only for what the file does not have
    pairs = paired_rows(rows, rewrites)                                             # 2 rows a question: question_id, view 0 and 1
    task = with_views(task, reordered)                                              # or a whole task at once

    python -m guerdon.tasks.views questions.jsonl pairs.jsonl --model smollm2

A question whose rewriting is missing, malformed or fails a check is dropped in BOTH views, so that the two stay aligned. A rewriting
that changes the answer teaches wrong labels; nothing here can see that: `disagreeing` finds such pairs from votes, before training.

Source: Co-rewarding (arXiv 2508.00410), section on data rewriting and official code `rewrite_questions.py`; the instruction's wording is ours.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from guerdon.errors import ConfigError, DataError
from guerdon.lm.chat import ChatModel
from guerdon.signals.agreement.answers import answer_codes
from guerdon.signals.agreement.vote import majority
from guerdon.tasks import arithmetic
from guerdon.tasks.base import Row, Task

INSTRUCTION = """Rewrite the mathematics problem below. Tell it in other words and in another situation from everyday life, so that no
phrase of it is copied. All numbers, the mathematics and the final answer must stay exactly the same. The new problem must be natural,
complete and solvable. Do not solve it.

Reply with these lines, and nothing else:
<<<START>>>
ORIGINAL: the problem as it was
REWRITE: the new problem
<<<END>>>

The problem:
"""
_BLOCK = re.compile(r"<<<START>>>(.*?)<<<END>>>", re.DOTALL)
_PARTS = re.compile(r"\s*ORIGINAL:(.*?)\n\s*REWRITE:(.*)", re.DOTALL)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Rewrite:
    """One question in other words, or the reason why there is none.

    Attributes:
        text: the rewriting; None where there is none.
        reason: why not.
    """

    text: str | None
    reason: str = ""


Rewriter = Callable[[Sequence[str]], Sequence[Rewrite | str | None]]
Check = Callable[[str, str], str | None]  # (question, rewriting) -> what is wrong with it, or None


def parse_rewrite(reply: str) -> Rewrite:
    """The REWRITE part of a reply of the form `INSTRUCTION` asks for; of several blocks the last, as a model may repeat the form first."""
    blocks = _BLOCK.findall(reply)
    if not blocks:
        return Rewrite(None, "the reply has no <<<START>>> ... <<<END>>> block")
    parts = _PARTS.fullmatch(blocks[-1])
    if parts is None:
        return Rewrite(None, "the block has not both ORIGINAL: and REWRITE:")
    text = parts[2].strip()
    return Rewrite(text) if text else Rewrite(None, "the rewriting is empty")


@dataclass(frozen=True)
class ModelRewriter:
    """A language model as the rewriter.

    Attributes:
        model: local or remote (`guerdon.lm.LocalModel`, `RemoteModel`).
        temperature, max_tokens: the paper's 0.7, and up to 20480.
        instruction: what stands before the question.
        draw: numbers the sample, to try again for what failed.
    """

    model: ChatModel
    temperature: float = 0.7
    max_tokens: int = 1024
    instruction: str = INSTRUCTION
    draw: int = 0

    def __call__(self, questions: Sequence[str]) -> list[Rewrite]:
        prompts = [self.instruction + question for question in questions]
        draws = [self.draw] * len(prompts)
        replies = self.model.chat(prompts, draws=draws, temperature=self.temperature, max_tokens=self.max_tokens)
        return [
            Rewrite(None, f"the model failed: {r.error}") if r.text is None else parse_rewrite(r.text) for r in replies
        ]


def differs(question: str, rewriting: str) -> str | None:
    """A rewriting that is the question again gives no second view."""
    plain = [re.sub(r"\W+", " ", text).casefold().strip() for text in (question, rewriting)]
    return "the rewriting is the question itself" if plain[0] == plain[1] else None


def same_numbers(question: str, rewriting: str) -> str | None:
    """The same numbers in digits, in any order. For rewriters that may not write them as words."""
    before, after = (sorted(_NUMBER.findall(text)) for text in (question, rewriting))
    return None if before == after else f"the numbers changed: {before} became {after}"


def rewrite(
    questions: Sequence[str],
    rewriter: Rewriter,
    *,
    cache: str | Path | None = None,
    checks: Sequence[Check] = (differs,),
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[Rewrite]:
    """A rewriting of each question, checked.

    Args:
        questions: different or not; each different one is asked for once.
        rewriter: questions -> a `Rewrite`, a text, or None for each.
        cache: JSONL file of {"question", "rewrite", "reason"}; read first and written as answers come, so that a stopped run goes on.
            Failures are not kept: they are asked for again. A file is for one rewriter.
        checks: what a rewriting must pass; run on kept ones too.
        batch_size: questions of one call.
        progress: called with (done, in all).

    Raises:
        DataError: a cache that is no such file, or a rewriter that does not answer every question.
    """
    kept = _read_cache(Path(cache)) if cache is not None else {}
    waiting = [question for question in dict.fromkeys(questions) if question not in kept]
    for first in range(0, len(waiting), batch_size):
        batch = waiting[first : first + batch_size]
        given = [r if isinstance(r, Rewrite) else Rewrite(r, "" if r else "nothing was given") for r in rewriter(batch)]
        if len(given) != len(batch):
            raise DataError(f"{rewriter!r} gave {len(given)} rewritings for {len(batch)} questions")
        found = dict(zip(batch, given, strict=True))
        if cache is not None:
            _append(Path(cache), found)
        kept |= found
        if progress is not None:
            progress(first + len(batch), len(waiting))
    return [_checked(question, kept[question], checks) for question in questions]


def _checked(question: str, found: Rewrite, checks: Sequence[Check]) -> Rewrite:
    if found.text is None or not found.text.strip():
        return Rewrite(None, found.reason or "the rewriting is empty")
    wrong = next((why for check in checks if (why := check(question, found.text))), None)
    return Rewrite(None, wrong) if wrong else found


def _read_cache(path: Path) -> dict[str, Rewrite]:
    if not path.exists():
        return {}
    kept: dict[str, Rewrite] = {}
    lines = path.read_text("utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                record = json.loads(line)
                if record["rewrite"] is not None:
                    kept[record["question"]] = Rewrite(record["rewrite"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # cut off while it was written: asked for again
                continue
            raise DataError(f'{path}, line {number}: not {{"question", "rewrite", "reason"}}: {error}') from error
    return kept


def _append(path: Path, found: Mapping[str, Rewrite]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as handle:
        handle.seek(0)
        tail = handle.read().rpartition(b"\n")[2]
        if tail:  # a line that was cut off while it was written, or one of another editor's without its end
            handle.truncate(path.stat().st_size - len(tail))
            handle.write(tail + b"\n" if _whole(tail) else b"")
        for question, item in found.items():
            record = {"question": question, "rewrite": item.text, "reason": item.reason}
            handle.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        handle.flush()
        os.fsync(handle.fileno())


def _whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


# --- pairs -----------------------------------------------------------------------------------------------------------


def paired_rows(
    rows: Sequence[Row], rewrites: Sequence[Rewrite], *, prompt: str = "prompt", first_id: int = 0
) -> list[Row]:
    """Both views of each question that has two, next to each other: view 0 the original, view 1 the rewriting.

    Args:
        rows: with the question in `prompt`; every other column is in both views.
        rewrites: one for each row.
        prompt: the column.
        first_id: of the `question_id`s, which count on from it.
    """
    if len(rows) != len(rewrites):
        raise DataError(f"{len(rewrites)} rewritings for {len(rows)} rows; there must be one each")
    pairs = [(row, found.text) for row, found in zip(rows, rewrites, strict=True) if found.text is not None]
    return [
        {**row, prompt: text, "question_id": number, "view": view}
        for number, (row, second) in enumerate(pairs, first_id)
        for view, text in enumerate((row[prompt], second))
    ]


def write_views(rows: Sequence[Row], rewrites: Sequence[Rewrite], original: str | Path, rewritten: str | Path, *, prompt: str = "prompt") -> int:  # fmt: skip
    """The two views as two JSONL files of equal length and order; returns their length. A pair that is not whole is in neither."""
    pairs = paired_rows(rows, rewrites, prompt=prompt)
    for view, path in enumerate((original, rewritten)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in pairs if row["view"] == view]
        Path(path).write_text("".join(lines), "utf-8")
    return len(pairs) // 2


def disagreeing(answers: Sequence[tuple[Sequence[str], Sequence[str]]], least: float = 0.0) -> list[int]:
    """Pairs whose views vote for different answers: a sign of a rewriting that changed the problem.

    Args:
        answers: for each pair the sampled answers of its first and of its second view ("" = none).
        least: report only where both majorities have at least this share of their votes: an unsure vote says little.

    Returns:
        Their numbers. A pair without a vote in one view is not reported.
    """
    found = []
    for number, views in enumerate(answers):
        known: dict[str, int] = {}
        codes = [answer_codes(view, known) for view in views]
        votes = [majority(c, c.new_zeros(len(c)), 1) for c in codes]
        labels, shares = [int(v.label[0]) for v in votes], [float(v.share[0]) for v in votes]
        if min(labels) >= 0 and labels[0] != labels[1] and min(shares) >= least:
            found.append(number)
    return found


def with_views(task: Task, rewriter: Rewriter, *, cache: str | Path | None = None, checks: Sequence[Check] = (differs,), notes: Mapping[str, Any] | None = None) -> Task:  # fmt: skip
    """A task in which every question stands in two views, in training and held out. Questions without a second view are left out.

    A rewriting that is a prompt of the other side of the split is dropped too: what is held out must not be trained on.

    Args:
        task: of text prompts.
        rewriter, cache, checks: see `rewrite`.
        notes: more of `Task.notes`, such as how answers are found for a vote ({"extract": "after:#"}).

    Raises:
        DataError: nothing is left on one side, or prompts that are not texts.
    """
    if any(not isinstance(row["prompt"], str) for row in [*task.train, *task.held_out]):
        raise DataError(
            f"task {task.name!r}: prompts of messages are not rewritten; pair the rows yourself (question_id, view)"
        )
    sides: dict[str, list[Row]] = {}
    other = {"train": {row["prompt"] for row in task.held_out}, "held_out": {row["prompt"] for row in task.train}}
    for side, rows in (("train", task.train), ("held_out", task.held_out)):
        rewrites = rewrite([row["prompt"] for row in rows], rewriter, cache=cache, checks=checks)
        rewrites = [Rewrite(None, "belongs to the other side") if r.text in other[side] else r for r in rewrites]
        sides[side] = paired_rows(rows, rewrites, first_id=0 if side == "train" else len(task.train))
        if not sides[side]:
            why = next((r.reason for r in rewrites if r.text is None), "there are no rows")
            raise DataError(
                f"task {task.name!r}: no {side} question has a second view; the first one failed because: {why}"
            )
        other["held_out"] |= {row["prompt"] for row in sides["train"]}
    return replace(
        task,
        name=f"{task.name}:views",
        notes={**task.notes, **(notes or {})},
        train=sides["train"],
        held_out=sides["held_out"],
    )


def reordered(prompts: Sequence[str]) -> list[Rewrite]:
    """Rewriter of the task "sums": the operands in another order, on the same side of the task's split."""
    return [_reordered(prompt) for prompt in prompts]


def _reordered(prompt: str) -> Rewrite:
    operands = arithmetic.parse_prompt(prompt)
    rng = random.Random(zlib.crc32(prompt.encode()))
    for _ in range(32):
        mixed = rng.sample(operands, len(operands))
        text = arithmetic.make_prompt(mixed)
        if mixed != operands and arithmetic.is_held_out(text) == arithmetic.is_held_out(prompt):
            return Rewrite(text)
    return Rewrite(None, "no other order of the operands is on this side of the split")


# --- the command -----------------------------------------------------------------------------------------------------


def sums_in_two_views(**options: Any) -> Task:
    """The built-in task "sums" with every sum in two orders of its operands. Options of `arithmetic.sums`."""
    return with_views(
        arithmetic.sums(**options), reordered, checks=(differs, same_digits), notes={"extract": "after:#"}
    )


def same_digits(question: str, rewriting: str) -> str | None:
    """The same digits in any order: a sum of them in another order has the same total."""
    return None if sorted(re.findall(r"\d", question)) == sorted(re.findall(r"\d", rewriting)) else "the digits changed"


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON: {error}") from error


def main() -> int:
    """Questions in, pairs out."""
    parser = argparse.ArgumentParser(
        prog="python -m guerdon.tasks.views", description="Write each question in two views."
    )
    parser.add_argument("questions", type=Path, help="JSONL with a column of questions")
    parser.add_argument("pairs", type=Path, help="JSONL to write: both views, question_id, view, all other columns")
    parser.add_argument(
        "--model", required=True, help="smollm2, a hub id, a path, or http(s)://host/v1#model of an endpoint"
    )
    parser.add_argument("--prompt", default="prompt", help="the column of the question")
    parser.add_argument("--cache", type=Path, help="kept rewritings; default PAIRS.rewrites.jsonl")
    parser.add_argument("--same-numbers", action="store_true", help="drop rewritings whose numbers differ")
    parser.add_argument("--max-tokens", type=int, default=1024)
    given = parser.parse_args()
    rows = list(_rows(given.questions))
    if missing := next((i for i, row in enumerate(rows) if not row.get(given.prompt)), None):
        raise ConfigError(f"{given.questions}: row {missing} has no {given.prompt!r}; name the column with --prompt")
    cache = given.cache or given.pairs.with_suffix(".rewrites.jsonl")
    rewriter = ModelRewriter(_model(given.model), max_tokens=given.max_tokens)
    checks = (differs, same_numbers) if given.same_numbers else (differs,)
    questions = [row[given.prompt] for row in rows]
    rewrites = rewrite(questions, rewriter, cache=cache, checks=checks, progress=lambda n, of: print(f"{n} of {of}"))
    pairs = paired_rows(rows, rewrites, prompt=given.prompt)
    given.pairs.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs), "utf-8")
    for reason in sorted({r.reason for r in rewrites if r.text is None}):
        print(f"dropped {sum(r.reason == reason for r in rewrites)}: {reason}")
    print(f"{given.pairs}: {len(pairs) // 2} of {len(rows)} questions in two views")
    return 0


def _model(name: str) -> Any:
    if name.startswith("http"):
        from guerdon.lm import RemoteModel

        url, _, model = name.partition("#")
        return RemoteModel(model, base_url=url)
    from guerdon.lm import LocalModel

    return LocalModel(name)


if __name__ == "__main__":
    raise SystemExit(main())
