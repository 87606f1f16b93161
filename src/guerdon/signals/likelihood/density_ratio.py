"""How much likelier a strong model finds a response than a weak one: the density ratio as a reward (CDR / Dr. SoW, arXiv 2411.02481).

    r(x, y) = log pi_strong(y | x) - log pi_weak(y | x)          sums over the response's tokens, each model's own

Nothing is trained and nothing is sampled: two forward passes. The two need no training relation; what counts is how much better aligned the
strong one is. Both read the same TEXT, formatted with the strong model's chat template, in their own tokens; the response is what shares
a character with it or with the end of turn the template appends. Offsets are exact: no begin-of-sequence token can shift them.

The sum grows with length where the strong model likes length; `reduction="mean"` divides by the strong model's tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.errors import CapabilityError, ConfigError
from guerdon.lm.encode import render_chat
from guerdon.options import checked
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.held import Held
from guerdon.signals.likelihood.customise import Customisation
from guerdon.signals.placing import place

Reduction = Literal["sum", "mean"]
ROLES = ("strong", "weak")


# --- pure functions --------------------------------------------------------------------------------------------------


def density_ratio(
    strong: Tensor, strong_keep: Tensor, weak: Tensor, weak_keep: Tensor, reduction: Reduction = "sum"
) -> Tensor:
    """Sum of the kept strong log-probabilities minus that of the kept weak ones.

    Args:
        strong: [..., T] log-probabilities under the strong model; strong_keep: [..., T] bool, its response tokens.
        weak: [..., U] under the weak model; weak_keep: [..., U] bool. Tokenisers may differ, and so may T and U.
        reduction: "mean" divides by the number of kept STRONG tokens, at least 1.

    Returns:
        [...] in nats (a token, for "mean"). NaN where a kept token has no number.
    """
    if reduction not in ("sum", "mean"):
        raise ConfigError(f"reduction={reduction!r}: use 'sum' or 'mean'")
    total = torch.where(strong_keep, strong, 0.0).sum(-1) - torch.where(weak_keep, weak, 0.0).sum(-1)
    return total / strong_keep.sum(-1).clamp(min=1) if reduction == "mean" else total


# --- texts -----------------------------------------------------------------------------------------------------------


def formatted(tokenizer: Any, prompt: Any, response: str, end: str = "") -> tuple[str, str]:
    """The text of the prompt, and of the response with the end of turn, as the tokenizer's chat template writes them.

    A text prompt is taken as it is, and the response is followed by `end`. A tokenizer without a template takes texts only.

    Raises:
        ConfigError: chat messages without a template, or a template in which the conversation does not begin with its prompt.
    """
    if isinstance(prompt, str):
        return prompt, response + end
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError("the prompt is a list of chat messages and the strong model has no chat template: give texts")
    messages = [dict(message) for message in prompt]
    before = render_chat(tokenizer, messages, ask=True, owner="the strong model's tokenizer")
    reply = {"role": "assistant", "content": response}
    whole = render_chat(tokenizer, [*messages, reply], owner="the strong model's tokenizer")
    if not whole.startswith(before):
        raise ConfigError(
            "the chat template writes the conversation otherwise with a response than before it, so the response cannot be found: "
            "format the prompts yourself and give texts"
        )
    return before, whole[len(before) :]


def shorten_middle(tokenizer: Any, text: str, limit: int) -> str:
    """The text without its middle where it has more than `limit` tokens: both ends stay. The cut is at token borders."""
    from guerdon.lm.encode import continuation_offsets, encode_continuation

    ids = encode_continuation(tokenizer, text)
    if len(ids) <= limit:
        return text
    _, offsets = continuation_offsets(tokenizer, ids)
    head, tail = (limit + 1) // 2, limit // 2
    end = int(offsets[head - 1, 1]) if head else 0
    start = int(offsets[len(ids) - tail, 0]) if tail else len(text)
    return text[:end] + text[start:]


def response_tokens(tokenizer: Any, before: str, response: str, *, mask_special: bool = False) -> tuple[Tensor, Tensor]:
    """Ids [T] of the joined text, and [T] bool, the tokens that share a character with the response.

    mask_special: leave out special tokens (the end of turn).
    """
    from guerdon.lm.encode import encode_with_target

    found = encode_with_target(tokenizer, before + response, len(before), len(before) + len(response))
    target = found.target
    if mask_special:
        target = target & ~torch.isin(found.ids, torch.tensor(list(tokenizer.all_special_ids), dtype=torch.long))
    return found.ids, target


# --- the signal ------------------------------------------------------------------------------------------------------


@checked
class DensityRatio:
    """Signal: the density ratio of two language models.

    Gives `<name>.ratio`, one value a row, and for the log `<name>.strong` and `<name>.weak` (summed log-probabilities) and
    `<name>.tokens` (the strong model's). A row one of the models gives no finite number for is NaN with the reason.

    Args:
        strong, weak: models: a path, hub id or "smollm2" (loaded when first used), a `LocalModel`, a transformers model is refused;
            a `guerdon.lm.Endpoint`; None = handed over with `bind` in the role "strong" or "weak".
        reduction: "sum" (paper) or "mean" (over the strong model's tokens).
        mask_special: leave special tokens out of the sums.
        customise: criterion and exemplar in both models' prompts; None = the vanilla ratio.
        max_prompt_tokens: longer prompts lose their middle (strong tokens; the same text for both); None = no limit. Responses are never cut.
        end: follows the response after text prompts; "auto" = each model's own end-of-sequence token where the rollout is known to have ended
            by itself, "" = nothing. Chat templates bring their own.
        required: texts a response has to hold; each missing one lowers the reward by `penalty`. (The first published code RAISES it.)
        penalty: in nats.
    """

    scope = "row"
    needs: frozenset[str] = frozenset()
    level: Mapping[str, str] = dict.fromkeys(("ratio", "strong", "weak", "tokens"), "sequence")

    def __init__(
        self,
        strong: Any = None,
        weak: Any = None,
        *,
        reduction: Reduction = "sum",
        mask_special: bool = False,
        customise: Customisation | None = None,
        max_prompt_tokens: int | None = 2048,
        end: str = "auto",
        required: Sequence[str] = (),
        penalty: float = 5000.0,
    ) -> None:
        none = torch.zeros(0)
        density_ratio(none, none > 0, none, none > 0, reduction)  # refuses an unknown name here
        if strong is not None and (strong is weak or (isinstance(strong, str) and strong == weak)):
            raise ConfigError(f"strong and weak are the same model ({strong}): their ratio is 0 for everything")
        self.sources: dict[str, Any] = {"strong": strong, "weak": weak}
        self.roles = tuple(role for role in ROLES if self.sources[role] is None)
        self.reduction, self.mask_special, self.customise = reduction, mask_special, customise
        self.max_prompt_tokens, self.end, self.required, self.penalty = max_prompt_tokens, end, tuple(required), penalty
        self._models: dict[str, Any] = {}
        self._device: torch.device | None = None
        self._dtype: torch.dtype | None = None

    def __repr__(self) -> str:
        shown = ", ".join(f"{role}={_named(self.sources[role])}" for role in ROLES)
        gate = f", required={self.required}" if self.required else ""
        return (
            f"DensityRatio({shown}, {self.reduction!r}, mask_special={self.mask_special}, customise={self.customise!r}, "
            f"max_prompt_tokens={self.max_prompt_tokens}, end={self.end!r}{gate})"
        )

    def bind(self, role: str, instrument: Any) -> None:
        """Take the model of a role that was not given."""
        self._models[role] = instrument

    def held(self) -> list[Held]:
        """Both models, unless an engine brings them."""
        given = {role: getattr(source, "model", source) for role, source in self.sources.items() if source is not None}
        return [Held(source, "causal", None, role) for role, source in given.items()]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> None:
        """Place both models, and a router's, now or when they are loaded; what came loaded keeps its dtype."""
        self._device, self._dtype = torch.device(device), dtype
        loaded = [model for model in (*self.sources.values(), *self._models.values()) if hasattr(model, "tokenizer")]
        router = getattr(getattr(self.customise, "router", None), "model", None)
        for model in [*loaded, *([] if router is None else [router])]:
            place(model, self._device)

    def model(self, role: str) -> Any:
        """The model of a role, loaded when it is first asked for."""
        if role not in self._models:
            source = self.sources[role]
            if source is None:
                raise CapabilityError(
                    f"{self!r} needs the model {role!r}: DensityRatio({role}=...), or bind({role!r}, LocalModel(...))"
                )
            if not hasattr(source, "tokenizer"):
                from guerdon.lm import LocalModel

                source = LocalModel(source, dtype=self._dtype or torch.float32, device=self._device)
            self._models[role] = source
        return self._models[role]

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> dict[str, Rewards]:
        if self.model("strong") is self.model("weak"):
            raise ConfigError("strong and weak are the same model: their ratio is 0 for everything")
        texts = self.texts(rollouts)
        scored: dict[str, tuple[Tensor, Tensor]] = {}
        reasons: dict[int, str] = {}
        for role in ROLES:
            values, keep, why = self._scored(role, texts, rollouts)
            scored[role] = values, keep
            reasons |= {row: f"{role}: {text}" for row, text in why.items()}
        ratio = density_ratio(*scored["strong"], *scored["weak"], self.reduction)
        sums = {role: torch.where(keep, values, 0.0).sum(1) for role, (values, keep) in scored.items()}
        tokens = scored["strong"][1].sum(1).float()
        missing = [sum(text not in response for text in self.required) for response in rollouts.policy_texts]
        ratio = ratio - self.penalty * torch.tensor(missing, dtype=torch.float64)
        columns = {"ratio": ratio, **sums}
        for column in columns.values():
            column[list(reasons)] = float("nan")
        found = {name: Rewards.sequence(column.float(), rollouts, reasons) for name, column in columns.items()}
        return {**found, "tokens": Rewards.sequence(tokens, rollouts)}

    def texts(self, rollouts: Rollouts) -> list[tuple[str, str]]:
        """(prompt, response with its end of turn) of each row, as both models read them."""
        tokenizer = self.model("strong").tokenizer
        prompts: list[Any] = list(rollouts.prompts)
        if self.customise is not None:
            given = rollouts.columns.get(self.customise.column)
            prompts, _ = self.customise(prompts, given)
        known: dict[str, str] = {}
        found = []
        for prompt, response in zip(prompts, rollouts.policy_texts, strict=True):
            before, after = formatted(tokenizer, prompt, response, "" if self.end == "auto" else self.end)
            if self.max_prompt_tokens is not None:
                if before not in known:
                    known[before] = shorten_middle(tokenizer, before, self.max_prompt_tokens)
                before = known[before]
            found.append((before, after))
        return found

    def _ends(self, rollouts: Rollouts) -> list[bool]:
        """Which rows get the model's own end-of-sequence token."""
        ended = rollouts.finished is not None and self.end == "auto"
        return [ended and isinstance(p, str) and bool(rollouts.finished[i]) for i, p in enumerate(rollouts.prompts)]  # type: ignore[index]

    def _scored(
        self, role: str, texts: Sequence[tuple[str, str]], rollouts: Rollouts
    ) -> tuple[Tensor, Tensor, dict[int, str]]:
        """[B, L] float64 log-probabilities of the kept tokens, [B, L] bool where there is one, {row: why one has no number}."""
        from guerdon.lm.scorer import SpanScorer

        model = self.model(role)
        tokenizer = model.tokenizer
        sequences, targets = [], []
        eos = torch.tensor([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [], dtype=torch.long)
        for (before, response), ends in zip(texts, self._ends(rollouts), strict=True):
            ids, target = response_tokens(tokenizer, before, response, mask_special=self.mask_special)
            if ends and not self.mask_special:
                ids, target = torch.cat([ids, eos]), torch.cat([target, torch.ones(len(eos), dtype=torch.bool)])
            sequences.append(ids)
            targets.append(target)
        values, why = SpanScorer(model).score_positions(sequences, targets)
        values = values.detach().cpu().double()
        counts = torch.tensor([int(target.sum()) for target in targets], dtype=torch.long)
        keep = torch.arange(values.shape[1])[None] < counts[:, None]
        broken = (keep & ~torch.isfinite(values)).any(1).nonzero()[:, 0].tolist()
        return values, keep, {row: why.get(row, "no finite log-probability") for row in broken}


def _named(source: Any) -> str:
    if source is None or isinstance(source, str):
        return repr(source)
    name = getattr(getattr(getattr(source, "model", None), "config", None), "_name_or_path", "")
    return f"{type(source).__name__}({name!r})"
