"""Rewards from agreement: of rollouts with each other, of two wordings of one question, with a slowly moving teacher."""

from guerdon.signals.agreement.answers import boxed_as_written
from guerdon.signals.agreement.teacher import TeacherVote
from guerdon.signals.agreement.vote import CrossViewVote, SameViewVote, majority

__all__ = ["CrossViewVote", "SameViewVote", "TeacherVote", "boxed_as_written", "majority"]
