"""What `--model` means: tiny, smollm2, a hub id or a path."""

from __future__ import annotations


def resolve_model(word: str) -> str:
    """What `--model` means: the tiny policy, or a path that transformers can load."""
    if word == "tiny":
        from guerdon.tasks import tiny_policy

        return str(tiny_policy())
    from guerdon.lm.load import materialise

    return materialise(word)
