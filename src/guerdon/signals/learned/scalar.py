"""A scalar reward model as a signal: one score for a whole completion, read at its last token.

The model is a sequence classifier with one label (Bradley-Terry reward models on the hub are of this kind), or one of the other
outcome models of `conventions`; the score is its unbounded logit. For decoder models the head is applied here, at the last valid
token, because the models' own pooling looks for the last id that is not padding and picks the wrong place where the pad token is also
the end-of-sequence token.

Source: the reward model of PAR (arXiv 2502.18770), whose score is a linear head on the last response token's hidden state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from guerdon.errors import ConfigError
from guerdon.lm.vocabulary import VocabularyCheck, tokenizer_difference
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.learned.conventions import Convention
from guerdon.signals.learned.heads import load_reward_model
from guerdon.signals.learned.layouts import PrmInput, encode_prompt, pad_rows, padding_id, place_steps, render
from guerdon.signals.learned.prm import classify_positions, evaluating, length_batches, rebuild_prm_input
from guerdon.signals.placing import OnDevice


class RewardModel(OnDevice):
    """Signal: an outcome reward model's score of prompt and completion.

    model: hub id or path (also of a LoRA adapter with its head), or a loaded model (then `tokenizer` is needed).
    tokenizer: the reward model's; default: the one beside the model.
    convention: a name of `conventions.TABLE`; None = what the checkpoint says, else "sequence".
    retokenize: the policy's tokenizer is another one: encode the text. Texts without ids always are. Chat prompts then go
        through the reward model's template, with the completion as the assistant's turn.
    token_budget: padded tokens per forward pass.
    device, dtype: where the model goes; None = as it comes.
    options: further keyword arguments of `from_pretrained`.

    Of a completion with tool output the model sees what the policy wrote.

    A completion beyond the model's context is scored at the last token that fits, with the reason: its length is the policy's
    doing. A prompt that does not fit gives NaN. Loaded on first use; eval mode, no gradients, random state untouched.

    Raises:
        ConfigError: at loading, a model without such a head.
        CapabilityError: ids of another vocabulary and no `retokenize`.
    """

    head = "score"
    scope = "row"
    level = "sequence"
    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        convention: str | Convention | None = None,
        retokenize: bool = False,
        token_budget: int = 16384,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(model, torch.nn.Module) and tokenizer is None:
            raise ConfigError("a loaded reward model comes without its tokenizer: pass tokenizer=")
        self.source, self.retokenize, self.token_budget = model, retokenize, token_budget
        self.convention, self.options = convention, dict(options or {})
        self._device, self._dtype, self._tokenizer = device, dtype, tokenizer
        self._model: Any = None
        self._read_as: Convention | None = None
        self._vocabulary: VocabularyCheck | None = None

    def __repr__(self) -> str:
        return f"RewardModel({self.source if isinstance(self.source, str) else type(self.source).__name__!r})"

    def load(self) -> tuple[Any, Any]:
        """(model, tokenizer), loading them on the first call. Raises ConfigError for a model without one label of its own."""
        if self._model is None:
            loaded = load_reward_model(
                self.source,
                self._tokenizer,
                "outcome",
                convention=self.convention,
                device=self._device,
                dtype=self._dtype,
                options=self.options,
            )
            self._tokenizer, self._read_as, self._model = loaded.tokenizer, loaded.convention, loaded.model
            self._vocabulary = VocabularyCheck(self._tokenizer, self._model, "the reward model")
        return self._model, self._tokenizer

    def compare_vocabulary(self, tokenizer: Any) -> None:
        """Load the model, and refuse a policy's tokenizer whose ids it would read as other words."""
        _, own = self.load()
        assert self._read_as is not None
        given = self._read_as.layout == "as_given"
        difference = tokenizer_difference(tokenizer, own)
        if given and difference and not self.retokenize:
            raise ConfigError(f"{self!r} has another vocabulary than the policy: {difference}; pass retokenize=True")

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> Rewards:
        model, _ = self.load()
        built = self._input(rollouts).cpu()  # rows are chosen here
        lengths = built.mask.sum(1)
        limit = getattr(model.config, "max_position_embeddings", None) or max(built.ids.shape[1], 1)
        assert built.prompt_lengths is not None
        scorable = (built.prompt_lengths < limit) & (lengths > 0)
        values = torch.full((len(rollouts),), float("nan"))
        if bool(scorable.any()):
            values[scorable.cpu()] = self._scores(model, built, scorable, limit).cpu()
        reasons = {}
        for b in (lengths > limit).nonzero()[:, 0].tolist():
            reasons[b] = (
                f"{int(lengths[b])} tokens do not fit the reward model's context of {limit}: scored at the last that does"
            )
        for b in (~scorable).nonzero()[:, 0].tolist():
            reasons[b] = f"the prompt alone fills the reward model's context of {limit} tokens"
            reasons[b] = reasons[b] if int(lengths[b]) else "there is neither a prompt nor a completion"
        for b in (scorable.cpu() & ~torch.isfinite(values)).nonzero()[:, 0].tolist():
            values[b] = float("nan")
            reasons[b] = "the reward model returned a non-finite score"
        return Rewards.sequence(values.to(rollouts.mask.device), rollouts, reasons)

    def _scores(self, model: Any, built: PrmInput, rows: Tensor, limit: int) -> Tensor:
        """[R] scores of the rows that fit, wholly or cut at the limit."""
        assert self._read_as is not None
        ids, mask = built.ids[rows][:, :limit], built.mask[rows][:, :limit]
        if self._read_as.head == "classifier":
            return score_rows(model, ids, mask, self.token_budget)
        places = built.positions[rows].clamp(max=limit - 1)
        logits = classify_positions(model, PrmInput(ids, mask, places), places, self.token_budget, limit)[:, 0]
        return logits[:, 0] if logits.shape[-1] == 1 else logits[:, 1] - logits[:, 0]

    def _input(self, rollouts: Rollouts) -> PrmInput:
        """Ids, and the position [B, 1] where each row's score is read."""
        assert self._read_as is not None and self._vocabulary is not None
        pad_id = padding_id(self._tokenizer)
        ids, prompts, mask = rollouts.completion_ids, rollouts.prompt_ids, rollouts.prompt_mask
        given = self._read_as.layout == "as_given"
        if self.retokenize or not given or ids is None or prompts is None or mask is None:
            return self._encode_text(rollouts, pad_id)
        self._vocabulary.require_same(rollouts, f"{self!r} needs retokenize=True to read the text instead")
        own = rollouts.policy_mask  # the score is paid to the policy, and what a tool wrote is not its doing
        assert own is not None
        no_steps = ids.new_full((len(rollouts), 0), -1)
        built = rebuild_prm_input(prompts, mask, ids, own, no_steps, pad_id, pad_id)
        return built._replace(positions=built.mask.sum(1, keepdim=True) - 1)

    def _encode_text(self, rollouts: Rollouts, pad_id: int) -> PrmInput:
        assert self._read_as is not None
        rows, places, lengths = [], [], []
        for prompt, completion in zip(rollouts.prompts, rollouts.policy_texts, strict=True):
            if self._read_as.layout == "turns":
                placed = place_steps(self._tokenizer, self._read_as, prompt, [completion])
                row, place = placed.ids, placed.positions[0]
                lengths.append(placed.prompt_length)
            else:
                row = encode_pair(self._tokenizer, prompt, completion, system=self._read_as.system)
                place = len(row) - 1
                lengths.append(len(encode_prompt(self._tokenizer, prompt)))
            rows.append(row)
            places.append([place])
        ids, mask = pad_rows(rows, pad_id)
        return PrmInput(ids, mask, torch.tensor(places).reshape(-1, 1), torch.tensor(lengths, dtype=torch.long))


def encode_pair(tokenizer: Any, prompt: Any, completion: str, *, system: str | None = None) -> list[int]:
    """Ids of prompt and completion as a scalar reward model reads them.

    Text prompts: prompt, completion, end-of-sequence (where the tokenizer has one). Chat prompts: the template with the completion
    as the last turn. A `system` message makes a chat of text prompts, too, and takes the place of another one.
    """
    if isinstance(prompt, str) and system is None:
        tail = tokenizer(completion, add_special_tokens=False)["input_ids"] if completion else []
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return [*encode_prompt(tokenizer, prompt), *tail, *end]
    asked: Sequence[Any] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if system is not None:
        asked = [{"role": "system", "content": system}, *(m for m in asked if m.get("role") != "system")]
    text = render(tokenizer, [*asked, {"role": "assistant", "content": completion}])
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
