"""Segmenters: callables (Rollouts) -> Spans that cut completions into steps, turns, sentences, thoughts.

    ByDelimiter(tokenizer, "\\n\\n")    PURE's rule on token ids; without a tokenizer, the delimiter on the text
    ByRegex(pattern, mode=...)        a regular expression ends each span ("split") or is each span ("match")
    BySentence()                      a small rule set: abbreviations, initials, decimals, list numbers, CJK stops
    ByTag("think")                    what stands between <think> and </think>
    ByTurn()                          runs of the policy's own tokens, or chat turns by their header

Those that read the text give token spans where the rollouts have tokens (through `rollouts.offsets`, text is never
tokenised again) and character spans where they have none. `to_token_spans` moves any character spans to tokens.
"""

from guerdon.segment.delimiter import ByDelimiter, separator_ids
from guerdon.segment.placement import place, tile_tokens, to_token_spans
from guerdon.segment.text import ByRegex, BySentence, ByTag, ByTurn

__all__ = [
    "ByDelimiter",
    "ByRegex",
    "BySentence",
    "ByTag",
    "ByTurn",
    "place",
    "separator_ids",
    "tile_tokens",
    "to_token_spans",
]
