"""Rewards from how likely a language model finds a text. The instrument is `guerdon.lm.scorer`; here are aggregations and splices."""

from guerdon.signals.likelihood.aggregate import aggregate, token_weights
from guerdon.signals.likelihood.reference import ReferenceScorer
from guerdon.signals.likelihood.reference_probability import ReferenceProbability
from guerdon.signals.likelihood.splice import SPLICES, Splice, TagSplice, splice_reference

__all__ = [
    "SPLICES",
    "ReferenceProbability",
    "ReferenceScorer",
    "Splice",
    "TagSplice",
    "aggregate",
    "splice_reference",
    "token_weights",
]
