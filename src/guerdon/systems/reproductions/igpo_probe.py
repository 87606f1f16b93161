"""IGPO's confidences from real models: a tiny one inside the world of hops, and an instruct model of 135M on passages.

`Believer` plays the world of `retrieval_chain` with questions of the task "search": each action becomes a query, BM25 answers, and the
tiny policy says how probable the true answer is after the dialogue so far. `passages` are two-turn rollouts in which the tool
answers with the fact asked for, or with another one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from guerdon.engines.trl.batch import pad_rows
from guerdon.engines.trl.environments import reply_frame
from guerdon.lm.encode import encode_continuation, encode_prompt
from guerdon.lm.offsets import decode_offsets_batch
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.segment import ByTurn
from guerdon.signals.likelihood.information_gain import (
    InformationGain,
    answer_confidence,
    answer_logprobs,
    information_gains,
)
from guerdon.systems.reproductions.retrieval_chain import Hops, paid_turns
from guerdon.tasks.search import BM25, INSTRUCTION, RELATIONS, Fact, Question, draw_question, is_held_out, make_world

# --- the world of hops, with the confidences of a tiny language model ------------------------------------------------


class Believer:
    """Signal, and judge of answers: what a language model believes after each dialogue of one three-hop question.

    Query h of the world is the search for hop h of the question: with the name that hop needs where it is known, else with the last
    known one. Queries 3 and 4 ask for the other relations of the last known name, query 5 for something of the first name.

    model: a LocalModel that knows the notation. seed: of the question. world: sizes.
    """

    scope, level = "row", "turns"

    def __init__(self, model: Any, seed: int, world: Hops | None = None) -> None:
        self.model, self.world = model, world or Hops()
        facts = make_world(random.Random(0))
        rng = random.Random(seed)
        question = draw_question(facts, (3, 3), rng)
        while not is_held_out(question.text("plain")):
            question = draw_question(facts, (3, 3), rng)
        chain = facts.follow(question.start, question.relations)
        self.question, self.names = question, [question.start, *[fact.value for fact in chain]]
        self.index = BM25([fact.text("plain") for fact in facts.facts.values()])
        self._known: dict[tuple[int, ...], Tensor] = {}

    def __repr__(self) -> str:
        return f"Believer({self.question.text('plain').strip()!r})"

    def query(self, action: int, found: int) -> str:
        """The text of an action where `found` hops are found."""
        relations = self.question.relations
        if action < len(relations):
            return f"{self.names[min(action, found)]} {relations[action]}"
        others = [r for layer in RELATIONS if relations[min(found, len(relations) - 1)] in layer for r in layer]
        others = [r for r in others if r not in relations]
        return (
            f"{self.names[found]} {others[0]}"
            if action == 3
            else f"{self.names[found if action == 4 else 0]} {others[1]}"
        )

    def dialogue(self, actions: Sequence[int]) -> list[tuple[str, str]]:
        """(turn, reply) of each query."""
        states = self.world.states_before(torch.tensor([list(actions)]))[0].tolist() if len(actions) else []
        queries = [self.query(action, found) for action, found in zip(actions, states, strict=True)]
        replies = self.index(queries)
        return [
            (f"<tool_call>{query}</tool_call>", f"<tool_response>{reply}</tool_response>")
            for query, reply in zip(queries, replies, strict=True)
        ]

    def answer_logprobs(self, histories: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """[L + 1] each: log-probabilities of the answer's tokens and of the closing tag, if the answer came after these queries."""
        new = list(dict.fromkeys(history for history in histories if history not in self._known))
        if new:
            tokenizer = self.model.tokenizer
            texts = ["".join(a + b for a, b in self.dialogue(history)) + "<answer>" for history in new]
            prompt = encode_prompt(tokenizer, self.question.text("plain"))
            prefixes = [torch.cat([prompt, encode_continuation(tokenizer, text)]) for text in texts]
            target = encode_continuation(tokenizer, self.names[-1] + "</answer>")
            [found] = answer_logprobs(self.model, [prefixes], [target])
            self._known |= dict(zip(new, found, strict=True))
        return [self._known[history] for history in histories]

    def confidences(self, histories: Sequence[tuple[int, ...]]) -> Tensor:
        """[N] float64: geometric mean over the answer's tokens."""
        logprobs = torch.stack(self.answer_logprobs(histories))[:, :-1]
        return answer_confidence(logprobs, torch.ones_like(logprobs, dtype=torch.bool))

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        assert rollouts.completion_ids is not None
        paid = paid_turns(rollouts.segment("turns"))
        rows = [ids[mask].tolist() for ids, mask in zip(rollouts.completion_ids, rollouts.mask, strict=True)]
        histories = [tuple(row[:t]) for row in rows for t in range(len(row))]
        states = self.confidences(histories).split([len(row) for row in rows])
        values = torch.zeros(paid.mask.shape)
        for row, confidence in enumerate(states):
            values[row, : len(confidence) - 1] = information_gains(confidence).float()
        return Rewards(torch.where(paid.mask, values, 0.0), paid)

    def believed(self, actions: Tensor, mask: Tensor) -> Tensor:
        """[B]: the probability that the model, asked where the rollout answers, writes the true answer; 0 without an answer."""
        rows = [row[keep].tolist() for row, keep in zip(actions, mask, strict=True)]
        answered = [bool(row) and row[-1] == self.world.answer for row in rows]
        histories = [tuple(row[:-1]) for row, yes in zip(rows, answered, strict=True) if yes]
        found = iter([float(logprobs.sum().exp()) for logprobs in self.answer_logprobs(histories)])
        return torch.tensor([next(found) if yes else 0.0 for yes in answered])

    def ladder(self) -> list[float]:
        """The probability of a right answer after 0, 1, 2 and 3 useful queries."""
        return [float(x.sum().exp()) for x in self.answer_logprobs([tuple(range(h)) for h in range(self.world.states)])]


# --- passages under a 135M model -------------------------------------------------------------------------------------


def passages(tokenizer: Any, count: int = 20, seed: int = 0) -> Rollouts:
    """2 x count rollouts in pairs: one search each, answered by the fact the question asks for, then by another of its kind."""
    world = make_world(random.Random(seed), 40)
    rng = random.Random(seed + 1)
    facts = rng.sample(list(world.facts.values()), count)
    before, after = reply_frame(tokenizer)
    prompts: list[Any] = []
    answers: list[str] = []
    rows: list[tuple[str, str, str]] = []
    for fact in facts:
        other = rng.choice([f for f in world.facts.values() if f.subject != fact.subject and f.value != fact.value])
        for told in (fact, other):
            prompts.append([{"role": "user", "content": f"{_asked(fact)}\n\n{INSTRUCTION}"}])
            answers.append(fact.value.capitalize())
            rows.append(_two_turns(fact, told, before, after))
    pieces = [[encode_continuation(tokenizer, text).tolist() for text in row] for row in rows]
    ids, mask = pad_rows([turn + reply + last for turn, reply, last in pieces], 0)
    own, _ = pad_rows([[1] * len(turn) + [0] * len(reply) + [1] * len(last) for turn, reply, last in pieces], 0)
    prompt_ids, prompt_mask = pad_rows([encode_prompt(tokenizer, prompt).tolist() for prompt in prompts], 0, left=True)
    texts, offsets = decode_offsets_batch(tokenizer, ids, mask)
    rollouts = Rollouts(
        prompts,
        texts,
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=ids,
        completion_mask=mask,
        policy_mask=own.bool(),
        offsets=offsets,
        group_ids=torch.arange(len(rows)) // 2,
        columns={"answer": answers},
    )
    return rollouts.with_spans(turns=ByTurn()(rollouts))


def _asked(fact: Fact) -> str:
    return Question(fact.subject, (fact.relation,)).text("prose")


def _two_turns(fact: Fact, told: Fact, before: str, after: str) -> tuple[str, str, str]:
    call = json.dumps({"name": "search", "arguments": {"query": f"{fact.relation} of {fact.subject.capitalize()}"}})
    turn = f"<think>I have to look this up.</think>\n<tool_call>{call}</tool_call>"
    return turn, f"{before}<tool_response>{told.text('prose')}</tool_response>{after}", "<answer>"


def passage_gains(model: Any, count: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    """[count] gains of the turn that found the fact, and of the turn that found another one."""
    rollouts = passages(model.tokenizer, count, seed)
    signal = InformationGain()
    signal.bind("policy", model)
    gains = signal(rollouts)["gain"].values[:, 0]
    return gains[::2], gains[1::2]
