"""What a run is known by: options that differ from their defaults, versions, and the caller's code; not addresses, secrets or state."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from dataclasses import dataclass, field, make_dataclass
from typing import Any, ClassVar

import torch

from guerdon.credit import Clip, GroupNorm, On, Shape, ToTokens
from guerdon.identity import describe, differences
from guerdon.labels import label
from guerdon.lm.ema import ema_update_
from guerdon.redact import without_credentials
from guerdon.signals import Math, TextSignal
from guerdon.system import System


def compiled(source: str, name: str = "reward", **known: Any) -> Any:
    """A function as a user's script holds it."""
    scope: dict[str, Any] = {"__name__": "users_script", **known}
    exec(compile(source, "script.py", "exec"), scope)
    return scope[name]


def same(one: Any, other: Any) -> bool:
    return not differences(describe(one), describe(other))


# -- parts of the library ----------------------------------------------------------------------------------------------------


def test_a_link_is_known_by_what_differs_from_its_defaults():
    assert label(GroupNorm()) == "GroupNorm()"
    assert label(GroupNorm("reward", std="population")) == "GroupNorm('reward', std='population')"
    assert label(On("steps", Clip(0.5))) == repr(On("steps", Clip(0.5))) == "On('steps', Clip(eta=0.5))"
    assert "0x" not in label(On("steps", Shape(lambda x: x)))


def test_a_new_option_with_a_default_leaves_older_checkpoints_good_and_a_new_version_does_not():
    def link(*added: Any, **space: Any) -> Any:
        kind = make_dataclass(
            "Norm", [("name", str), ("eps", float, field(default=1e-4)), *added], frozen=True, namespace=space
        )
        return lambda **options: kind("reward", **options)

    old, new = link(), link(("floor", float, field(default=0.0)))
    assert label(old()) == label(new()) and label(new()) != label(new(floor=0.1))
    assert label(old(eps=1e-6)) == label(new(eps=1e-6)) != label(old())
    assert label(link(version=2)()) == "Norm@2('reward')" != label(old())

    @dataclass(frozen=True)
    class Outer:
        inner: Any

    assert label(Outer(link(version=2)())) != label(Outer(old())), "a version counts wherever the part stands"


def test_a_system_loads_the_state_of_one_with_the_same_chain_only():
    def system(**options: Any) -> System:
        return System({"a": Math()}, [GroupNorm("a", **options), ToTokens("a", placement="whole")])

    state = system().state_dict()
    system(eps=GroupNorm().eps).load_state_dict(state)
    assert state["chain"] == ["OnFailure()", "GroupNorm('a')", "ToTokens('a', placement='whole')"]


def test_options_of_signals_made_by_factories_are_seen_and_harmless_ones_are_not():
    assert same(Math(), Math()) and same(Math(), Math(workers=3)) and same(Math(), Math(timeout_s=9.0))
    assert not same(Math(), Math(max_chars=7)) and not same(Math(), Math(reference="gold"))


# -- the caller's code -------------------------------------------------------------------------------------------------------


def test_changed_code_constants_helpers_and_closures_are_seen_and_comments_are_not():
    plain = compiled("def reward(text):\n    return len(text) * 0.5\n")
    assert same(
        plain, compiled("\n\n# longer\ndef reward(text):\n    '''Half.'''\n    return len(text) * 0.5  # half\n")
    )
    assert not same(plain, compiled("def reward(text):\n    return len(text) * 0.25\n"))
    assert not same(plain, compiled("def reward(text):\n    return text.count('a') * 0.5\n"))
    helped = "def help(x):\n    return x + {}\ndef reward(text):\n    return help(len(text))\n"
    assert not same(compiled(helped.format(1)), compiled(helped.format(2)))
    weighted = "W = {}\ndef reward(text):\n    return W * len(text)\n"
    assert same(compiled(weighted.format(1)), compiled(weighted.format(1)))
    assert not same(compiled(weighted.format(1)), compiled(weighted.format(2)))
    made = "def make(k):\n    def reward(text):\n        return sum(w in text for w in k)\n    return reward\n"
    assert not same(compiled(made, "make")(["a"]), compiled(made, "make")(["b"]))
    assert not same(functools.partial(plain, 1), functools.partial(plain, 2))
    assert not same(compiled("def reward(t, k=1):\n    return k\n"), compiled("def reward(t, k=2):\n    return k\n"))


def test_lambdas_inside_a_signal_are_seen():
    def signal(check: Any) -> TextSignal:
        return TextSignal(check, name="short")

    assert same(signal(lambda texts, columns: [1]), signal(lambda texts, columns: [1]))
    assert not same(signal(lambda texts, columns: [1]), signal(lambda texts, columns: [2]))


def test_what_code_writes_to_is_state():
    source = "SEEN = []\nCALLS = 0\ndef reward(text):\n    global CALLS\n    CALLS += 1\n    SEEN.append(text)\n    return 1.0\n"
    before, after = compiled(source), compiled(source)
    after("x")
    assert same(before, after)
    cached = "CACHE = {}\ndef reward(text):\n    if text not in CACHE:\n        CACHE[text] = len(text)\n    return CACHE[text]\n"
    before, after = compiled(cached), compiled(cached)
    after("x")
    assert same(before, after)


class Counting:
    rate: ClassVar[float] = 1.0

    def __init__(self, weight: float, words: list[str], api_key: str = "k") -> None:
        self.weight, self.words, self.api_key = weight, words, api_key
        self.calls, self.timeout_s, self.counts = 0, 5.0, Counter()
        self.seen: list[str] = []
        self.lock = __import__("threading").Lock()

    def __call__(self, text: str) -> float:
        self.calls += 1
        self.seen.append(text)
        return self.weight


def test_an_object_is_known_by_its_options_not_by_its_state_or_secrets():
    first, second = Counting(0.5, ["a"]), Counting(0.5, ["a"], api_key="other")
    second("x")
    second.timeout_s = 60.0
    assert same(first, second) and "other" not in json.dumps(describe(second))
    assert differences(describe(first), describe(Counting(0.7, ["a"]))) == ["weight: 0.5 -> 0.7"]
    assert differences(describe(first), describe(Counting(0.5, ["b"]))) == ['words[0]: "a" -> "b"']


def test_the_same_code_in_another_class_and_recursion():
    changed = type("Counting", (), {**vars(Counting), "rate": 2.0})
    assert not same(Counting, changed) and same(Counting, Counting)
    loop: list[Any] = [1]
    loop.append(loop)
    assert describe(loop) == [1, "(itself)"]


def test_other_values_are_data():
    values = [
        None,
        True,
        3,
        float("nan"),
        "text" * 100,
        b"x",
        re.compile("a+"),
        {1, 2},
        torch.tensor([1.0]),
        torch.bfloat16,
    ]
    values += [ema_update_, len, torch.nn.Linear(2, 2), Counting]
    described = describe(values)
    assert json.loads(json.dumps(described)) == described
    assert not same(torch.tensor([1.0]), torch.tensor([2.0])) and not same(
        torch.tensor([1.0]), torch.tensor([1.0]).double()
    )
    assert same(torch.ones(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16))


def test_another_python_compiles_other_bytecode():
    one, other = (
        describe(compiled("def reward(t):\n    return 1\n")),
        describe(compiled("def reward(t):\n    return 2\n")),
    )
    assert differences(one, other) and not differences(one, other, same_python=False)


def test_addresses_are_shown_without_credentials():
    cases = {
        "https://me:secret@host:8000/v1": "https://host:8000/v1",
        "RemoteModel('m', base_url='http://tok@en@host/v1')": "RemoteModel('m', base_url='http://host/v1')",
        "https://host/v1?api_key=abc&n=1": "https://host/v1?api_key=***&n=1",
        "write to me@example.org, or a:b@c": "write to me@example.org, or a:b@c",
    }
    assert {text: without_credentials(text) for text in cases} == cases
