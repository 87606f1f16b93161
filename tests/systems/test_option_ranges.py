"""Numeric options of systems: outside their range they are refused by name, with the value, before anything is sampled."""

import inspect

import pytest

import guerdon
from guerdon.errors import ConfigError
from guerdon.options import require_range
from guerdon.signals import Math
from guerdon.systems import SYSTEMS, VARIANTS
from guerdon.systems.base import builder_of

NAN, INF = float("nan"), float("inf")


def sar(**options):
    return guerdon.systems.sar(verifier=Math(), **options)


def laser(**options):
    return guerdon.systems.laser(verifier=Math(), **options)


@pytest.mark.parametrize(
    ("builder", "option", "values"),
    [
        (guerdon.systems.rlpr, "format_coefficient", [-0.5, -2, 1.5, NAN, INF, "a", True]),
        (guerdon.systems.rlpr, "std_beta", [-1, NAN]),
        (guerdon.systems.rlpr, "std_ratio", [-0.1, 1.5]),
        (guerdon.systems.rlpr, "std_start", [-1]),
        (guerdon.systems.rlpr, "temperature", [0, -1, NAN]),
        (sar, "alpha", [-1, NAN, INF]),
        (sar, "base", [-1, NAN]),
        (sar, "clip_value", [0, -1, NAN]),
        (sar, "peak", [-1, 2]),
        (sar, "bottom", [-1, 2]),
        (sar, "gamma", [-1, 2]),
        (sar, "lam", [-1, 2]),
        (sar, "short", [-1]),
        (laser, "coefficient", [-1, NAN, INF]),
        (laser, "mix", [-1, 2, NAN]),
        (laser, "std_threshold", [-1, NAN]),
        (laser, "beta", [0, -1, NAN]),
        (laser, "warmup", [-1]),
        (laser, "mix_after", [-1]),
    ],
)
def test_numbers_outside_their_range_are_refused(builder, option, values):
    for value in values:
        with pytest.raises(ConfigError):
            builder(**{option: value})


PARTS = {"verifier": Math(), "prm": "a/prm", "rm": "an/rm", "crm": "a/crm", "strong": "a/b", "weak": "c/d"}


@pytest.mark.parametrize("name", [name for name in [*SYSTEMS, *VARIANTS] if name != "gdpo"])
def test_no_system_takes_a_number_that_is_none(name):
    """NaN passes every comparison: an option of NaN would make all advantages NaN, or none, without a word."""
    builder = builder_of(name)
    parameters = inspect.signature(builder).parameters
    needed = {key: PARTS[key] for key, p in parameters.items() if p.default is p.empty}
    for key, parameter in parameters.items():
        if isinstance(parameter.default, float):
            for value in (NAN, INF):
                with pytest.raises(ConfigError):
                    builder(**needed, **{key: value})
                    pytest.fail(f"{name}({key}={value}) was accepted")


def test_the_ends_of_a_range_and_off_are_fine():
    assert guerdon.systems.rlpr(format_coefficient=0) and guerdon.systems.rlpr(format_coefficient=1, std_beta=None)
    assert sar(alpha=0, clip_value=None) and laser(coefficient=0, mix=0)


def test_the_message_has_name_value_and_range():
    with pytest.raises(ConfigError, match=r"^lam=1.5: a number in \[0, 1\]$"):
        require_range(0, 1, lam=1.5)
    with pytest.raises(ConfigError, match=r"^alpha=-1: a number of at least 0$"):
        require_range(0, alpha=-1)
    with pytest.raises(ConfigError, match=r"^x=0: a number above 0$"):
        require_range(0, above=True, x=0)
    require_range(0, 1, x=None)
