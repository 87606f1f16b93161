"""The endogenous reward: the reward a language model was, in effect, trained for, read off its logits (arXiv 2506.23235).

Next-token training solves a maximum-entropy inverse reinforcement problem whose Q function is the logits f. Turned round, the soft
Bellman equation gives every token's reward under a FROZEN model, from one forward pass over prompt and response:

    V(s) = alpha log sum_a exp(f(s, a) / alpha)
    r_h  = f(s_h, a_h) - gamma V(s_{h+1})  =  alpha log pi(a_h | s_h) + V(s_h) - gamma V(s_{h+1}),     V = 0 after the last token

With gamma = 1 the sum telescopes to alpha log pi(y | x) + V(s_1): responses of one prompt are ordered by their log-likelihood. Adding a
number to all logits of a state changes token rewards and not that order: token values mean something under one checkpoint only, and sums
of different prompts do not compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from guerdon.errors import ConfigError
from guerdon.lm.vocabulary import VocabularyCheck
from guerdon.options import checked
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.likelihood.reference import Bound, prompt_of
from guerdon.spans import Spans

Terminal = Literal["auto", "zero", "bootstrap"]
EMPTY = "the policy wrote nothing"


def soft_value(logits: Tensor, alpha: float = 1.0) -> Tensor:
    """V = alpha logsumexp(logits / alpha) over the last dimension: [..., V] to [...]. The division is inside the exponential."""
    return alpha * (logits / alpha).logsumexp(-1)


def soft_bellman_rewards(
    chosen: Tensor, values: Tensor, mask: Tensor, final: Tensor | None = None, *, gamma: float = 1.0
) -> Tensor:
    """r_h = f(s_h, a_h) - gamma V(s_{h+1}).

    Args:
        chosen: [B, T] the logit of each response token in the row before it.
        values: [B, T] V of that row.
        mask: [B, T] bool, tokens of the response, no holes.
        final: [B] V after the last token; 0 where the episode ends there. None = 0.
        gamma: discount.

    Returns:
        [B, T], 0 outside the mask.
    """
    inside = mask.bool()
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    more = torch.cat([inside[:, 1:], torch.zeros_like(inside[:, :1])], 1)
    last = torch.zeros_like(chosen) if final is None else final[:, None].to(chosen).expand_as(chosen)
    return torch.where(inside, chosen - gamma * torch.where(more, following, last), 0.0)


def preference_probability(reward_a: Tensor, reward_b: Tensor) -> Tensor:
    """P(a is preferred to b) = sigmoid(r(a) - r(b))."""
    return torch.sigmoid(reward_a - reward_b)


class SoftBellman(NamedTuple):
    """What one forward pass gives for N responses of up to T tokens, alpha applied, in float32 on the CPU.

    chosen, values: [N, T] logits of the tokens and V of the rows before them. final: [N] V of the row AT the last token. mask: [N, T].
    """

    chosen: Tensor
    values: Tensor
    final: Tensor
    mask: Tensor

    @property
    def log_likelihood(self) -> Tensor:
        """[N] alpha times the sum of log-probabilities."""
        return torch.where(self.mask, self.chosen - self.values, 0.0).double().sum(1).float()

    @property
    def initial(self) -> Tensor:
        """[N] V(s_1); 0 for an empty response."""
        return self.values[:, 0] * self.mask[:, 0] if self.mask.shape[1] else torch.zeros(len(self.mask))


def read_soft_bellman(
    model: Any, prompts: Sequence[Tensor], responses: Sequence[Tensor], alpha: float = 1.0
) -> SoftBellman:
    """Logits and soft values of responses after their prompts, in micro-batches; log-sum-exps in float32.

    Args:
        model: a `guerdon.lm.LocalModel`; logits are those that feed its softmax (caps and scales applied).
        prompts, responses: N id tensors each. An empty prompt with a response is refused: its first token has no state.
    """
    from guerdon.lm.shared import SharedForward

    live = [n for n, response in enumerate(responses) if len(response)]
    for n in live:
        if not len(prompts[n]):
            raise ConfigError("an empty prompt gives the first token no state: put a begin-of-sequence token in front")
    sequences = [torch.cat([prompts[n], responses[n]]) for n in live]
    wanted = [torch.arange(len(prompts[n]) - 1, len(prompts[n]) + len(responses[n])) for n in live]
    found: dict[int, tuple[Tensor, Tensor]] = {}
    with model.reading():
        forward = SharedForward(model.model, max_tokens=model.max_tokens)
        head = type(model.head)(forward.parts, model.head.chunk)
        for batch, states in forward.states(sequences, wanted):
            rows = [live[i] for i in batch]
            # The row at the last token chooses nothing: token 0 stands in, and its logit is not used.
            target = torch.cat([torch.cat([responses[n], responses[n].new_zeros(1)]) for n in rows])
            chosen, values = head(states, _read_both, target, temperature=alpha)
            sizes = [len(responses[n]) + 1 for n in rows]
            both = zip(chosen.cpu().split(sizes), values.cpu().split(sizes), strict=True)
            found |= dict(zip(rows, both, strict=True))
    none = (torch.zeros(1), torch.zeros(1))
    columns = [found.get(n, none) for n in range(len(responses))]
    lengths = torch.tensor([len(response) for response in responses], dtype=torch.long)
    if not columns:
        return SoftBellman(torch.zeros(0, 0), torch.zeros(0, 0), torch.zeros(0), torch.zeros(0, 0, dtype=torch.bool))
    chosen = alpha * pad_sequence([c for c, _ in columns], batch_first=True)[:, :-1]
    values = alpha * pad_sequence([v for _, v in columns], batch_first=True)
    final = values.gather(1, lengths[:, None])[:, 0]
    mask = torch.arange(chosen.shape[1])[None] < lengths[:, None]
    return SoftBellman(chosen, values[:, :-1], final, mask)


def _read_both(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """[C, V] logits that are divided by alpha, [C] -> each target's logit and each row's soft value, both over alpha."""
    return logits.gather(-1, target[:, None])[:, 0], soft_value(logits)


@checked
class EndogenousReward(Bound):
    """Signal: soft-Bellman rewards of completions under a frozen model.

    A token's reward stands on the token; with level="sequence" a row gets their sum. Texts from a file get the end-of-sequence token,
    once, and token rewards stand on characters. Tool output is context and earns nothing. An empty completion gets 0, with the
    reason. Under an endpoint, which gives log-probabilities only, just level="sequence" without `initial` can be had.

    Args:
        level: "token" or "sequence".
        alpha: entropy coefficient; 1 for models trained by likelihood.
        gamma: discount.
        terminal: V after the last token. "auto" = 0 where the completion ended, V of the last row where it was cut; "zero";
            "bootstrap" = always the last row's. The official identity has 0 at an end.
        mean: level="sequence": divide by the number of tokens. Sums favour short and bland responses.
        initial: include V(s_1). It is the same for all responses of a prompt and arbitrary between prompts; without it, and with
            gamma = 1 and an end, a sequence gets alpha times its log-likelihood.
        instruction: a criterion, put before the prompt: as (or before) the system message of a chat, as a first paragraph of a text.
        role: of the frozen model. Never the policy itself while it trains: the reward would chase it.
        retokenize: the frozen model has another vocabulary than the policy: it reads the text, and what each of its tokens earns
            stands on the policy's token that holds its last character. Sums are the model's own; `mean` divides by its tokens.
    """

    scope = "row"

    def __init__(
        self,
        *,
        level: Literal["token", "sequence"] = "sequence",
        alpha: float = 1.0,
        gamma: float = 1.0,
        terminal: Terminal = "auto",
        mean: bool = False,
        initial: bool = True,
        instruction: str | None = None,
        role: str = "reference",
        retokenize: bool = False,
    ) -> None:
        super().__init__()
        if level not in ("token", "sequence") or terminal not in ("auto", "zero", "bootstrap"):
            raise ConfigError(f"level={level!r}: token or sequence; terminal={terminal!r}: auto, zero or bootstrap")
        if not alpha > 0 or not 0 <= gamma <= 1:
            raise ConfigError(f"alpha={alpha} must be positive and gamma={gamma} in [0, 1]")
        if level == "token" and (mean or not initial):
            raise ConfigError("mean and initial are about sums: with level='token' leave them as they are")
        self.level, self.alpha, self.gamma, self.terminal = level, alpha, gamma, terminal
        self.mean, self.initial, self.instruction, self.role = mean, initial, instruction, role
        self.roles, self.needs = (role,), frozenset({role})
        self.retokenize = retokenize
        self._vocabulary: VocabularyCheck | None = None

    def __repr__(self) -> str:
        usual = {
            "alpha": 1.0,
            "gamma": 1.0,
            "terminal": "auto",
            "mean": False,
            "initial": True,
            "instruction": None,
            "retokenize": False,
        }
        shown = [f"level={self.level!r}"] + [
            f"{k}={getattr(self, k)!r}" for k, v in usual.items() if getattr(self, k) != v
        ]
        return f"EndogenousReward({', '.join(shown)}, role={self.role!r})"

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> Rewards:
        model = self.model(self.role)
        sampled = rollouts
        rollouts = self._readable(sampled, model)
        prompts, responses, ended = self._ids(rollouts, model)
        reasons = {row: EMPTY for row in range(len(rollouts)) if not len(self._own(rollouts, row, model)[0])}
        for row in reasons:
            responses[row] = responses[row][:0]
        if self._remote(model):
            return self._from_endpoint(model, sampled, prompts, responses, reasons)
        read = read_soft_bellman(model, prompts, responses, self.alpha)
        bootstrap = ~ended if self.terminal == "auto" else torch.full_like(ended, self.terminal == "bootstrap")
        rewards = soft_bellman_rewards(
            read.chosen, read.values, read.mask, torch.where(bootstrap, read.final, 0.0), gamma=self.gamma
        )
        counted = read.mask
        if sampled is not rollouts:
            rewards, counted = self._onto_tokens(sampled, rewards, responses, model)
        elif rollouts.completion_ids is not None:
            counted = _sampled(rollouts, responses, counted)
            rewards = torch.where(counted, rewards, 0.0)
        if self.level == "token" and sampled is not rollouts:
            return Rewards(rewards, Spans.tokens(counted), {})
        if self.level == "token":
            return self._tokens(rollouts, rewards, responses, model, reasons)
        total = rewards.double().sum(1)
        if not self.initial:
            total = total - read.initial
        if self.mean:
            total = total / (counted if sampled is rollouts else read.mask).sum(1).clamp(min=1)
        return Rewards.sequence(total.float(), sampled, reasons)

    # -- details ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def _remote(model: Any) -> bool:
        from guerdon.lm.endpoint import Endpoint

        return isinstance(model, Endpoint)

    def _readable(self, rollouts: Rollouts, model: Any) -> Rollouts:
        """The rollouts as this model can read them: ids of its own vocabulary, or the texts."""
        if rollouts.completion_ids is None:
            return rollouts
        if self.retokenize:
            texts = Rollouts.from_texts(rollouts.prompts, rollouts.completions, rollouts.columns)
            return replace(texts, finished=rollouts.finished)
        if self._vocabulary is None or self._vocabulary.tokenizer is not model.tokenizer:
            inner = getattr(model, "model", None)
            self._vocabulary = VocabularyCheck(model.tokenizer, inner, f"the model {self.role!r}")
        self._vocabulary.require_same(rollouts, "retokenize=True lets it read the text instead")
        return rollouts

    def _onto_tokens(
        self, rollouts: Rollouts, rewards: Tensor, responses: Sequence[Tensor], model: Any
    ) -> tuple[Tensor, Tensor]:
        """Rewards [B, T] of another model's tokens on the policy's, and [B, T] bool, the tokens the policy sampled."""
        from guerdon.lm.encode import continuation_offsets

        if rollouts.offsets is None or rollouts.policy_mask is None:
            raise ConfigError(
                "retokenize=True needs rollouts with offsets: make them with guerdon.lm.decode_offsets_batch"
            )
        grid = torch.zeros(rollouts.mask.shape)
        for row, ids in enumerate(responses):
            places = rollouts.mask[row].nonzero()[:, 0].cpu()
            if not len(ids) or not len(places):
                continue
            ends = rollouts.offsets[row, :, 1].cpu()[places].cummax(0).values
            _, offsets = continuation_offsets(model.tokenizer, ids)
            last = (offsets[:, 1] - 1).clamp(min=0)
            at = torch.searchsorted(ends, last, right=True)
            at = torch.where(offsets[:, 1] > offsets[:, 0], at, len(places) - 1).clamp(max=len(places) - 1)
            grid[row].index_add_(0, places[at], rewards[row, : len(ids)].float())
        sampled = (rollouts.mask & rollouts.policy_mask).cpu()
        return torch.where(sampled, grid, 0.0), sampled

    def _own(self, rollouts: Rollouts, row: int, model: Any) -> tuple[Tensor, bool]:
        """A completion's own ids, and whether these are known (a text from a file is put into ids here)."""
        from guerdon.lm.encode import encode_continuation

        if rollouts.completion_ids is None:
            return encode_continuation(model.tokenizer, rollouts.completions[row]), False
        return rollouts.completion_ids[row][rollouts.mask[row]].cpu(), True

    def _ids(self, rollouts: Rollouts, model: Any) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Ids of prompts and responses, and which responses ended by themselves [B]."""
        from guerdon.lm.local import end_ids
        from guerdon.signals.likelihood.relative_perplexity import encode_context

        ends = end_ids(getattr(model, "model", None), model.tokenizer)
        prompts, responses, ended = [], [], []
        for row in range(len(rollouts)):
            prompt = (
                prompt_of(rollouts, row)
                if self.instruction is None
                else with_instruction(rollouts.prompts[row], self.instruction)
            )
            prompts.append(encode_context(model.tokenizer, prompt))
            own, known = self._own(rollouts, row, model)
            finished = not known if rollouts.finished is None else bool(rollouts.finished[row])
            closed = bool(len(own)) and int(own[-1]) in ends
            if finished and not known and not closed and ends:
                own = torch.cat([own, torch.tensor(ends[-1:])])
            responses.append(own)
            ended.append(finished or closed)
        return prompts, responses, torch.tensor(ended, dtype=torch.bool)

    def _tokens(
        self, rollouts: Rollouts, rewards: Tensor, responses: list[Tensor], model: Any, reasons: dict[int, str]
    ) -> Rewards:
        """Rewards on the rollouts' own tokens or, for texts, on the characters of the tokens they were cut into."""
        from guerdon.lm.encode import continuation_offsets

        cells = {(row, 0): why for row, why in reasons.items()}
        if rollouts.completion_ids is not None:
            grid = torch.zeros(rollouts.mask.shape)
            grid[rollouts.mask.cpu()] = rewards[torch.arange(rewards.shape[1])[None] < rollouts.lengths.cpu()[:, None]]
            spans = Spans.tokens(rollouts.mask.cpu() & rollouts.policy_mask.cpu())  # type: ignore[union-attr]
            return Rewards(grid, spans, {})
        pairs = []
        for row, ids in enumerate(responses):
            _, offsets = continuation_offsets(model.tokenizer, ids)
            length = len(rollouts.completions[row])
            places = [(min(start, length), min(end, length) - 1) for start, end in offsets.tolist()]
            pairs.append([(length, length - 1) if end < start else (start, end) for start, end in places] or [(0, -1)])
        spans = Spans.from_lists(pairs, unit="char", name="token")
        values = torch.zeros(spans.start.shape)
        values[:, : rewards.shape[1]] = rewards[:, : spans.start.shape[1]]
        return Rewards(values, spans, cells)

    def _from_endpoint(
        self, model: Any, rollouts: Rollouts, prompts: list[Tensor], responses: list[Tensor], reasons: dict[int, str]
    ) -> Rewards:
        from guerdon.lm.scorer import SpanScorer

        if (
            self.level != "sequence"
            or self.initial
            or self.alpha != 1
            or self.gamma != 1
            or self.terminal == "bootstrap"
        ):
            raise ConfigError(
                "an endpoint gives log-probabilities and no logits: only the sum up to the prompt's constant can be had from it, level='sequence', "
                "initial=False, alpha=1, gamma=1; use a local model for the rest"
            )
        found = SpanScorer(model).score(prompts, responses)
        totals = torch.where(found.mask, found.values, 0.0).double().sum(1)
        if self.mean:
            totals = totals / found.mask.sum(1).clamp(min=1)
        failed = {row: why for row, why in found.reasons.items() if row not in reasons}
        return Rewards.sequence(totals.float(), rollouts, {**reasons, **failed})


def _sampled(rollouts: Rollouts, responses: Sequence[Tensor], mask: Tensor) -> Tensor:
    """[B, T] bool: the response tokens that the policy sampled."""
    assert rollouts.policy_mask is not None
    policy = [rollouts.policy_mask[row][rollouts.mask[row]].cpu() for row in range(len(responses))]
    wide = pad_sequence(policy, batch_first=True) if policy else torch.zeros(0, 0, dtype=torch.bool)
    return mask & torch.nn.functional.pad(wide, (0, mask.shape[1] - wide.shape[1]))


def with_instruction(prompt: Any, instruction: str) -> Any:
    """A prompt with a criterion before it: the system message of a chat (before what stands there), the first paragraph of a text."""
    if isinstance(prompt, str):
        return f"{instruction}\n\n{prompt}"
    messages = [dict(message) for message in prompt]
    if messages and messages[0].get("role") == "system":
        messages[0]["content"] = f"{instruction}\n\n{messages[0]['content']}"
        return messages
    return [{"role": "system", "content": instruction}, *messages]
