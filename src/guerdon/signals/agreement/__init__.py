"""Rewards from agreement: of rollouts with each other, of two wordings of one question, with a slowly moving teacher."""

from guerdon.signals.agreement.answers import boxed_as_written
from guerdon.signals.agreement.confidence import Confidence, cluster_by_equivalence, semantic_confidence
from guerdon.signals.agreement.semantic import Embedding, Entailment, SemanticAgreement, Synonyms, semantic_agreement
from guerdon.signals.agreement.teacher import TeacherVote
from guerdon.signals.agreement.vote import CrossViewVote, SameViewVote, majority

__all__ = [
    "Confidence",
    "CrossViewVote",
    "Embedding",
    "Entailment",
    "SameViewVote",
    "SemanticAgreement",
    "Synonyms",
    "TeacherVote",
    "boxed_as_written",
    "cluster_by_equivalence",
    "majority",
    "semantic_agreement",
    "semantic_confidence",
]
