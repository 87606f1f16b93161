"""Rewards from how likely a language model finds a text. The instrument is `guerdon.lm.scorer`; here are aggregations and splices."""

from guerdon.signals.likelihood.reference_probability import ReferenceProbability, aggregate, splice_reference

__all__ = ["ReferenceProbability", "aggregate", "splice_reference"]
