"""Preference data: from scored responses to pairs.

pairs      which two responses of a prompt become a pair, and how often a reward ranks pairs right
annotate   a file of prompts and responses -> a file of (prompt, chosen, rejected), by any reward
"""

from guerdon.preference.annotate import Annotation, annotate_file
from guerdon.preference.pairs import BestOfN, best_of_n_pair, draw_pair, pairwise_accuracy

__all__ = ["Annotation", "BestOfN", "annotate_file", "best_of_n_pair", "draw_pair", "pairwise_accuracy"]
