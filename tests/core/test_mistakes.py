"""Typical mistakes in Python: each is refused where it is made, by a sentence that says what to write instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import guerdon as gd
from guerdon.credit import Clip, GroupNorm, On, ToTokens
from guerdon.credit.link import LinkBase
from guerdon.errors import ChainError, nearest
from guerdon.rewards import Rewards
from guerdon.rollouts import Rollouts
from guerdon.signals import Math
from guerdon.systems import SYSTEMS, VARIANTS

CHAIN = [GroupNorm(), ToTokens()]


def trl_reward(prompts, completions, **columns):
    return [float(len(completion)) for completion in completions]


def of_one_completion(completion):
    return float(len(completion))


class Misspelt:
    scopes = "group"

    def __call__(self, rollouts: Rollouts, scores: object) -> Rewards:
        return Rewards.sequence([0.0] * len(rollouts), rollouts)


class MisspeltNeeds(Misspelt):
    scopes = property(lambda self: "group")
    scope = "row"
    need = frozenset({"logprobs.old"})


class MisspeltLink(LinkBase):
    centers = True

    def __call__(self, scores, rollouts):
        return scores


MISTAKES: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "signals and chain swapped": (lambda: gd.System(CHAIN, {"a": Math()}), ("dict", "the chain comes second")),
    "a list of signals": (lambda: gd.System([Math()], CHAIN), ("dict", "signals={'math': ...}")),
    "one signal without a name": (lambda: gd.System(Math(), CHAIN), ("dict", "signals={'math': ...}")),
    "no signals": (lambda: gd.System({}, CHAIN), ("at least one signal",)),
    "a name that is no text": (lambda: gd.System({1: Math()}, CHAIN), ("name of a signal", "1")),
    "a link without brackets": (lambda: gd.System({"a": Math()}, [GroupNorm, ToTokens()]), ("link 1", "GroupNorm(...)")),
    "a signal's factory without brackets": (lambda: gd.System({"a": Math}, CHAIN), ("'a'", "Math(...)")),
    "a signal's class without brackets": (lambda: gd.System({"a": Misspelt}, CHAIN), ("'a'", "Misspelt(...)")),
    "a signal's name for the signal": (lambda: gd.System({"a": "math"}, CHAIN), ("'math'", "callable")),
    "a number for a signal": (lambda: gd.System({"a": 1.0}, CHAIN), ("1.0", "callable")),
    "a link among the signals": (lambda: gd.System({"a": GroupNorm()}, CHAIN), ("'a'", "belong into the chain")),
    "a signal in the chain": (lambda: gd.System({"a": Math()}, [Math(), *CHAIN]), ("link 1", "signals={name: ...}")),
    "one link without a list": (lambda: gd.System({"a": Math()}, GroupNorm()), ("list of links", "chain=[...]")),
    "a dict of links": (lambda: gd.System({"a": Math()}, {"norm": GroupNorm()}), ("list of links", "dict")),
    "a delimiter for a segmenter": (
        lambda: gd.System({"a": Math()}, CHAIN, segments={"steps": "\n\n"}),
        ("'steps'", "ByDelimiter"),
    ),
    "a list of segmenters": (lambda: gd.System({"a": Math()}, CHAIN, segments=["steps"]), ("segments is a dict",)),
    "a misspelt source": (
        lambda: gd.System({"answer": Math()}, [GroupNorm("anwser"), ToTokens("answer")]),
        ("'anwser'", "did you mean 'answer'", "link 2"),  # 1 is OnFailure, which every chain has
    ),
    "a misspelt scope": (lambda: gd.System({"a": Misspelt()}, CHAIN), ("'scopes'", "did you mean 'scope'")),
    "misspelt needs": (lambda: gd.System({"a": MisspeltNeeds()}, CHAIN), ("'need'", "did you mean 'needs'")),
    "misspelt centres": (lambda: gd.System({"a": Math()}, [MisspeltLink(), *CHAIN]), ("'centers'", "'centres'")),
    "a function of one completion": (
        lambda: gd.System({"a": of_one_completion}, CHAIN),
        ("of_one_completion", "signals.text_signal"),
    ),
    "a trainer's reward function": (lambda: gd.System({"a": trl_reward}, CHAIN), ("trl_reward", "signals.RewardFunction")),
    "texts for rollouts": (lambda: gd.System({"a": Math()}, CHAIN)(["1", "2"]), ("list", "Rollouts.from_texts")),
    "a transform without brackets": (lambda: On("steps", Clip), ("On('steps', Clip(0.0))",)),
    "a transform and its source swapped": (lambda: On(Clip(0.0), "steps"), ("On('steps', Clip(0.0))",)),
    "a chain without ToTokens": (lambda: gd.System({"a": Math()}, [GroupNorm()]), ("ToTokens(...)",)),
    "one prompt for two completions": (lambda: Rollouts.from_texts(["q"], ["1", "2"]), ("1 prompts for 2", "repeat")),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_by_a_sentence_that_says_what_to_write(mistake):
    call, words = MISTAKES[mistake]
    with pytest.raises(gd.GuerdonError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("room", "name", "near"),
    [(gd.systems, "prue", "pure"), (gd.signals, "Maths", "Math"), (gd.credit, "GroupNrm", "GroupNorm")],
)
def test_a_misspelt_name_of_a_room_is_answered_with_the_nearest(room, name, near):
    with pytest.raises(AttributeError, match=f"did you mean '{near}'"):
        getattr(room, name)


def test_nothing_is_suggested_where_nothing_is_near():
    assert nearest("zebra", ["pure", "par"]) == ""


def test_a_models_source_is_enough():
    system = gd.System({"a": Math()}, CHAIN, models={"reference": "path/to/model"})
    assert system.models["reference"] == gd.Model("path/to/model")


def test_the_number_of_a_link_in_an_error_is_the_printed_one():
    with pytest.raises(ChainError) as caught:
        gd.System({"a": Math(), "b": Math()}, [GroupNorm("a"), ToTokens("c")], name="mine")
    sound = gd.System({"a": Math()}, [GroupNorm("a"), ToTokens("a")], name="mine")
    number = next(line.split()[1].rstrip(".") for line in str(sound).splitlines() if "ToTokens" in line)
    assert f"link {number} " in str(caught.value)


@pytest.mark.parametrize("name", [*SYSTEMS, *VARIANTS])
def test_no_published_system_has_a_declaration_nothing_reads(name):
    """Building runs the checks of declarations over every part; a near-miss among our own attributes would fail here."""
    from guerdon.systems.base import describe

    assert name in describe(name)
