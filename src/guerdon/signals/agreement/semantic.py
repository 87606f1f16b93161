"""How much a rollout's answer agrees in meaning with those of its group, and the ways to compare meanings.

    SemanticAgreement(similarity="equal")          equal after tidying (case, articles, punctuation): no model needed
    SemanticAgreement(similarity="embedding")      clipped cosine of sentence embeddings, rescaled above a floor
    SemanticAgreement(similarity=Synonyms({...}))  equal after replacing each answer by its canonical form
    SemanticAgreement(similarity=Entailment(f))    each entails the other, f: pairs of texts -> probabilities

Answers are compared, not reasonings; for entailment with the question before them, as an answer alone says little. An empty answer means
nothing: it agrees with no other, not even with another empty one, or a policy would be paid or fined for silence.

Source: the quantities of CSR (arXiv 2605.15588) as far as its abstract tells; where it is silent the choices are options here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from guerdon.errors import ConfigError, ShapeError
from guerdon.lm.ranks import shared_work
from guerdon.options import checked
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.agreement.answers import answer_rule
from guerdon.signals.embedding import cosine_similarity, embedder
from guerdon.signals.held import Held, held_by
from guerdon.signals.placing import place
from guerdon.signals.verifiable.extraction import AnswerWatch, Extract
from guerdon.signals.verifiable.text_match import squad_normalise

Peers = Literal["all", "same_outcome"]
Similarity = Callable[[str, Sequence[str]], Tensor]  # (question, n answers) -> [n, n] in [0, 1], symmetric


def semantic_agreement(similarity: Tensor, correct: Tensor | None = None, peers: Peers = "all") -> Tensor:
    """a_i: the mean similarity to the other rollouts of the group; 0 where there is no other.

    Args:
        similarity: [G, G], symmetric; the diagonal is ignored.
        correct: [G], read for peers="same_outcome".
        peers: "all" others, an unbiased estimate of the probability of the answer's meaning; or only those with the same correctness.

    Returns:
        [G] float64.

    Source: a guess at CSR; the same up to the normaliser for both choices, where right and wrong answers are never similar.
    """
    if peers not in ("all", "same_outcome"):
        raise ConfigError(f"peers={peers!r}: use 'all' or 'same_outcome'")
    table = torch.as_tensor(similarity, dtype=torch.float64)
    table = table.reshape(0, 0) if table.numel() == 0 else table
    if table.dim() != 2 or table.shape[0] != table.shape[1]:
        raise ShapeError(f"similarity is [G, G], not {tuple(table.shape)}")
    other = ~torch.eye(len(table), dtype=torch.bool, device=table.device)
    if peers == "same_outcome":
        if correct is None:
            raise ConfigError("peers='same_outcome' needs to know which rollouts are correct")
        outcome = torch.as_tensor(correct, device=table.device).reshape(-1)
        other = other & (outcome[:, None] == outcome[None])
    return torch.where(other, table, 0.0).sum(1) / other.sum(1).clamp(min=1)


# --- comparing meanings ----------------------------------------------------------------------------------------------


def equal(question: str, answers: Sequence[str]) -> Tensor:
    """[n, n]: 1 where two answers are the same after tidying (`squad_normalise`)."""
    return _same([squad_normalise(answer) for answer in answers])


def _same(keys: Sequence[str]) -> Tensor:
    known: dict[str, int] = {}
    codes = torch.tensor([known.setdefault(key, len(known)) for key in keys], dtype=torch.long)
    return (codes[:, None] == codes[None]).double()


class Synonyms:
    """Equality after replacing answers by a canonical form.

    Args:
        table: {answer: canonical form}; both are tidied first. Answers that are not in it stand for themselves.
    """

    def __init__(self, table: Mapping[str, str]) -> None:
        self.table = {squad_normalise(key): squad_normalise(value) for key, value in table.items()}

    def __repr__(self) -> str:
        return f"Synonyms({len(self.table)} entries)"

    def __call__(self, question: str, answers: Sequence[str]) -> Tensor:
        keys = [squad_normalise(answer) for answer in answers]
        return _same([self.table.get(key, key) for key in keys])


class Embedding:
    """Clipped cosine of sentence embeddings, stretched so that `floor` counts as 0: unrelated short answers often reach 0.3 to 0.6.

    Args:
        embed: see `signals.embedding.embedder`.
        floor: cosines up to this are no agreement.
        threshold: 1.0 where the cosine reaches it, else 0.0; instead of the stretched cosine.
    """

    def __init__(self, embed: Any = "minilm", *, floor: float = 0.6, threshold: float | None = None) -> None:
        if not 0 <= floor < 1 or (threshold is not None and not 0 < threshold <= 1):
            raise ConfigError(f"floor={floor} must be in [0, 1) and threshold={threshold} in (0, 1]")
        self.embed, self.floor, self.threshold = embedder(embed), floor, threshold

    def __repr__(self) -> str:
        return f"Embedding({self.embed!r}, floor={self.floor}, threshold={self.threshold})"

    def held(self) -> list[Held]:
        """The embedder's."""
        return held_by(self.embed)

    def to(self, device: Any, dtype: Any = None) -> None:
        """Place the embedder, where it can be."""
        place(self.embed, device, dtype)

    def __call__(self, question: str, answers: Sequence[str]) -> Tensor:
        vectors = self.embed(list(answers)).double()
        cosine = cosine_similarity(vectors[:, None], vectors[None])
        if self.threshold is not None:
            return torch.where(cosine.isnan(), cosine, (cosine >= self.threshold).double())
        return ((cosine - self.floor) / (1 - self.floor)).clamp(0, 1)


class Entailment:
    """1 where each answer entails the other, asked once for each ordered pair of different tidied texts.

    Args:
        probability: (premise, hypothesis) pairs -> the probability that the first entails the second, NaN where it cannot say.
        threshold: least probability, in both directions.
        context: how question and answer are put together; the paper's idea is that of "question + answer".
    """

    def __init__(
        self,
        probability: Callable[[Sequence[tuple[str, str]]], Sequence[float]],
        *,
        threshold: float = 0.5,
        context: Callable[[str, str], str] = lambda question, answer: f"{question} {answer}",
    ) -> None:
        self.probability, self.threshold, self.context = probability, threshold, context
        self._known: dict[tuple[str, str, str], float] = {}

    def __repr__(self) -> str:
        return f"Entailment(threshold={self.threshold})"

    def __call__(self, question: str, answers: Sequence[str]) -> Tensor:
        keys = [squad_normalise(answer) for answer in answers]
        texts = dict(zip(reversed(keys), reversed(list(answers)), strict=True))  # the first way of writing each
        new = [(question, a, b) for a in texts for b in texts if a != b and (question, a, b) not in self._known]
        if new:
            pairs = [(self.context(question, texts[a]), self.context(question, texts[b])) for _, a, b in new]
            self._known |= dict(zip(new, map(float, self.probability(pairs)), strict=True))
        directed = torch.tensor([[1.0 if a == b else self._known[question, a, b] for b in keys] for a in keys])
        least = torch.minimum(directed, directed.T).double()  # NaN stays NaN
        return torch.where(least.isnan(), least, (least >= self.threshold).double())


def similarity_of(similarity: Any) -> Similarity:
    """The function an option names: "equal", "embedding", or any (question, answers) -> [n, n], as it is."""
    if callable(similarity):
        return similarity
    if similarity == "equal":
        return equal
    if similarity == "embedding":
        return Embedding()
    raise ConfigError(
        f"similarity={similarity!r}: use 'equal', 'embedding' or a function (question, answers) -> [n, n]"
    )


# --- the signal ------------------------------------------------------------------------------------------------------


@checked
@dataclass
class SemanticAgreement:
    """Signal: `semantic_agreement` of each rollout's answer within its group.

    Args:
        similarity: see `similarity_of`.
        peers: "all" or "same_outcome".
        by: the source that says what is correct, an earlier signal; read for "same_outcome".
        extract: where the answer is in a completion (`answers.answer_rule`); None = all of it.
        question: data column with the question for the comparison; None = the prompt.

    A similarity that could not be computed (NaN) makes the rows of its pair NaN, with a reason.
    """

    similarity: Any = "equal"
    peers: Peers = "all"
    by: str = "answer"
    extract: Extract | None = None
    question: str | None = None
    scope: ClassVar[str] = "group"
    level: ClassVar[str] = "sequence"
    compare: Similarity = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.peers not in ("all", "same_outcome"):
            raise ConfigError(f"peers={self.peers!r}: use 'all' or 'same_outcome'")
        self.compare = similarity_of(self.similarity)
        self._watch = AnswerWatch(self.extract)
        self._answer = (lambda text: text) if self.extract is None else answer_rule(self.extract)

    def held(self) -> list[Held]:
        """What compares meanings."""
        return held_by(self.compare)

    def to(self, device: Any, dtype: Any = None) -> None:
        """Place what compares meanings, where it can be."""
        place(self.compare, device, dtype)

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        answers = [self._answer(text) for text in rollouts.last_turns]
        self._watch(answers, "SemanticAgreement")
        groups = rollouts.groups.cpu()
        correct = scores[self.by].values[:, 0].cpu() if self.peers == "same_outcome" else None
        values = torch.zeros(len(rollouts), dtype=torch.float64)
        members = [(groups == group).nonzero()[:, 0] for group in groups.unique()]
        # Of several ranks each compares the answers of a share of the groups.
        tables = shared_work(members, lambda share, rank: [self._table(rollouts, answers, rows) for rows in share])
        for rows, table in zip(members, tables, strict=True):
            values[rows] = semantic_agreement(table, None if correct is None else correct[rows], self.peers)
        why = {row: "the similarity to another answer of the group could not be computed" for row in values.isnan().nonzero()[:, 0].tolist()}  # fmt: skip
        if correct is not None:
            for row in (correct.isnan() & ~values.isnan()).nonzero()[:, 0].tolist():
                values[row], why[row] = float("nan"), f"{self.by!r} does not know whether this rollout is correct"
        return Rewards.sequence(values.float(), rollouts, why)

    def _table(self, rollouts: Rollouts, answers: Sequence[str], rows: Tensor) -> Tensor:
        """[G, G] of one group; 0 beside an empty answer."""
        order = rows.tolist()
        live = [i for i, row in enumerate(order) if answers[row].strip()]
        table = torch.zeros(len(order), len(order), dtype=torch.float64)
        if live:
            question = rollouts.column(self.question)[order[0]] if self.question else rollouts.prompts[order[0]]
            text = question if isinstance(question, str) else str(question[-1].get("content", ""))
            found = self.compare(text, [answers[order[i]] for i in live]).double().cpu()
            index = torch.tensor(live)
            table[index[:, None], index[None]] = found
        return table
