"""The fake device refuses what a real one refuses, allows what it allows, and computes the CPU's numbers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from cuda_kit import characters, tiny
from transformers import AutoModelForCausalLM

from guerdon.lm import LocalModel, SpanScorer
from guerdon.testing import FakeCudaTensor, MixedDevices, fake_cuda, on_cpu, on_cuda

REFUSED = {
    "arithmetic": lambda cpu, cuda: cpu + cuda,
    "comparison": lambda cpu, cuda: cuda == cpu,
    "where": lambda cpu, cuda: torch.where(cpu > 0, cuda, 0.0),
    "matmul": lambda cpu, cuda: cpu @ cuda,
    "cat": lambda cpu, cuda: torch.cat([cpu, cuda]),
    "stack of numbers": lambda cpu, cuda: torch.stack([cpu[0], cuda[0]]),
    "cuda index into cpu": lambda cpu, cuda: cpu[cuda.long()],
    "cuda mask into cpu": lambda cpu, cuda: cpu[cuda > 0],
    "cpu values into cuda": lambda cpu, cuda: cuda.__setitem__(torch.tensor([0, 1, 2]), cpu),
    "cuda values by a list of rows": lambda cpu, cuda: cpu.__setitem__([0, 1, 2], cuda),
    "gather": lambda cpu, cuda: cpu.gather(0, cuda.long()),
    "index_fill": lambda cpu, cuda: cuda.index_fill(0, cpu.long(), 1.0),
    "in place": lambda cpu, cuda: cpu.add_(cuda),
    "cuda number beside cpu": lambda cpu, cuda: cpu * cuda.sum(),
    "bucketize": lambda cpu, cuda: torch.bucketize(cuda, cpu),
    "equal": lambda cpu, cuda: torch.equal(cpu, cuda),
    "generator": lambda cpu, cuda: torch.rand(3, device="cuda", generator=torch.Generator()),
}
ALLOWED = {
    "cpu number beside cuda": lambda cpu, cuda: cuda * cpu.sum(),
    "where with a cpu number": lambda cpu, cuda: torch.where(cuda > 1, cuda, torch.tensor(0.0)),
    "cpu index into cuda": lambda cpu, cuda: cuda[cpu.long()],
    "cpu mask into cuda": lambda cpu, cuda: cuda[cpu > 0],
    "copy across": lambda cpu, cuda: cuda.copy_(cpu),
    "moved first": lambda cpu, cuda: cpu.to(cuda) + cuda,
    "made there": lambda cpu, cuda: torch.arange(3, device=cuda.device) + cuda,
    "like it": lambda cpu, cuda: torch.zeros_like(cuda) + cuda.new_ones(3) + cuda,
    "index_put by cpu indices": lambda cpu, cuda: cuda.index_put((torch.tensor([0]),), cuda[:1]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mixing_is_refused(name: str) -> None:
    with fake_cuda(), pytest.raises(MixedDevices):
        REFUSED[name](torch.tensor([0.0, 1.0, 2.0]), on_cuda(torch.tensor([0.0, 1.0, 2.0])))


@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_device_allows_gives_the_cpus_numbers(name: str) -> None:
    expected = ALLOWED[name](torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 2.0]))
    with fake_cuda() as device:
        found = ALLOWED[name](torch.tensor([0.0, 1.0, 2.0]), on_cuda(torch.tensor([0.0, 1.0, 2.0])))
        assert found.device == device and found.is_cuda and isinstance(found, FakeCudaTensor)
    assert torch.equal(on_cpu(found), expected)


def test_numbers_come_back_and_numpy_does_not() -> None:
    with fake_cuda():
        there = torch.tensor([1.0, 2.0], device="cuda")
        assert there.tolist() == [1.0, 2.0] and float(there[1]) == 2.0 and bool((there > 0).all()) and len(there) == 2
        assert there.cpu().device.type == "cpu" and type(there.cpu()) is torch.Tensor
        for read in (lambda: there.numpy(), lambda: torch.tensor([[1.0]]).numpy() + there.__array__()):
            with pytest.raises(TypeError, match="cuda"):
                read()


def test_assigning_across_devices_follows_copy() -> None:
    with fake_cuda():
        cpu, cuda = torch.zeros(3), on_cuda(torch.ones(3))
        cpu[:2] = cuda[:2]
        cpu[torch.tensor([2])] = cuda[0] * 5  # a number without dimensions is moved
        assert cpu.tolist() == [1, 1, 5]


@pytest.mark.parametrize("how", [{"device": "cuda"}, {"device": "cuda", "dtype": torch.bfloat16}])
def test_a_module_goes_there_by_keywords(how: dict) -> None:
    with fake_cuda() as device:
        weight = torch.nn.Linear(2, 2).to(**how).weight
        assert (weight.device, weight.dtype) == (device, how.get("dtype", torch.float32))


def test_a_model_loads_as_without_it(tmp_path: Path) -> None:
    """Loading makes models on the meta device and fills buffers from numbers: neither is this device's business."""
    model, ids = tiny(), torch.arange(10)[None] + 3
    model.save_pretrained(tmp_path)
    with fake_cuda() as device:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
        torch.testing.assert_close(
            on_cpu(loaded.to(device)(input_ids=ids.to(device)).logits), model(input_ids=ids).logits
        )
        with torch.device("meta"):
            assert torch.tensor([1.0], device="cpu").device.type == "cpu" and torch.ones(2).device.type == "meta"


def test_a_model_goes_there_and_trains() -> None:
    model, other = tiny(tie_word_embeddings=True), tiny(tie_word_embeddings=True)
    ids = torch.arange(10).view(2, 5) + 3
    with fake_cuda() as device:
        assert model.to("cuda") is model and {p.device for p in model.parameters()} == {device}
        assert model.lm_head.weight is model.get_input_embeddings().weight
        with pytest.raises(MixedDevices):
            model(input_ids=ids)
        for one, place in ((model, "cuda"), (other, "cpu")):
            optimiser = torch.optim.AdamW(one.parameters(), lr=0.01)
            for _ in range(2):
                loss = one(input_ids=ids.to(place), labels=ids.to(place)).loss
                loss.backward()
                optimiser.step()
                optimiser.zero_grad()
        twin = copy.deepcopy(model)
        assert {p.device for p in twin.parameters()} == {device}
        for mine, theirs in zip(model.to("cpu").parameters(), other.parameters(), strict=True):
            assert type(mine) is torch.nn.Parameter
            torch.testing.assert_close(mine, theirs)


def test_instruments_read_and_sample_there() -> None:
    expected = LocalModel(tiny(), characters())
    with fake_cuda():
        lm = LocalModel(on_cuda(tiny()), characters())
        texts, targets = ["2+3=", "2+4=", "ab"], [" 5", " 6", "c"]
        here, there = (SpanScorer(one).score(texts, targets).values for one in (expected, lm))
        torch.testing.assert_close(on_cpu(there), here)
        drawn = [one.generate(texts, max_new_tokens=5, seed=3, logprobs=True) for one in (expected, lm)]
        assert drawn[0].texts == drawn[1].texts and drawn[1].ids.device.type == "cpu"
        torch.testing.assert_close(*(g.logprobs.values for g in drawn))
