"""One large wrong mode on a table: four answers, one of them with mass 0.7, a fresh random label for each group.

Nothing can be learned about the labels; what changes is how sure the policy is of what it cannot know.
"""

from __future__ import annotations

import torch

from guerdon.credit import group_normalise, signed_by_outcome


def mode_mass(lam: float, seed: int, *, norm_by_std: bool, updates: int = 300, groups: int = 16, size: int = 8, lr: float = 0.02) -> float:  # fmt: skip
    """Mass of the first answer after the updates, starting at 0.7.

    Args:
        lam: of CSR; 0 = correctness only.
        seed: of labels and samples.
        norm_by_std: divide advantages by the group's std.
        updates, groups, size, lr: updates of `groups` groups of `size` rollouts each, and the step size.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.tensor([0.7, 0.1, 0.1, 0.1]).log()
    ids = torch.arange(groups).repeat_interleave(size)
    for _ in range(updates):
        p = logits.softmax(0)
        draws = torch.multinomial(p, groups * size, replacement=True, generator=generator).view(groups, size)
        labels = torch.randint(4, (groups, 1), generator=generator)
        correct = (draws == labels).float()
        agreement = ((draws[:, :, None] == draws[:, None]).float().sum(2) - 1) / (size - 1)
        rewards = correct + lam * signed_by_outcome(agreement, correct)
        advantage = group_normalise(rewards.flatten(), ids, std="sample" if norm_by_std else None, eps=1e-6)
        pushed = torch.zeros(4).index_add_(0, draws.flatten(), advantage) / groups
        logits = logits + lr * (pushed - p * pushed.sum())
    return float(logits.softmax(0)[0])
