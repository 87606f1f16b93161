"""What the endogenous reward of a 135M instruct model says about hand-made responses.

Forty pairs of equal token length: twenty questions with a fluent, relevant answer, against the same answer with its words in another order
and against the answer to another question. And twenty requests with a formal and a casual reply, judged under the instruction to be the
one and under the instruction to be the other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.rollouts import Rollouts
from guerdon.signals.likelihood.endogenous import EndogenousReward, read_soft_bellman
from guerdon.signals.likelihood.relative_perplexity import encode_context

FORMAL = "You answer in a formal, polite and professional style."
CASUAL = "You answer in a casual, relaxed and friendly style, like a text message to a buddy."


class Pair(NamedTuple):
    """A question and a fluent answer to it."""

    question: str
    answer: str


PAIRS = (
    Pair("Why does the sea look blue?", "Water absorbs red light more strongly than blue light, so the light that comes back is mostly blue."),
    Pair("How do bees make honey?", "Bees collect nectar from flowers, store it in the comb and let the water dry out until it becomes honey."),
    Pair("What is a leap year?", "A leap year has one extra day in February, which keeps the calendar in step with the sun."),
    Pair("How can I sleep better?", "Go to bed at the same time every night, keep the room dark and avoid coffee in the evening."),
    Pair("Why do leaves fall in autumn?", "Trees drop their leaves in autumn to save water and energy during the cold and dark winter months."),
    Pair("What does a heart do?", "The heart pumps blood through the body, which carries oxygen and food to all of the organs."),
    Pair("How is glass made?", "Glass is made by melting sand with soda and lime in a very hot furnace and then cooling it slowly."),
    Pair("Why is exercise good for you?", "Regular exercise makes the heart stronger, helps to control weight and often improves the mood as well."),
    Pair("What causes the tides?", "The tides are caused mainly by the gravity of the moon, which pulls on the water of the oceans."),
    Pair("How do I boil an egg?", "Put the egg into boiling water for about eight minutes and then cool it under cold running water."),
    Pair("What is a volcano?", "A volcano is an opening in the crust of the earth through which melted rock and gas can escape."),
    Pair("Why do we need vitamins?", "The body needs small amounts of vitamins to grow, to fight disease and to stay healthy over time."),
    Pair("How does a plane fly?", "The wings push air downwards as the plane moves forward, and this creates a force that lifts it up."),
    Pair("What is a library?", "A library is a place where people can read and borrow books, and often also use computers for free."),
    Pair("Why do cats purr?", "Cats often purr when they feel safe and happy, but they may also do so when they are in pain."),
    Pair("What is compost?", "Compost is made from food scraps and leaves that break down over time and feed the soil in a garden."),
    Pair("How do magnets work?", "Inside a magnet the tiny fields of many atoms point in the same direction and add up to a strong one."),
    Pair("What is a budget?", "A budget is a plan that shows how much money you earn and how you want to spend or save it."),
    Pair("Why does bread rise?", "Yeast eats the sugar in the dough and gives off gas, and the small bubbles make the bread rise."),
    Pair("How do I learn a language?", "Practice a little every day, listen to native speakers and do not be afraid of making mistakes."),
)  # fmt: skip

STYLES = (
    ("Can we move our meeting?", "I would be glad to reschedule our meeting. Please let me know which date suits you.", "Sure thing, no worries! Just tell me when you're free and we'll do it then."),
    ("Did you get my email?", "Thank you for your message. I have received it and will respond in due course.", "Yep, got it! Haven't had a chance to read it yet, but I'll get back to you soon."),
    ("Can you send me the report?", "Certainly. Please find the requested report attached to this message.", "Yeah, here you go! Let me know if it doesn't open or anything."),
    ("Are you coming to dinner?", "I would be delighted to attend the dinner. Thank you very much for the invitation.", "Oh yeah, I'm totally in! Can't wait to see you guys."),
    ("I am going to be late.", "Thank you for informing me. I will await your arrival.", "No problem at all, take your time, see you in a bit!"),
    ("What do you think of my draft?", "I have reviewed your draft with care and consider it to be of high quality.", "Hey, it's really cool! Just fix the little things."),
    ("Can you help me move on Saturday?", "I regret to inform you that I am unavailable on Saturday.", "Aw man, sorry, I can't make it on Saturday!"),
    ("Happy birthday!", "I sincerely appreciate your kind wishes. Thank you very much.", "Aww thanks so much, you're the best!"),
    ("I lost my keys.", "I am sorry to hear that. I would recommend contacting the building management for assistance.", "Oh no, that sucks! Have you checked under the couch?"),
    ("How was your trip?", "The journey was most pleasant. I appreciate your kind inquiry.", "It was awesome, we had so much fun!"),
    ("Can I borrow your car?", "I regret that I am unable to grant this request at the present time.", "Sorry buddy, I kinda need it today!"),
    ("Where should we eat?", "I would recommend the restaurant on the main street, which offers excellent service.", "Let's just grab some pizza, that place is great!"),
    ("I got the job!", "Please accept my sincere congratulations on your appointment.", "Wow, that's so cool! Congrats, let's celebrate!"),
    ("Is the shop open?", "The shop is open from nine o'clock until six o'clock. We look forward to your visit.", "Yeah, it's open till six, just come on over!"),
    ("The printer is broken.", "Thank you for reporting this issue. A technician will be dispatched shortly.", "Ugh, again? Okay, I'll go take a look."),
    ("Can you explain it again?", "Certainly. I would be pleased to provide a more detailed explanation.", "Sure, no problem! Okay, so here's the deal."),
    ("I do not feel well.", "I am sorry to hear that. I wish you a swift recovery.", "Oh no, poor you! Hope you feel better soon!"),
    ("When is the deadline?", "The deadline for submission is Friday. Please ensure that all documents are complete.", "It's Friday, so you've still got some time, don't worry!"),
    ("Thanks for your help.", "You are most welcome. Please do not hesitate to contact me again.", "No worries, anytime! Glad I could help out."),
    ("Can we talk tomorrow?", "I would be pleased to speak with you tomorrow at your convenience.", "Yeah sure, just give me a call whenever!"),
)  # fmt: skip


def chat(question: str, system: str | None = None) -> list[dict[str, str]]:
    """The question as a user message, after a system message where one is given."""
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": question}]


def matched(
    tokenizer: Any, pairs: Sequence[Pair] = PAIRS, seed: int = 0
) -> list[tuple[list[dict[str, str]], Tensor, Tensor]]:
    """(prompt, ids of the better response, ids of the worse one), twice as many as pairs; both ids of one length, without an end.

    Scrambled words may be other tokens: the first order out of many whose tokens are as many is taken. The answer to another question
    and the right one are cut to the shorter.
    """
    rng = random.Random(seed)

    def ids(text: str) -> Tensor:
        return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])

    found = []
    for i, pair in enumerate(pairs):
        good, words = ids(pair.answer), pair.answer.rstrip(".").split()
        for _ in range(200):
            order = rng.sample(words, len(words))
            scrambled = ids(" ".join(order) + ".")
            if len(scrambled) == len(good) and order != words:
                break
        length = min(len(good), len(scrambled))
        found.append((chat(pair.question), good[:length], scrambled[:length]))
        other = ids(pairs[(i + 1) % len(pairs)].answer)
        length = min(len(good), len(other))
        found.append((chat(pair.question), good[:length], other[:length]))
    return found


class Probe(NamedTuple):
    """scrambled, irrelevant: shares of pairs whose better member has the larger reward. flips: share of style pairs whose preferred
    member follows the instruction both times. shift: share in which the instruction moves the difference of rewards the right way."""

    scrambled: float
    irrelevant: float
    flips: float
    shift: float


def probe(model: Any, pairs: Sequence[Pair] = PAIRS, styles: Sequence[tuple[str, str, str]] = STYLES) -> Probe:
    """The shares, under a `LocalModel`."""
    tests = matched(model.tokenizer, pairs)
    prompts = [encode_context(model.tokenizer, prompt) for prompt, _, _ in tests for _ in range(2)]
    read = read_soft_bellman(model, prompts, [ids for _, good, bad in tests for ids in (good, bad)])
    sums = (read.log_likelihood + read.initial).view(-1, 2)
    better = (sums[:, 0] > sums[:, 1]).double()
    gaps = []
    for instruction in (FORMAL, CASUAL):
        signal = EndogenousReward(instruction=instruction)
        signal.bind("reference", model)
        rollouts = Rollouts.from_texts(
            [chat(question) for question, _, _ in styles for _ in range(2)],
            [text for _, formal, casual in styles for text in (formal, casual)],
        )
        rewards = signal(rollouts).row_total().view(-1, 2)
        gaps.append(rewards[:, 0] - rewards[:, 1])
    formal, casual = gaps
    return Probe(
        float(better[0::2].mean()),
        float(better[1::2].mean()),
        float(((formal > 0) & (casual < 0)).double().mean()),
        float((formal > casual).double().mean()),
    )
