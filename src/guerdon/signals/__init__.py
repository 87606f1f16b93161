"""Where rewards come from, by family. Names are imported when first used, so one family's extras never break another's."""

from __future__ import annotations

import importlib
from typing import Any

from guerdon.errors import nearest

_HOMES = {
    "guerdon.signals.agreement": ("CrossViewVote", "SameViewVote", "SemanticAgreement", "TeacherVote"),
    "guerdon.signals.around": ("Diagnostic", "FailTruncated", "OnText", "Route"),
    "guerdon.signals.embedding": ("EmbeddingSimilarity", "HashedWords", "SentenceEmbedder", "cosine_similarity"),
    "guerdon.signals.learned.conciseness": ("Conciseness",),
    "guerdon.signals.learned.prm": ("StepClassifier",),
    "guerdon.signals.learned.scalar": ("RewardModel",),
    "guerdon.signals.likelihood.endogenous": ("EndogenousReward",),
    "guerdon.signals.likelihood.information_gain": ("InformationGain",),
    "guerdon.signals.likelihood.last_token": ("LastTokenScore",),
    "guerdon.signals.likelihood.relative_perplexity": ("RelativePerplexity",),
    "guerdon.signals.noise": ("Noisy",),
    "guerdon.signals.reward_function": ("EnvironmentReward", "RewardFunction"),
    "guerdon.signals.step_text": ("StepSignal", "step_signal"),
    "guerdon.signals.text": ("TextSignal", "text_signal"),
    "guerdon.signals.verifiable.patterns": ("ReasoningPatterns",),
    "guerdon.signals.verifiable.spoken": ("SpokenConfidence",),
    "guerdon.signals.verifiable": (
        "AnswerTag",
        "Exact",
        "Length",
        "Math",
        "MultipleChoice",
        "Numeric",
        "QA",
        "Repetition",
        "TaggedAnswer",
        "ThinkFormat",
        "Verdict",
        "check_math",
        "verify_math",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"guerdon.signals has no {name!r}{nearest(name, __all__)}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
