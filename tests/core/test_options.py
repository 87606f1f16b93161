"""Options that are words: a misspelt one is refused with the words there are, by every part that takes one, and never means something else."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch

from guerdon.credit import (
    DropUniformGroups,
    Gate,
    GroupNorm,
    MinReturn,
    PerRewardNorm,
    Whiten,
    group_normalise,
    group_stats,
    whiten,
)
from guerdon.credit.link import LinkBase
from guerdon.errors import ConfigError
from guerdon.options import Words, checked, require_word, words_of
from guerdon.systems import SYSTEMS, VARIANTS


def modules(name: str) -> Iterator[Any]:
    module = importlib.import_module(name)
    yield module
    for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
        if found.name != "reproductions":
            yield from modules(f"{name}.{found.name}")


def parts() -> list[tuple[str, Callable[..., Any]]]:
    """Every link, signal, segmenter, objective and system builder that takes words."""
    builders = {(f"guerdon.systems.{entry.module}", entry.builder) for entry in {**SYSTEMS, **VARIANTS}.values()}
    found = []
    for package in ("credit", "signals", "segment", "objectives", "systems"):
        for module in modules(f"guerdon.{package}"):
            for name, part in vars(module).items():
                own = getattr(part, "__module__", None) == module.__name__ and not name.startswith("_")
                kind = inspect.isclass(part) or inspect.isfunction(part)
                if not own or not kind or (inspect.isclass(part) and issubclass(part, (tuple, Exception))):
                    continue
                wanted = (module.__name__, name) in builders if package == "systems" else name[:1].isupper()
                if wanted and taken(part):
                    found.append((f"{module.__name__}.{name}", part))
    return found


def taken(part: Any) -> dict[str, Words]:
    parameters = inspect.signature(part).parameters
    return {name: words for name, words in words_of(part).items() if name in parameters and str not in words.others}


def required(part: Any) -> dict[str, Any]:
    """What a link cannot be made without; the others check words before they look for what is missing."""
    if not (inspect.isclass(part) and issubclass(part, LinkBase)):
        return {}
    given = {"names": ("a", "b"), "weights": (1.0, 1.0)}
    bare = [
        p.name
        for p in inspect.signature(part).parameters.values()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    return {name: given.get(name, name) for name in bare}


def test_every_part_refuses_a_word_it_does_not_know() -> None:
    unchecked, seen = [], 0
    for where, part in parts():
        for name, words in taken(part).items():
            for wrong in ("no such word", *(() if words.others else (False, 0))):
                seen += 1
                try:
                    part(**{**required(part), name: wrong})
                except ConfigError as error:
                    assert f"{name}={wrong!r}" in str(error), (where, error)
                    assert all(repr(word) in str(error) for word in words.allowed), (where, error)
                except Exception as error:
                    unchecked.append(f"{where}({name}={wrong!r}): {type(error).__name__}: {error}")
                else:
                    unchecked.append(f"{where}({name}={wrong!r}) is taken")
    assert not unchecked, "\n".join(unchecked)
    assert seen > 150, "the walk over the package found the parts"


@pytest.mark.parametrize("value", ["populaton", "none", "None", False, True, 0, "", "SAMPLE"])
def test_a_std_that_is_none_of_the_three_is_refused(value: Any) -> None:
    values, groups = torch.tensor([1.0, 2.0]), torch.zeros(2, dtype=torch.long)
    for call in (
        lambda: GroupNorm(std=value),
        lambda: GroupNorm("x", value),
        lambda: group_normalise(values, groups, std=value),
        lambda: group_stats(values, groups, std=value),
    ):
        with pytest.raises(ConfigError, match=r"std=.*use 'sample'"):
            call()
    assert GroupNorm(std=None).std is None and GroupNorm(std="population").std == "population"


def test_the_words_there_are_and_the_nearest_one_are_named() -> None:
    with pytest.raises(
        ConfigError, match=r"std='populaton': use 'sample', 'population' or None \(did you mean 'population'\?\)"
    ):
        GroupNorm(std="populaton")  # type: ignore[arg-type]
    for call in (
        lambda: Whiten(eps_at="variances"),
        lambda: MinReturn("x", "ignored"),
        lambda: DropUniformGroups(singleton="dropped"),
        lambda: PerRewardNorm(std=None),
        lambda: Gate("a", "b", when="over"),
        lambda: whiten(torch.ones(1, 1), torch.ones(1, 1).bool(), eps_at="std "),
    ):
        with pytest.raises(ConfigError, match="use '"):
            call()


def test_words_beside_other_types() -> None:
    either = Words(("auto", None), (float,))
    require_word("x", "auto", either)
    require_word("x", None, either)
    require_word("x", 0.5, either)
    with pytest.raises(ConfigError, match="x='half': use 'auto' or None or another type"):
        require_word("x", "half", either)
    require_word("x", "any text", Words(("auto",), (str,)))


def test_functions_and_classes_of_the_callers_own() -> None:
    @checked
    def pick(value: int, *, how: Literal["low", "high"] = "low") -> str:
        """What it does."""
        return how

    assert pick(1, how="high") == "high" and pick.__doc__ == "What it does."
    assert "how" in inspect.signature(pick).parameters
    with pytest.raises(ConfigError, match=r"how='hihg'.*did you mean 'high'"):
        pick(1, how="hihg")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pick()  # type: ignore[call-arg]

    class Own(LinkBase):
        def __init__(self, side: Literal["left", "right"]) -> None:
            self.side = side

    assert Own("left").side == "left"
    with pytest.raises(ConfigError, match="side='up'"):
        Own("up")  # type: ignore[arg-type]
