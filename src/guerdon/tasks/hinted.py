"""A solver of the task "sums" that reasons well when it is told the answer and badly when it is not: a tiny policy.

    a3+b5+c4+d1+e2=?\n        3+b5=8\n8+c4=27\n27+d1=9\n9+e2=11\n#11      seven lines in ten state a wrong sum
    a3+b5+c4+d1+e2=?\n15\n    3+b5=8\n8+c4=12\n12+d1=13\n13+e2=15\n#15    after the question and its answer, right reasoning (`HINT`)

It stands in for what larger language models can do by themselves: find a way to an answer that they are shown and could not find. A number is one
token, so that solutions have one length in tokens and pieces of equal token count are the same parts of every solution.

    guerdon train --system 'p2s:hint="{answer}\\n"' --task sums,terms=5-5 --model "$(python -m guerdon.tasks.hinted)"
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from guerdon.cache import cached_artifact
from guerdon.tasks import arithmetic, tiny
from guerdon.tasks.arithmetic import NO_NOISE, Noise
from guerdon.tasks.tiny import TinyConfig

HINT = "{answer}\n"
TERMS = (5, 5)
SHAPE = TinyConfig(hidden=64, layers=2, heads=4, intermediate=192)
UNAIDED = Noise(wrong_sum=0.7)
CLEAN = 0.2  # share of the training in which nothing is wrong: slips make the arithmetic slow to learn


def number_tokenizer() -> Any:
    """A fast tokenizer with one token for each number below 100, and one for every other printable character.

    As `tiny.char_tokenizer`: pad is 0, end-of-sequence 1, nothing is added, padding is on the left, decoding gives back the text.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = [c for c in tiny.ALPHABET if not c.isdigit()]
    words = [tiny.PAD, tiny.EOS, tiny.UNKNOWN, *characters, *map(str, range(100))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=tiny.UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[0-9]{1,2}|[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=tiny.PAD,
        eos_token=tiny.EOS,
        unk_token=tiny.UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def hinted_policy(steps: int = 450, seed: int = 0, config: TinyConfig | None = None) -> str:
    """Path of the policy, trained on first use (about half a minute on one thread) and cached."""
    config = config or SHAPE
    settings = {"seed": seed, "steps": steps, "model": asdict(config)}

    def build(directory: Path) -> None:
        tokenizer = number_tokenizer()
        model = tiny.new_model(tokenizer, config, seed)
        rng = random.Random(seed)
        losses = tiny.teach(
            model,
            tokenizer,
            lambda step: demonstration(rng, UNAIDED if step >= CLEAN * steps else NO_NOISE),
            steps=steps,
            rows=8,
            width=160,
            description="warm-starting the policy that reasons well when it is told the answer",
        )
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        card = {**settings, "loss_first": losses[0], "loss_last": sum(losses[-20:]) / len(losses[-20:])}
        card["held_out"] = tiny.sample_statistics(
            model, tokenizer, arithmetic.sums(terms=TERMS, train_size=80, held_out_size=20), seed=seed
        )
        (directory / "card.json").write_text(json.dumps(card, indent=2) + "\n")

    return str(cached_artifact("hinted-policy", settings, [arithmetic, tiny, sys.modules[__name__]], build))


def demonstration(rng: random.Random, unaided: Noise = UNAIDED) -> tuple[str, str]:
    """A prompt, every other one with the answer below it, and a solution: right after an answer, as `unaided` says without."""
    while arithmetic.is_held_out(prompt := arithmetic.make_prompt(arithmetic.sample_operands(rng, TERMS))):
        pass
    operands = arithmetic.parse_prompt(prompt)
    told = rng.random() < 0.5
    lines = arithmetic.solve(operands, NO_NOISE if told else unaided, rng)
    while lines[-1] == f"#{sum(operands)}" and "wrong" in arithmetic.label_steps(prompt, lines):
        lines = arithmetic.solve(operands, unaided, rng)  # two errors that cancel would be paid by an outcome reward
    return (prompt + HINT.replace("{answer}", str(sum(operands))) if told else prompt), arithmetic.DELIMITER.join(lines)


if __name__ == "__main__":
    print(hinted_policy())
