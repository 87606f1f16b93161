"""Published systems, one module each: what it composes, its defaults, its citation. The table of contents of the library.

    system = guerdon.systems.pure(prm="path/or/hub-id")

A system is imported when it is first asked for. `guerdon.systems.pure` is the function that composes the system; its module is
`importlib.import_module("guerdon.systems.pure")` or, for its names, `from guerdon.systems.pure import VECTORS`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from guerdon.errors import nearest

if TYPE_CHECKING:
    from guerdon.systems.cdr import cdr
    from guerdon.systems.clip_delta import clip_delta
    from guerdon.systems.co_reward import co_reward, co_rewarding_ii, majority_vote
    from guerdon.systems.crm import crm
    from guerdon.systems.csr import csr, spoken_confidence
    from guerdon.systems.endogenous import endogenous
    from guerdon.systems.hybrid_multi_aspect import hybrid_multi_aspect
    from guerdon.systems.igpo import igpo
    from guerdon.systems.laser import laser
    from guerdon.systems.likelihood import likelihood, nover
    from guerdon.systems.noisy_rpr import noisy_rpr, rpr_calibrated
    from guerdon.systems.outcome import dr_grpo, gdpo, grpo, outcome, reinforce_pp, rloo
    from guerdon.systems.p2s import p2s
    from guerdon.systems.par import par
    from guerdon.systems.pure import pure, pure_sum
    from guerdon.systems.rlpr import rlpr
    from guerdon.systems.sar import sar


class Entry(NamedTuple):
    """Where a builder lives: `module` below guerdon.systems, and the function's name in it."""

    module: str
    builder: str


# slug -> where it is. A module's name differs from the slug only where the slug would shadow a builtin.
SYSTEMS: dict[str, Entry] = {
    "outcome": Entry("outcome", "outcome"),
    "pure": Entry("pure", "pure"),
    "clip_delta": Entry("clip_delta", "clip_delta"),
    "rlpr": Entry("rlpr", "rlpr"),
    "likelihood": Entry("likelihood", "likelihood"),
    "sar": Entry("sar", "sar"),
    "laser": Entry("laser", "laser"),
    "endogenous": Entry("endogenous", "endogenous"),
    "crm": Entry("crm", "crm"),
    "par": Entry("par", "par"),
    "hybrid_multi_aspect": Entry("hybrid_multi_aspect", "hybrid_multi_aspect"),
    "noisy_rpr": Entry("noisy_rpr", "noisy_rpr"),
    "igpo": Entry("igpo", "igpo"),
    "co_reward": Entry("co_reward", "co_reward"),
    "csr": Entry("csr", "csr"),
    "p2s": Entry("p2s", "p2s"),
    "cdr": Entry("cdr", "cdr"),
}

# Other names a composition goes by; buildable, but no entry of the catalogue.
VARIANTS: dict[str, Entry] = {
    "grpo": Entry("outcome", "grpo"),
    "dr_grpo": Entry("outcome", "dr_grpo"),
    "rloo": Entry("outcome", "rloo"),
    "reinforce_pp": Entry("outcome", "reinforce_pp"),
    "gdpo": Entry("outcome", "gdpo"),
    "pure_sum": Entry("pure", "pure_sum"),
    "rpr_calibrated": Entry("noisy_rpr", "rpr_calibrated"),
    "nover": Entry("likelihood", "nover"),
    "co_rewarding_ii": Entry("co_reward", "co_rewarding_ii"),
    "majority_vote": Entry("co_reward", "majority_vote"),
    "spoken_confidence": Entry("csr", "spoken_confidence"),
}

__all__ = [
    "SYSTEMS",
    "VARIANTS",
    "cdr",
    "clip_delta",
    "co_reward",
    "co_rewarding_ii",
    "crm",
    "csr",
    "dr_grpo",
    "endogenous",
    "gdpo",
    "grpo",
    "hybrid_multi_aspect",
    "igpo",
    "laser",
    "likelihood",
    "majority_vote",
    "noisy_rpr",
    "nover",
    "outcome",
    "p2s",
    "par",
    "preset",
    "pure",
    "pure_sum",
    "reinforce_pp",
    "rloo",
    "rlpr",
    "rpr_calibrated",
    "sar",
    "spoken_confidence",
]


def preset(name: str) -> dict[str, Any]:
    """The settings of a system's published runs as keyword arguments of trl.GRPOConfig: GRPOConfig("out", **preset("rlpr"), ...).

    They are of runs of billions of weights on many GPUs. A batch is yours to choose: TRL wants it divisible by `num_generations`.

    Args:
        name: of a system or a variant; options after a colon do not matter.

    Raises:
        ConfigError: an unknown name.
    """
    from guerdon.systems.base import settings_of

    return dict(settings_of(name).fields)


def __getattr__(name: str) -> Any:
    entry = SYSTEMS.get(name) or VARIANTS.get(name)
    if entry is None:
        raise AttributeError(f"guerdon.systems has no {name!r}{nearest(name, [*SYSTEMS, *VARIANTS])}")
    return getattr(importlib.import_module(f"guerdon.systems.{entry.module}"), entry.builder)


def __dir__() -> list[str]:
    return sorted({*globals(), *SYSTEMS, *VARIANTS})


class _Systems(ModuleType):
    """This package. Importing a submodule would put the module `pure` where the function `pure` belongs; here the function stays."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in SYSTEMS:
            return  # __getattr__ finds the function
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Systems
