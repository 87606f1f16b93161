"""A scalar reward model as a signal: one score for a whole completion, read at its last token.

The model is a sequence classifier with one label (Bradley-Terry reward models on the hub are of this kind); the score is
its unbounded logit. For decoder models the head is applied here, at the last valid token, because the models' own pooling
looks for the last id that is not padding and picks the wrong place where the pad token is also the end-of-sequence token.

Source: the reward model of PAR (arXiv 2502.18770), whose score is a linear head on the last response token's hidden state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guerdon.errors import CapabilityError, ConfigError
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.learned.prm import (
    encode_prompt,
    evaluating,
    length_batches,
    load_classifier,
    pad_rows,
    rebuild_prm_input,
)


class RewardModel:
    """Signal: a sequence classifier's score of prompt and completion.

    model: hub id or path of a sequence classifier with one label, or a loaded model (then `tokenizer` is needed).
    tokenizer: the reward model's; default: the one beside the model.
    retokenize: the policy's tokenizer is another one, or there are only texts: encode them here. Chat prompts then go
        through the reward model's template, with the completion as the assistant's turn.
    token_budget: padded tokens per forward pass.

    A prompt and completion longer than the model's context give NaN with a reason. Loaded on first use; eval mode, no
    gradients, random state untouched.
    """

    scope = "row"
    level = "sequence"
    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        retokenize: bool = False,
        token_budget: int = 16384,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(model, torch.nn.Module) and tokenizer is None:
            raise ConfigError("a loaded reward model comes without its tokenizer: pass tokenizer=")
        self.source, self.retokenize, self.token_budget = model, retokenize, token_budget
        self._device, self._dtype, self._tokenizer = device, dtype, tokenizer
        self._model: Any = None

    def __repr__(self) -> str:
        return f"RewardModel({self.source if isinstance(self.source, str) else type(self.source).__name__!r})"

    def load(self) -> tuple[Any, Any]:
        """(model, tokenizer), loading them on the first call. Raises ConfigError unless there is one label."""
        if self._model is None:
            model, self._tokenizer = load_classifier(
                self.source, self._tokenizer, "AutoModelForSequenceClassification", self._device, self._dtype
            )
            if model.config.num_labels != 1:
                raise ConfigError(
                    f"{self.source}: a scalar reward model has 1 label, this one {model.config.num_labels}"
                )
            self._model = model
        return self._model, self._tokenizer

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> Rewards:
        model, tokenizer = self.load()
        ids, mask = (tensor.cpu() for tensor in self._input(rollouts, tokenizer))  # rows are chosen here
        limit = getattr(model.config, "max_position_embeddings", None) or ids.shape[1]
        lengths = mask.sum(1)
        fits = (lengths <= limit) & (lengths > 0)
        values = torch.full((len(rollouts),), float("nan"))
        values[fits] = score_rows(model, ids[fits], mask[fits], self.token_budget).to(values.device)
        reasons = {}
        for b in (~fits).nonzero()[:, 0].tolist():
            reasons[b] = f"{int(lengths[b])} tokens do not fit the reward model's context of {limit}"
        for b in (fits.cpu() & ~torch.isfinite(values)).nonzero()[:, 0].tolist():
            values[b] = float("nan")
            reasons[b] = "the reward model returned a non-finite score"
        return Rewards.sequence(values.to(rollouts.mask.device), rollouts, reasons)

    def _input(self, rollouts: Rollouts, tokenizer: Any) -> tuple[Tensor, Tensor]:
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if self.retokenize:
            return pad_rows(
                [encode_pair(tokenizer, p, c) for p, c in zip(rollouts.prompts, rollouts.completions, strict=True)],
                pad_id,
            )
        if rollouts.completion_ids is None or rollouts.prompt_ids is None or rollouts.prompt_mask is None:
            raise CapabilityError(f"{self!r} reads token ids and these rollouts are texts; pass retokenize=True")
        no_steps = rollouts.completion_ids.new_full((len(rollouts), 0), -1)
        built = rebuild_prm_input(
            rollouts.prompt_ids, rollouts.prompt_mask, rollouts.completion_ids, rollouts.mask, no_steps, pad_id, pad_id
        )
        return built.ids, built.mask


def encode_pair(tokenizer: Any, prompt: Any, completion: str) -> list[int]:
    """Ids of prompt and completion as a scalar reward model reads them.

    Text prompts: prompt, completion, end-of-sequence. Chat prompts: the template with the completion as the last turn.
    """
    if isinstance(prompt, str):
        tail = tokenizer(completion, add_special_tokens=False)["input_ids"] if completion else []
        return [*encode_prompt(tokenizer, prompt), *tail, tokenizer.eos_token_id]
    chat = [*prompt, {"role": "assistant", "content": completion}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@torch.no_grad()
def score_rows(model: Any, ids: Tensor, mask: Tensor, token_budget: int = 16384) -> Tensor:
    """[B] float32 scores of right-padded rows, in length-sorted batches of at most `token_budget` padded tokens."""
    device = next(model.parameters()).device
    lengths = mask.sum(1)
    out = torch.zeros(len(ids), device=device)
    with evaluating(model):
        for rows in length_batches(lengths, token_budget):
            width = int(lengths[rows].max())
            out[rows.to(device)] = last_token_scores(model, ids[rows, :width].to(device), mask[rows, :width].to(device))
    return out


def last_token_scores(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """[B] float32: the head at the last valid token of right-padded rows; encoders (no `score` head) pool as they do."""
    if not hasattr(model, "score"):
        return model(input_ids=ids, attention_mask=mask.long()).logits[:, 0].float()
    hidden = model.base_model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    last = hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]
    return model.score(last)[:, 0].float()
