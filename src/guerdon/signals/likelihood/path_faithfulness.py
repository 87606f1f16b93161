"""How much each step of a rollout makes the rest of a gold chain likelier: P2S's path faithfulness (arXiv 2601.20649).

    r_i = max_t [ log pi(s_t | q, p_i) - log pi(s_t | q, masked p_i) ]      i < m
    r_m = log pi(y* | q, z)

p_i: the rollout's first i pieces; s_t: the gold chain from its piece t to its end; masked p_i: as many placeholder tokens. The maximum is over
the DIFFERENCE, so suffixes that are likely anyway (short or generic ones) bring nothing. Sums of log-probabilities would be ruled by
the longest suffix; the default is the mean over the suffix's tokens.

A row of placeholders is text that no model has read, and after it every sentence is unlikely: any prose beats it. `baseline="other"` puts the
first i pieces of the reasoning about ANOTHER question there, so that only what belongs to this question is paid.

It rewards resemblance to the policy's OWN chain: a likely but wrong chain, or a valid other path, is mis-ranked. All contexts of a
batch are scored in one call, in which question, prefixes and placeholders that are common are forwarded once (`guerdon.lm.shared`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.errors import ConfigError
from guerdon.options import checked
from guerdon.rewards import Reasons, Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.segment.reasoning import ChainLayout, equal_pieces
from guerdon.signals.likelihood.gold_chain import Chain, ChainSource
from guerdon.signals.likelihood.reference import Bound, prompt_of, references_of
from guerdon.spans import Spans

Baseline = Literal["masked", "empty", "other"]
Over = Literal["mean", "sum"]


def path_faithfulness_rewards(suffixes: Tensor, masked: Tensor, answer: Tensor) -> Tensor:
    """The rewards of one rollout's m steps.

    Args:
        suffixes: [m - 1, n] log-probabilities of n suffixes after each prefix but the whole reasoning.
        masked: [m - 1, n] the same after the masked prefixes.
        answer: [] log-probability of the reference after the whole reasoning.

    Returns:
        [m]; NaN where any of a step's numbers is, and for a step without suffixes.
    """
    gains = suffixes - masked
    if gains.shape[1:] == (0,):
        best = gains.new_full((gains.shape[0],), float("nan"))
    else:
        best = gains.amax(1)  # propagates NaN
    return torch.cat([best, answer.reshape(1).to(best.dtype)])


def placeholder(tokenizer: Any) -> int:
    """The token that stands for what is masked: the tokenizer's mask, unknown, pad or end token, the first there is."""
    for name in ("mask_token_id", "unk_token_id", "pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return int(getattr(tokenizer, name))
    raise ConfigError(
        "this tokenizer has no mask, unknown, pad or end token to mask a prefix with; use baseline='empty'"
    )


@checked
class PathFaithfulness(Bound):
    """Signal: path faithfulness of every step, against one gold chain a question.

    Gives `<name>.steps`, one value a step in nats, and for the log `<name>.gold`, log pi(y* | q, gold chain), and `<name>.survived`, the
    share of well-formed candidates. Rows without steps (a broken layout), rows whose question has no gold chain and, with `unless`,
    rows of solved groups are masked. A row without a reference is NaN.

    Args:
        chains: where gold chains come from, `SynthesisedChains` or `ChainColumn`.
        layout: of the completions.
        reference: the data column with the answer; of several the first.
        steps: the segmentation of the reasoning, `segment.reasoning.EqualPieces`.
        pieces: the gold chain is cut in at most so many.
        baseline: what a prefix is compared with: "masked" = placeholder tokens, "empty" = the question alone, "other" = as many pieces of the
            next row that is about another question (all of them where it has fewer).
        suffix_reduction, answer_reduction: "mean" or "sum" over tokens.
        temperature: divides the logits.
        unless: an earlier source; groups in which it reaches `threshold` in a well-formed row need no process reward.
        threshold: see `unless`.
    """

    scope = "group"
    roles = ("policy",)

    def __init__(
        self,
        *,
        chains: ChainSource,
        layout: ChainLayout,
        reference: str = "answer",
        steps: str = "steps",
        pieces: int = 5,
        baseline: Baseline = "masked",
        suffix_reduction: Over = "sum",
        answer_reduction: Over = "mean",
        temperature: float = 1.0,
        unless: str | None = None,
        threshold: float = 0.99,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("baseline", baseline, ("masked", "empty", "other")),
            ("suffix_reduction", suffix_reduction, ("mean", "sum")),
            ("answer_reduction", answer_reduction, ("mean", "sum")),
        ):
            if value not in known:
                raise ConfigError(f"{name}={value!r}: use {' or '.join(known)}")
        self.chains, self.layout, self.reference, self.steps, self.pieces = chains, layout, reference, steps, pieces
        self.baseline, self.over = baseline, {"suffix": suffix_reduction, "answer": answer_reduction}
        self.temperature, self.unless, self.threshold = temperature, unless, threshold
        self.needs = chains.needs
        self.level = {"steps": steps, "gold": "sequence", "survived": "sequence"}

    def __repr__(self) -> str:
        return (
            f"PathFaithfulness({self.chains!r}, baseline={self.baseline!r}, suffix={self.over['suffix']!r}, "
            f"answer={self.over['answer']!r}, unless={self.unless!r})"
        )

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> dict[str, Rewards]:
        rollouts = rollouts.to("cpu")  # indices of rows and steps are worked with one by one
        spans = rollouts.segment(self.steps)
        asked = spans.mask.any(1) & ~self._solved(rollouts, spans, scores)
        missing = [not references_of(cell) for cell in rollouts.column(self.reference)]
        rows = [row for row in asked.nonzero()[:, 0].tolist() if not missing[row]]
        golds = self._golds(rollouts, rows)
        reasons = {row: f"no reference in column {self.reference!r}" for row, gone in enumerate(missing) if gone}
        values = torch.zeros(spans.mask.shape, dtype=torch.float64)
        scored = {row: gold for row, gold in golds.items() if isinstance(gold, Chain)}
        if self.baseline == "other":
            alone = self._without_company(rollouts, spans, scored)
            reasons |= {row: "no other question in this batch has reasoning to compare with" for row in alone}
        for row, found in self._scored(
            rollouts, spans, {row: gold for row, gold in scored.items() if row not in reasons}
        ).items():
            values[row, spans.mask[row]] = found
            if not bool(torch.isfinite(found).all()):
                reasons[row] = "the model gave no finite log-probability"
        for row in reasons:
            values[row] = float("nan")
        applies = torch.zeros(len(rollouts), dtype=torch.bool)
        applies[[*scored, *(row for row in asked.nonzero()[:, 0].tolist() if missing[row])]] = True
        mask = spans.mask & applies[:, None]
        why: Reasons = {
            (row, span): text for row, text in reasons.items() for span in mask[row].nonzero()[:, 0].tolist()
        }
        steps = Rewards(torch.where(mask, values, 0.0).float(), replace(spans, mask=mask), why)
        numbers = {
            "gold": {r: c.logprob for r, c in scored.items()},
            "survived": {r: c.survived for r, c in scored.items()},
        }
        return {"steps": steps, **{name: _sparse(column, rollouts) for name, column in numbers.items()}}

    # -- details ---------------------------------------------------------------------------------------------------------

    def _solved(self, rollouts: Rollouts, spans: Spans, scores: Scores | None) -> Tensor:
        """[B] bool: rows of groups with a right rollout."""
        if self.unless is None or scores is None:
            return torch.zeros(len(rollouts), dtype=torch.bool)
        right = (scores[self.unless].values[:, 0].cpu() >= self.threshold) & spans.mask.any(1) & scores.keep.cpu()
        return torch.isin(rollouts.groups.cpu(), rollouts.groups.cpu()[right])

    def _golds(self, rollouts: Rollouts, rows: Sequence[int]) -> dict[int, Chain | str]:
        """The gold chain of each row: one a group."""
        groups = rollouts.groups.tolist()
        first: dict[int, int] = {}
        for row in rows:
            first.setdefault(groups[row], row)
        if not first:
            return {}
        found = self.chains(self.model("policy"), rollouts, list(first.values()))
        by_group = dict(zip(first, found, strict=True))
        return {row: by_group[groups[row]] for row in rows}

    @staticmethod
    def _company(rollouts: Rollouts, spans: Spans, row: int) -> int | None:
        """The next row (after the last comes the first) that is about another question and has reasoning."""
        groups, has = rollouts.groups.cpu(), spans.mask.any(1).cpu()
        fit = (has & (groups != groups[row])).nonzero()[:, 0].tolist()
        return next((other for other in fit if other > row), fit[0] if fit else None)

    def _without_company(self, rollouts: Rollouts, spans: Spans, rows: Iterable[int]) -> list[int]:
        """Rows of more than one step in a batch of one question."""
        steps = spans.mask.sum(1).tolist()
        return [row for row in rows if steps[row] > 1 and self._company(rollouts, spans, row) is None]

    def _scored(self, rollouts: Rollouts, spans: Spans, golds: dict[int, Chain]) -> dict[int, Tensor]:
        """{row: [m] float64 rewards}. Of several ranks each scores a share of the rows."""
        from guerdon.lm.ranks import shared_work

        rows = list(golds)

        def work(share: Sequence[int], rank: int) -> list[Tensor]:
            found = self._scored_here(rollouts, spans, {row: golds[row] for row in share})
            return [found[row] for row in share]

        return dict(zip(rows, shared_work(rows, work), strict=True))

    def _scored_here(self, rollouts: Rollouts, spans: Spans, golds: dict[int, Chain]) -> dict[int, Tensor]:
        from guerdon.lm.scorer import SpanScorer

        if not golds:
            return {}
        model = self.model("policy")
        contexts: list[Tensor] = []
        targets: list[Tensor] = []
        shapes: list[tuple[int, int, int]] = []  # row, m - 1, n
        for row, gold in golds.items():
            before, pieces = rollout_pieces(rollouts, spans, row, model.tokenizer)
            suffixes = [gold.ids[start:] for start, _ in equal_pieces(len(gold.ids), self.pieces)]
            prefixes = [torch.cat([before, *pieces[: i + 1]]) for i in range(len(pieces))]
            stands_in = self._stand_in(rollouts, spans, row, pieces, model.tokenizer)
            bases = [torch.cat([before, *stands_in[: i + 1]]) for i in range(len(pieces) - 1)]
            for context in [*prefixes[:-1], *bases]:
                contexts += [context] * len(suffixes)
                targets += suffixes
            contexts.append(torch.cat([prefixes[-1], self._text(self.layout.bridge, model.tokenizer)]))
            targets.append(self._text(references_of(rollouts.column(self.reference)[row])[0].strip(), model.tokenizer))
            shapes.append((row, len(prefixes) - 1, len(suffixes)))
        lengths = torch.tensor([len(target) for target in targets])
        wanted = [torch.arange(len(c), len(c) + len(t)) for c, t in zip(contexts, targets, strict=True)]
        sequences = [torch.cat(pair) for pair in zip(contexts, targets, strict=True)]
        values, _ = SpanScorer(model).score_positions(sequences, wanted, temperature=self.temperature)
        sums = values.detach().cpu().double().sum(1)
        reduced = {"sum": sums, "mean": sums / lengths}
        suffix, answer = reduced[self.over["suffix"]], reduced[self.over["answer"]]
        found, at = {}, 0
        for row, steps, n in shapes:
            size = steps * n
            own = suffix[at : at + size].reshape(steps, n)
            base = suffix[at + size : at + 2 * size].reshape(steps, n)
            found[row] = path_faithfulness_rewards(own, base, answer[at + 2 * size])
            at += 2 * size + 1
        return found

    def _stand_in(
        self, rollouts: Rollouts, spans: Spans, row: int, pieces: Sequence[Tensor], tokenizer: Any
    ) -> list[Tensor]:
        """Ids that take the place of a row's pieces in what it is compared with."""
        if self.baseline == "masked":
            return [torch.full_like(piece, placeholder(tokenizer)) for piece in pieces]
        other = self._company(rollouts, spans, row) if self.baseline == "other" else None
        return [] if other is None else rollout_pieces(rollouts, spans, other, tokenizer)[1]

    @staticmethod
    def _text(text: str, tokenizer: Any) -> Tensor:
        from guerdon.lm.encode import encode_continuation

        return encode_continuation(tokenizer, text)


def rollout_pieces(rollouts: Rollouts, spans: Spans, row: int, tokenizer: Any) -> tuple[Tensor, list[Tensor]]:
    """Ids of everything before a row's reasoning (question, opening tag), and of each of its steps, as sampled.

    Rows that are texts only are cut by characters and tokenised piece by piece.
    """
    from guerdon.lm.encode import encode_continuation, encode_prompt

    prompt = encode_prompt(tokenizer, prompt_of(rollouts, row))
    bounds = spans.select([row]).to_lists()[0]
    if spans.unit == "token" and rollouts.completion_ids is not None:
        ids = rollouts.completion_ids[row].cpu()
        head = ids[: bounds[0][0]][rollouts.mask[row][: bounds[0][0]].cpu()]
        return torch.cat([prompt, head]), [ids[start : end + 1] for start, end in bounds]
    text = rollouts.completions[row]
    head = encode_continuation(tokenizer, text[: bounds[0][0]])
    return torch.cat([prompt, head]), [encode_continuation(tokenizer, text[start : end + 1]) for start, end in bounds]


def _sparse(column: dict[int, float], rollouts: Rollouts) -> Rewards:
    """One value in some rows; the others do not apply."""
    values, mask = torch.zeros(len(rollouts)), torch.zeros(len(rollouts), 1, dtype=torch.bool)
    for row, value in column.items():
        values[row], mask[row] = value, True
    rewards = Rewards.sequence(values, rollouts)
    return replace(rewards, spans=replace(rewards.spans, mask=mask))
