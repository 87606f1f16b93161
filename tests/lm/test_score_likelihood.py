"""`guerdon score` with every reward that reads the policy's own probabilities: one model here, and behind two kinds of server."""

from __future__ import annotations

import json
import math

import pytest
import torch
from local_server import Scores
from typer.testing import CliRunner

from guerdon.cli.main import app
from guerdon.errors import ConfigError

BEGIN = "<think>two and two</think> <answer"
ROWS = [
    {"prompt": "2+2=", "completion": f"{BEGIN}> 4 </answer>", "answer": "four"},
    {"prompt": "2+2=", "completion": "no tags", "answer": "four"},
    {"prompt": "2+2=", "completion": "<think>two or two, and then more</think><answer>5</answer>", "answer": "four"},
    {"prompt": "3+5=", "completion": "<think>eight?</think> <answer> 9 </answer>", "answer": ["eight", "8"]},
    {"prompt": "3+5=", "completion": "<think>e</think><answer>8</answer>", "answer": None},
]
LOG_FORMS = ("logprob", "mean_logprob")
FORMS = (*LOG_FORMS, "prob", "mean_prob", "geo_mean_prob", "verifree", "jepo", "jepo_single")
REWARDS = (
    *(f"likelihood:form={form}" for form in FORMS),
    "nover",
    "likelihood:form=nover",
    "rlpr",
    "relative_perplexity",
)


@pytest.fixture
def score(tmp_path, monkeypatch, tiny_model, char_tokenizer):
    """(reward, more arguments) -> the rows of the scored file."""
    monkeypatch.setenv("GUERDON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    folder, source, target = tmp_path / "model", tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    tiny_model.save_pretrained(folder)
    char_tokenizer.save_pretrained(folder)
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def run(reward, *arguments, url=None, model="m"):
        where = ["--model", model, "--endpoint", url, "--tokenizer", str(folder)] if url else ["--model", str(folder)]
        result = CliRunner().invoke(
            app, ["score", str(source), str(target), "--reward", reward, "--restart", *where, *arguments]
        )
        if result.exception is not None:
            raise result.exception
        return [json.loads(line) for line in target.read_text().splitlines()]

    return run


@pytest.fixture
def logprobs(tiny_model, char_tokenizer):
    """Log-probabilities of a text's characters after another text (after "" the end-of-sequence token), by a plain forward."""

    def read(context, target):
        ids = char_tokenizer(context + target)["input_ids"]
        ids, context = (ids, context) if context else ([char_tokenizer.eos_token_id, *ids], " ")
        with torch.no_grad():
            all_of_them = tiny_model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        begin = len(context)
        return all_of_them[range(begin - 1, len(ids) - 1), ids[begin:]]

    return read


@pytest.mark.parametrize("reward", [*REWARDS, "sar:verifier=exact"])
def test_the_same_here_and_at_an_endpoint(server, score, tiny_model, char_tokenizer, reward):
    here = score(reward)
    for style in ("echo", "prompt_logprobs"):
        server.script = Scores(tiny_model, char_tokenizer, style)
        there = score(reward, url=server.url, model=style)
        for ours, theirs in zip(here, there, strict=True):
            assert theirs["reward"] == pytest.approx(ours["reward"], abs=1e-4)
            assert theirs["reward_reason"] == ours["reward_reason"]
    assert server.count > 0
    if reward != "relative_perplexity":  # which reads no reference
        assert here[4]["reward"] is None and here[4]["reward_reason"]
    assert all(math.isfinite(row["reward"]) for row in here[:4])


def test_the_numbers_are_those_of_a_plain_forward(score, logprobs):
    tokens = logprobs(f"2+2={BEGIN}> ", "four")
    expected = {
        "logprob": tokens.sum(),
        "mean_logprob": tokens.mean(),
        "prob": tokens.sum().exp(),
        "mean_prob": tokens.exp().mean(),
        "geo_mean_prob": tokens.mean().exp(),
    }
    for form, value in expected.items():
        rows = score(f"likelihood:form={form}")
        assert rows[0]["reward"] == pytest.approx(float(value), rel=1e-4)
        # Without a place for the reference: 0 as a probability, and below the group's least as a logarithm.
        worst = min(rows[0]["reward"], rows[2]["reward"])
        assert rows[1]["reward"] == pytest.approx(worst - 1 if form in LOG_FORMS else 0.0)
        assert rows[1]["reward_reason"] == "likelihood: no '<answer' in the response"
        assert rows[4]["reward_reason"] == "likelihood: no reference in column 'answer'"
    best = max(logprobs("3+5=<think>eight?</think> <answer> ", text).exp().mean() for text in ("eight", "8"))
    assert score("likelihood:form=mean_prob")[3]["reward"] == pytest.approx(float(best), rel=1e-4)


def test_nover_ranks_by_perplexity(score, logprobs):
    """Two valid rows of the first group: format 1, rank 1 or 1/2, and 1 more where the other is longer and worse."""
    rows = score("nover")
    target = "\n<answer>\nfour\n</answer>"
    nll = [-logprobs(f"2+2={ROWS[i]['completion'].split('</think>')[0]}</think>\n", target).mean() for i in (0, 2)]
    parts = [row["reward_parts"] for row in rows]
    for part, value in zip((parts[0], parts[2]), nll, strict=True):
        assert part["proxy.raw"]["values"] == pytest.approx([float(value.exp())], rel=1e-4)
    better, worse = (
        (0, 2) if parts[0]["proxy.perplexity"]["values"] < parts[2]["proxy.perplexity"]["values"] else (2, 0)
    )
    shorter = len(ROWS[better]["completion"]) < len(ROWS[worse]["completion"])
    assert rows[better]["reward"] == pytest.approx(2.0 + shorter) and rows[worse]["reward"] == pytest.approx(1.5)
    assert rows[1]["reward"] == 0.0


def test_rlpr_is_debiased(score, logprobs):
    """0.9 x (mean probability after the reasoning, minus that after none, not below 0) + 0.1 x format."""
    after = logprobs(f"2+2={BEGIN}> ", "four").exp().mean()
    parts = score("rlpr")[0]
    assert parts["reward_parts"]["prob.score"]["values"] == pytest.approx([float(after)], rel=1e-4)
    baseline = parts["reward_parts"]["prob.baseline"]["values"][0]
    assert parts["reward"] == pytest.approx(0.9 * max(0.0, float(after) - baseline) + 0.1, abs=1e-5)


def test_sar_adds_to_a_verifier_by_name(score, logprobs):
    text = ROWS[0]["completion"]
    question, alone = -logprobs("2+2=", text).mean(), -logprobs("", text).mean()
    expected = max(-1.0, float(1 - (question - alone).exp()))
    assert score("relative_perplexity")[0]["reward"] == pytest.approx(expected, abs=1e-4)
    for reward in ("sar:verifier=qa:metric=f1,alpha=0.5", "sar:alpha=0.5,verifier=(qa:reference=answer,metric=f1)"):
        row = score(reward)[2]
        right = row["reward_parts"]["answer"]["values"][0]
        own = row["reward_parts"]["sar.score"]["values"][0]
        assert row["reward"] == pytest.approx(right + 0.5 * own, abs=1e-5)
    assert score("sar:verifier=answer_tag")[0]["reward"] == pytest.approx(1 + 0.2 * expected, abs=1e-4)


def test_turns_of_a_text_are_paid_without_what_is_only_logged(score, tmp_path):
    """Gain of the search turn plus F1 of the answer; the confidences before and after stand beside, and are no reward."""
    completion = "<search>a</search>\n[tool]\nIt is in Paris.\n[assistant]\n<answer>Paris</answer>"
    rows = [{"prompt": "Where?\n[assistant]\n", "completion": completion, "answer": "Paris"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (row,) = score("igpo", "--set", r"turn_header=\[(\w+)\]\n")
    gain, start, end, f1 = (
        row["reward_parts"][name]["values"] for name in ("gain.gain", "gain.start", "gain.end", "f1")
    )
    assert f1 == [1.0] and gain == pytest.approx([end[0] - start[0]], abs=1e-6)
    assert row["reward"] == pytest.approx(gain[0] + 1.0) and end[0] > 0


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("sar", "such as sar:verifier=math"),
        ("sar:verifier=maths", r"no signal 'maths' \(did you mean 'math'\?\): use one of math"),
        ("sar:verifier=math:gold=x", "math has no option gold"),
        ("conciseness", "needs model"),
    ],
)
def test_a_reward_that_lacks_a_part_says_so(score, reward, message):
    with pytest.raises(ConfigError, match=message):
        score(reward)
