"""An over-long solver of the task "sums": a tiny policy that is nearly always right and wastes half of its words.

It has seen sums solved tersely and sums solved with filler between the lines, so that being shorter costs nothing and filler changes
nothing about the answer; it is trained for long enough that this nearly holds for the policy too, since one that slips more often behind
filler unlearns it for the sake of the answer alone. One demonstration in five stands after an empty question (`NO_QUESTION`): the policy can say how probable a solution is
when nobody knows the question, as language models can, which have read texts without their questions.

    guerdon train --system 'sar:questionless="=?\\n"' --task sums,terms=3-3 --model "$(python -m guerdon.tasks.padded)"
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict
from pathlib import Path

from guerdon.cache import cached_artifact
from guerdon.tasks import arithmetic, tiny
from guerdon.tasks.arithmetic import Noise
from guerdon.tasks.tiny import TinyConfig

NO_QUESTION = "=?\n"
TERMS = (3, 3)
LONGEST = 80  # characters of the longest demonstration, prompt included: endless filler is not shown
SHAPE = TinyConfig(hidden=96, layers=3, heads=4, intermediate=256)


def padded_policy(steps: int = 1200, seed: int = 0, config: TinyConfig | None = None) -> str:
    """Path of the over-long policy, trained on first use (two minutes on one thread) and cached."""
    config = config or SHAPE
    settings = {"seed": seed, "steps": steps, "model": asdict(config)}

    def build(directory: Path) -> None:
        tokenizer = tiny.char_tokenizer()
        model = tiny.new_model(tokenizer, config, seed)
        rng = random.Random(seed)
        losses = tiny.teach(
            model,
            tokenizer,
            lambda _: demonstration(rng),
            steps=steps,
            rows=8,
            width=192,
            description="warm-starting the over-long policy",
        )
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        card = {**settings, "loss_first": losses[0], "loss_last": sum(losses[-20:]) / len(losses[-20:])}
        (directory / "card.json").write_text(json.dumps(card, indent=2) + "\n")

    return str(cached_artifact("padded-policy", settings, [arithmetic, tiny, sys.modules[__name__]], build))


def demonstration(rng: random.Random) -> tuple[str, str]:
    """A prompt and a right solution, terse or padded; for one in five the prompt has no question."""
    while True:
        while arithmetic.is_held_out(prompt := arithmetic.make_prompt(arithmetic.sample_operands(rng, TERMS))):
            pass
        noise = Noise(filler=rng.choice((0.0, 0.6, 0.6)), wrong_sum=0.01)
        solution = arithmetic.DELIMITER.join(arithmetic.solve(arithmetic.parse_prompt(prompt), noise, rng))
        if len(prompt) + len(solution) <= LONGEST:
            return NO_QUESTION if rng.random() < 0.2 else prompt, solution


if __name__ == "__main__":
    print(padded_policy())
