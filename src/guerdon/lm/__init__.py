"""Language models as instruments: load, generate, score spans, ask judges. Nothing here knows a reward.

load      a hub id, a folder, a GGUF or a short name          forward   one forward pass done right
local     generate, log-probabilities, hidden states          scorer    the span scorer
encode    prompts and continuations to ids                    offsets   characters of tokens, from our own decoding
chat      replies, the ChatModel protocol, scripted models    remote    an OpenAI-compatible endpoint
prefixes  targets after many beginnings of rollouts         shared    the forward that runs what is common once
endpoint  a remote model that scores given text              scores    what scoring gives
packing   which tokens need a forward at all                judging   parse-validated answers, voted
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guerdon.lm.chat import ChatModel, Reply, ScriptedModel, TokenLogProb
    from guerdon.lm.encode import Spliced, encode_continuation, encode_prompt, encode_with_target
    from guerdon.lm.endpoint import Endpoint
    from guerdon.lm.judging import Verdicts, judge
    from guerdon.lm.load import load_model, load_tokenizer, materialise, save_model
    from guerdon.lm.local import Generations, LocalModel
    from guerdon.lm.offsets import decode_offsets, decode_offsets_batch, overlapping_tokens
    from guerdon.lm.prefixes import PrefixScorer, PrefixScores
    from guerdon.lm.remote import RemoteModel
    from guerdon.lm.scorer import SpanScorer, SpanScores
    from guerdon.lm.shared import NaivePathWarning, SharedForward

__all__ = [
    "ChatModel",
    "Endpoint",
    "Generations",
    "LocalModel",
    "NaivePathWarning",
    "PrefixScorer",
    "PrefixScores",
    "RemoteModel",
    "Reply",
    "ScriptedModel",
    "SharedForward",
    "SpanScorer",
    "SpanScores",
    "Spliced",
    "TokenLogProb",
    "Verdicts",
    "decode_offsets",
    "decode_offsets_batch",
    "encode_continuation",
    "encode_prompt",
    "encode_with_target",
    "judge",
    "load_model",
    "load_tokenizer",
    "materialise",
    "overlapping_tokens",
    "save_model",
]

_HOMES = {
    "chat": ("ChatModel", "Reply", "ScriptedModel", "TokenLogProb"),
    "encode": ("Spliced", "encode_continuation", "encode_prompt", "encode_with_target"),
    "endpoint": ("Endpoint",),
    "judging": ("Verdicts", "judge"),
    "load": ("load_model", "load_tokenizer", "materialise", "save_model"),
    "local": ("Generations", "LocalModel"),
    "offsets": ("decode_offsets", "decode_offsets_batch", "overlapping_tokens"),
    "prefixes": ("PrefixScorer", "PrefixScores"),
    "remote": ("RemoteModel",),
    "scorer": ("SpanScorer", "SpanScores"),
    "shared": ("NaivePathWarning", "SharedForward"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Modules are imported when a name of theirs is first used: `import guerdon` stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'guerdon.lm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"guerdon.lm.{_HOME[name]}"), name)
