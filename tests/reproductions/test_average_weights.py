"""WARM: the average of linear reward models is the reward model with the mean weights."""

import pytest
import torch

from guerdon.errors import ShapeError
from guerdon.signals.learned.merge import average_weights


def test_five_linear_reward_models_average_to_the_mean_of_their_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 16, generator=generator)
    models = [torch.nn.Linear(16, 1) for _ in range(5)]
    merged = torch.nn.Linear(16, 1)
    merged.load_state_dict(average_weights([model.state_dict() for model in models]))
    mean_weight = torch.stack([model.weight for model in models]).mean(0)
    mean_score = torch.stack([model(features) for model in models]).mean(0)
    assert torch.allclose(merged.weight, mean_weight, atol=1e-7)
    assert torch.allclose(merged(features), mean_score, atol=1e-6)


def test_weights_and_dtypes() -> None:
    states = [{"w": torch.tensor([0.0, 2.0], dtype=torch.bfloat16), "ids": torch.arange(3)} for _ in range(2)]
    states[1]["w"] = torch.tensor([4.0, 4.0], dtype=torch.bfloat16)
    merged = average_weights(states, [3.0, 1.0])
    assert merged["w"].tolist() == [1.0, 2.5] and merged["w"].dtype == torch.bfloat16
    assert merged["ids"].tolist() == [0, 1, 2]
    merged["ids"][0] = 7
    assert states[0]["ids"][0] == 0  # a copy, not a view of the first model


@pytest.mark.parametrize(
    ("states", "weights", "message"),
    [
        ([], None, "nothing to average"),
        ([{"a": torch.ones(1)}, {"b": torch.ones(1)}], None, "same parameters"),
        ([{"a": torch.ones(1)}, {"a": torch.ones(2)}], None, "shapes differ"),
        ([{"a": torch.ones(1)}, {"a": torch.ones(1)}], [1.0], "as many weights"),
        ([{"a": torch.tensor([1])}, {"a": torch.tensor([2])}], None, "cannot be averaged"),
    ],
)
def test_models_that_do_not_fit_are_refused(states: list, weights: list | None, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        average_weights(states, weights)
