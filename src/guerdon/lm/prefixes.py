"""Targets after many beginnings of the same rollouts: what likelihood rewards per step, turn or thought are made of.

    scorer = PrefixScorer(LocalModel("smollm2"))
    scores = scorer.score_prefixes(
        prompts=["What is 2+3?", "What is 2+3?"],         # texts, chats or ids; rollouts of one prompt share it by themselves
        rollouts=["Two and three. So 5.", "It is 5."],    # texts or ids
        cuts=[[0, 7, 9], [0, 4]],                         # tokens of the rollout that are kept, for each score
        targets=" 5",                                     # one for all, one a rollout, or one a cut
    )
    scores.sum()                  # [5] log p(target | prompt, rollout[:cut]), cuts of rollout 0 first
    scores.by_rollout(scores.sum())                       # [2, 3], NaN where a rollout has fewer cuts
    scores.path                   # "packed", "cached", or "padded" for models that cannot share prefixes

The context of a score is ids: prompt, rollout[:cut], bridge. Nothing is tokenised again, and the target is tokenised by
itself (`scorer`), so it has the same tokens after every cut. Everything else is `SpanScorer.score`, on a forward that runs
the prompt once a group and each rollout once, whatever the number of cuts (`shared`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from guerdon.errors import ConfigError
from guerdon.lm.encode import Prompt, Text, encode_continuation, encode_prompt
from guerdon.lm.endpoint import Endpoint
from guerdon.lm.local import LocalModel
from guerdon.lm.scorer import Gather, SpanScorer, SpanScores
from guerdon.lm.shared import Share, SharedForward
from guerdon.rollouts import Rollouts


@dataclass(frozen=True)
class PrefixScores(SpanScores):
    """`SpanScores` of M (rollout, cut) pairs, rollouts in order, and the cuts of each in the order given.

    Attributes:
        rollout: [M] int64, which rollout.
        cut: [M] int64, how many of its tokens the target was scored after.
        path: how the forward ran: "packed", "cached", "padded" or "loop" (`guerdon.lm.shared`); "endpoint": elsewhere.
        why: why it could not share prefixes, where it could not.
    """

    rollout: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    cut: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    path: str = "padded"
    why: str = ""
    size: int = 0

    def by_rollout(self, values: Tensor) -> Tensor:
        """[M] -> [N, K]: one row a rollout, one column a cut; NaN where a rollout has fewer than K cuts."""
        counts = torch.bincount(self.rollout, minlength=self.size)
        place = torch.arange(len(self.rollout)) - (counts.cumsum(0) - counts)[self.rollout]
        table = values.new_full((self.size, int(counts.max()) if self.size else 0), float("nan"))
        return table.index_put((self.rollout.to(values.device), place.to(values.device)), values)


class PrefixScorer(SpanScorer):
    """A span scorer that forwards common beginnings once.

    Args:
        model, tokenizer, max_tokens, left_pad: as for `SpanScorer`.
        share: "auto" = the cheapest path this model can take; "packed", "cached" or "padded" to force one.
    """

    def __init__(
        self,
        model: LocalModel | Endpoint | nn.Module | str,
        tokenizer: Any = None,
        *,
        max_tokens: int | None = None,
        left_pad: bool = False,
        share: Share = "auto",
    ) -> None:
        super().__init__(model, tokenizer, max_tokens=max_tokens, left_pad=left_pad, share=share)

    def score_prefixes(
        self,
        prompts: Sequence[Prompt],
        rollouts: Sequence[Text],
        cuts: Sequence[Sequence[int] | Tensor],
        targets: Text | Sequence[Text | Sequence[Text]],
        *,
        bridge: Text = "",
        gather: Gather = "target",
        token_ids: Sequence[int] | Tensor | None = None,
        raw: bool = False,
        grad: bool = False,
        temperature: float = 1.0,
    ) -> PrefixScores:
        """Score targets after beginnings of rollouts.

        Args:
            prompts: N prompts, one a rollout. "" = without the question.
            rollouts: N texts or id tensors; ids are kept as they are.
            cuts: N sequences of lengths in tokens of the rollout, each in [0, T_n], in any order, equal ones allowed.
            targets: a text or id tensor for all; or N items, each a text or id tensor for all cuts of that rollout, or a
                list of one text or id tensor for each of its cuts.
            bridge: put between the cut and the target ("\\n<answer>"), part of the context.
            gather, token_ids, raw, grad, temperature: as for `SpanScorer.score`; token_ids [K], or [M, K] for M scores.

        Raises:
            ConfigError: lengths that do not fit together, a cut outside its rollout.
        """
        if not len(prompts) == len(rollouts) == len(cuts):
            raise ConfigError(
                f"{len(prompts)} prompts, {len(rollouts)} rollouts and {len(cuts)} lists of cuts: give as many"
            )
        begin = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        trunks = [encode_continuation(self.tokenizer, rollout) for rollout in rollouts]
        lengths = [[int(cut) for cut in row] for row in cuts]
        for n, (row, trunk) in enumerate(zip(lengths, trunks, strict=True)):
            if outside := [cut for cut in row if not 0 <= cut <= len(trunk)]:
                raise ConfigError(f"cut {outside[0]} of rollout {n}: it has {len(trunk)} tokens")
        between = encode_continuation(self.tokenizer, bridge)
        contexts = [
            torch.cat([first, trunk[:cut], between])
            for first, trunk, row in zip(begin, trunks, lengths, strict=True)
            for cut in row
        ]
        scores = self.score(
            contexts, self._targets(targets, lengths), gather=gather, token_ids=token_ids, raw=raw, grad=grad,
            temperature=temperature,
        )  # fmt: skip
        path, why = ("endpoint", "")
        if self.endpoint is None and isinstance(self.forward, SharedForward):
            path, why = self.forward.ran, self.forward.why
        return PrefixScores(
            **{item.name: getattr(scores, item.name) for item in fields(SpanScores)},
            rollout=torch.tensor([n for n, row in enumerate(lengths) for _ in row], dtype=torch.long),
            cut=torch.tensor([cut for row in lengths for cut in row], dtype=torch.long),
            path=path,
            why=why,
            size=len(rollouts),
        )

    def score_rollouts(
        self, rollouts: Rollouts, cuts: Sequence[Sequence[int] | Tensor], targets: Any, **options: Any
    ) -> PrefixScores:
        """`score_prefixes` of a batch: ids where the batch has them (padding on either side left out), else texts.

        Args:
            rollouts: B rollouts.
            cuts: B sequences of lengths, in real tokens of the completion.
            targets, options: as for `score_prefixes`.
        """
        prompts: list[Any] = list(rollouts.prompts)
        if rollouts.prompt_ids is not None and rollouts.prompt_mask is not None:
            prompts = _real(rollouts.prompt_ids, rollouts.prompt_mask)
        trunks: list[Any] = list(rollouts.completions)
        if rollouts.completion_ids is not None and rollouts.completion_mask is not None:
            trunks = _real(rollouts.completion_ids, rollouts.completion_mask)
        return self.score_prefixes(prompts, trunks, cuts, targets, **options)

    def _targets(self, targets: Any, cuts: list[list[int]]) -> list[Tensor]:
        """One id tensor a cut; each text is tokenised once."""
        known: dict[str, Tensor] = {}

        def ids(target: Text) -> Tensor:
            if not isinstance(target, str):
                return encode_continuation(self.tokenizer, target)
            if target not in known:
                known[target] = encode_continuation(self.tokenizer, target)
            return known[target]

        if isinstance(targets, str | Tensor):
            return [ids(targets) for row in cuts for _ in row]
        if len(targets) != len(cuts):
            raise ConfigError(
                f"{len(targets)} targets for {len(cuts)} rollouts: give as many, or one text or tensor for all"
            )
        found = []
        for n, (given, row) in enumerate(zip(targets, cuts, strict=True)):
            if isinstance(given, str | Tensor):
                found += [ids(given)] * len(row)
                continue
            if len(given) != len(row):
                raise ConfigError(f"rollout {n} has {len(given)} targets for {len(row)} cuts")
            if any(isinstance(item, int) for item in given):
                raise ConfigError(f"the targets of rollout {n} are numbers: give ids as a tensor")
            found += [ids(item) for item in given]
        return found


def _real(ids: Tensor, mask: Tensor) -> list[Tensor]:
    return [row[keep.bool()].cpu() for row, keep in zip(ids, mask, strict=True)]
