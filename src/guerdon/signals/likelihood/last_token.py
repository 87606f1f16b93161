"""The last-token self-rewarding score: how good the policy finds its own solution, in the probability of one more token.

After the end-of-sequence token of a solution y stands a token z that the policy never writes. Its log-probability there, read in one
forward pass and never sampled, is the score (LaSeR, arXiv 2510.14943):

    r_s = beta (log pi(z | x, y, eos) - c),        c = log pi_ref(z | x, y, eos), nearly the same for every (x, y)

Rewarding z with r_v under a KL penalty beta has pi*(z) = pi_ref(z) exp(r_v / beta) / Z as its optimum, so that r_s = r_v - beta log Z with
Z = 1 + pi_ref(z) (exp(r_v / beta) - 1). The second term vanishes as long as z stays improbable: `log_partition` says by how much.

What trains it is `guerdon.objectives.self_reward`; before that training r_s is 0 for everything.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from guerdon.credit.schedule import Onset
from guerdon.errors import ConfigError
from guerdon.options import checked
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.likelihood.reference import Bound, prompt_of

Constant = float | Literal["calibrate", "reference"]
CUT = "cut at the length cap: nothing stands after its end"
UNCALIBRATED = (
    "the constant is not calibrated yet: training does that, or give constant= (LastTokenScore.calibrate finds one)"
)
Z_LIMIT = 0.01


def last_token_score(logprobs: Tensor, constant: Tensor | float, beta: float = 0.1) -> Tensor:
    """beta (log pi(z) - c). logprobs: [...] natural logs at temperature 1; constant: a number or [...]. Returns [...]."""
    return beta * (logprobs - constant)


def log_partition(constant: float, beta: float, reward: float = 1.0) -> float:
    """log Z = log(1 + e^c (e^(r / beta) - 1)): beta log Z is what the score misses its target by at the optimum."""
    exponent = constant + reward / beta  # of pi_ref(z) e^(r / beta)
    if exponent > 30:
        return exponent
    return math.log1p(math.exp(exponent) - math.exp(constant))


class Calibration(NamedTuple):
    """log pi(z) over `rows` solutions: its mean, which is the constant, and its standard deviation."""

    constant: float
    spread: float
    rows: int


def reserved_token(tokenizer: Any, token: str | int | None = None) -> int:
    """The id of z.

    Args:
        token: an id, a token as the vocabulary writes it, or None = the first special token that is not in use: none of
            begin, end, padding and unknown, and not in the chat template; else the unknown token.

    Raises:
        ConfigError: no such token, or nothing to choose from.
    """
    if isinstance(token, int):
        if not 0 <= token < len(tokenizer):
            raise ConfigError(f"token={token}: this tokenizer has ids 0 to {len(tokenizer) - 1}")
        return token
    vocabulary = tokenizer.get_vocab()
    if token is not None:
        if token not in vocabulary:
            raise ConfigError(
                f"token={token!r} is no token of this tokenizer; give one as its vocabulary writes it, or an id"
            )
        return int(vocabulary[token])
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    template = str(getattr(tokenizer, "chat_template", None) or "")
    for text, index in sorted(vocabulary.items(), key=lambda item: item[1]):
        if index in tokenizer.all_special_ids and index not in used and text not in template:
            return int(index)
    if tokenizer.unk_token_id is None or tokenizer.unk_token_id in (tokenizer.eos_token_id, tokenizer.pad_token_id):
        raise ConfigError("this tokenizer has no unused special token: give token=, one that the policy never writes")
    return int(tokenizer.unk_token_id)


@checked
class LastTokenScore(Bound):
    """Signal: beta (log pi(z | prompt, completion, eos) - c), one value a row.

    A completion that was cut at the length cap has no end to read after: 0, with the reason. A completion that ended in another way
    (a stop string, or a text from a file) gets the end-of-sequence token put after it.

    Args:
        constant: c. A number (the paper: -23.0 for Qwen2.5-7B, -25.0 for OctoThinker-3B); "calibrate" = the mean over the first
            `calibration_rows` finished rollouts of a training run, kept in its checkpoints; "reference" = the log-probability under
            the model of the role "reference", row by row. Outside training "calibrate" has no number before `calibrate` was called.
        beta: the KL coefficient of the verification problem; 1 / beta is the distance between right and wrong in nats.
        token: z, see `reserved_token`.
        calibration_rows: rows the constant is a mean of, at least.
        trained_from: when the regression on the score starts. From then on rows are no measure of the untrained log-probability: the
            calibration ends there, except that it takes one batch in any case. None = the regression is not watched.
    """

    scope = "row"
    needs = frozenset({"policy"})
    level = "sequence"

    def __init__(
        self,
        *,
        constant: Constant,
        beta: float = 0.1,
        token: str | int | None = None,
        calibration_rows: int = 256,
        trained_from: Onset | None = None,
    ) -> None:
        super().__init__()
        if isinstance(constant, str) and constant not in ("calibrate", "reference"):
            raise ConfigError(f"constant={constant!r}: use a number, 'calibrate' or 'reference'")
        if not isinstance(constant, str) and not (math.isfinite(constant) and constant < 0):
            raise ConfigError(
                f"constant={constant}: the logarithm of a probability, below 0; or 'calibrate' or 'reference'"
            )
        if not beta > 0 or calibration_rows < 1:
            raise ConfigError(f"beta={beta} must be positive and calibration_rows={calibration_rows} at least 1")
        self.constant, self.beta, self.token, self.calibration_rows = constant, beta, token, calibration_rows
        self.trained_from = trained_from
        self.roles = ("policy", "reference") if constant == "reference" else ("policy",)
        self.update_at = "before_scoring" if constant == "calibrate" else None
        self._seen = (0, 0.0, 0.0)  # rows, sum, sum of squares

    def __repr__(self) -> str:
        token = "" if self.token is None else f", token={self.token!r}"
        return f"LastTokenScore(constant={self.constant!r}, beta={self.beta}{token})"

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> Rewards:
        sequences, rows = self.sequences(rollouts)
        logprobs, failed = self.logprobs("policy", sequences)
        constant, reasons = self.constants(sequences)
        values = torch.zeros(len(rollouts))
        values[rows] = last_token_score(logprobs.float(), constant, self.beta)
        why = {int(rows[i]): text for i, text in {**reasons, **failed}.items()}
        kept = set(rows.tolist())
        cut = {row: CUT for row in range(len(rollouts)) if row not in kept}
        return Rewards.sequence(values, rollouts, {**cut, **why})

    # -- reading the token -----------------------------------------------------------------------------------------------

    def sequences(self, rollouts: Rollouts) -> tuple[list[Tensor], Tensor]:
        """Ids of prompt, completion, end and z, and the row of each; completions cut at the cap have none."""
        from guerdon.lm.encode import encode_continuation, encode_prompt
        from guerdon.lm.local import end_ids

        model = self.model("policy")
        tokenizer = model.tokenizer
        ends = end_ids(getattr(model, "model", None), tokenizer)
        if not ends:
            raise ConfigError("this tokenizer has no end-of-sequence token: there is no end to read the score after")
        z = torch.tensor([reserved_token(tokenizer, self.token)])
        found, rows = [], []
        for row in range(len(rollouts)):
            if rollouts.completion_ids is None:
                own = encode_continuation(tokenizer, rollouts.completions[row])
            else:
                own = rollouts.completion_ids[row][rollouts.mask[row]].cpu()
            ended = bool(len(own)) and int(own[-1]) in ends
            if rollouts.finished is not None:
                finished = bool(rollouts.finished[row])
            else:  # a text ended where its writer ended it
                finished = ended or rollouts.completion_ids is None
            if not finished:
                continue
            end = own[:0] if ended else torch.tensor(ends[-1:])
            found.append(torch.cat([encode_prompt(tokenizer, prompt_of(rollouts, row)), own, end, z]))
            rows.append(row)
        return found, torch.tensor(rows, dtype=torch.long)

    def logprobs(self, role: str, sequences: Sequence[Tensor], *, grad: bool = False) -> tuple[Tensor, dict[int, str]]:
        """[N] log-probabilities, at temperature 1, of the last token of each sequence; {n: why there is none}."""
        from guerdon.lm.scorer import SpanScorer

        if not sequences:
            return torch.zeros(0), {}
        last = [torch.tensor([len(sequence) - 1]) for sequence in sequences]
        values, failed = SpanScorer(self.model(role)).score_positions(sequences, last, grad=grad)
        values = values[:, 0] if grad else values[:, 0].detach().cpu()
        broken = values.detach().isnan().nonzero()[:, 0].tolist()
        return values, {n: failed.get(n, "the model gave no probability") for n in broken}

    def constants(self, sequences: Sequence[Tensor]) -> tuple[Tensor, dict[int, str]]:
        """[N] c for each sequence, NaN where it is not known, and why."""
        if self.constant == "reference":
            return self.logprobs("reference", sequences)
        known = self.calibration
        value = known.constant if known is not None else float("nan")
        constant = value if isinstance(self.constant, str) else self.constant
        reasons = {} if constant == constant else dict.fromkeys(range(len(sequences)), UNCALIBRATED)
        return torch.full((len(sequences),), constant), reasons

    # -- the constant ----------------------------------------------------------------------------------------------------

    @property
    def calibration(self) -> Calibration | None:
        """What was measured so far; None before the first row."""
        rows, total, squares = self._seen
        if not rows:
            return None
        mean = total / rows
        return Calibration(mean, math.sqrt(max(0.0, squares / rows - mean**2)), rows)

    def calibrate(self, rollouts: Rollouts) -> Calibration:
        """Add the finished rows of a batch to what the constant is a mean of. Raises ConfigError where there are none at all."""
        sequences, _ = self.sequences(rollouts)
        values, failed = self.logprobs("policy", sequences)
        numbers = values.double()[[n for n in range(len(values)) if n not in failed]]
        rows, total, squares = self._seen
        self._seen = (rows + len(numbers), total + float(numbers.sum()), squares + float(numbers.square().sum()))
        known = self.calibration
        if known is None:
            raise ConfigError("no completion ended by itself: there is nothing to calibrate the constant on")
        return known

    def update(self, rollouts: Rollouts, scores: Scores) -> dict[str, float]:
        """Before the first generations are scored: measure the constant. Says so where z is not improbable enough."""
        rows = self._seen[0]
        untrained = self.trained_from is None or not self.trained_from.reached(rollouts.clock)
        wanted = not rows or (rows < self.calibration_rows and untrained)
        if wanted and len(self.sequences(rollouts)[0]):
            known = self.calibrate(rollouts)
            if not rows and known.constant + 1 / self.beta > math.log(Z_LIMIT):
                room = math.log(Z_LIMIT) - known.constant
                remedy = (
                    f"use beta={1 / room:.2f} or more, or a less probable token"
                    if room > 0
                    else "use a less probable token"
                )
                warnings.warn(
                    f"the token after the end has log-probability {known.constant:.1f}, and e^(c + 1/beta) is above {Z_LIMIT}: right solutions "
                    f"cannot reach a score of 1; {remedy}",
                    stacklevel=2,
                )
        known_now = self.calibration
        if known_now is None:
            return {}
        return {
            "constant": known_now.constant,
            "spread": known_now.spread,
            "log_z": log_partition(known_now.constant, self.beta),
        }

    def state_dict(self) -> dict[str, Any]:
        """The calibration, so that a resumed run goes on with its constant."""
        return {"seen": list(self._seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rows, total, squares = state["seen"]
        self._seen = (int(rows), float(total), float(squares))
