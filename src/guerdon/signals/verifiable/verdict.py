"""Verdict, under the name it has in this family; it lives in `guerdon.signals.verdict`, because other families use it too."""

from guerdon.signals.verdict import Verdict, any_of, instrument_failure, shown

__all__ = ["Verdict", "any_of", "instrument_failure", "shown"]
