"""Scoring given text at an endpoint: against a local model behind a server on this machine, and against bad servers."""

from __future__ import annotations

import json

import pytest
import torch
from local_server import Scores, chat_answer, status

from guerdon import Rollouts
from guerdon.errors import CapabilityError, ConfigError
from guerdon.lm import Endpoint, LocalModel, PrefixScorer, RemoteModel, SpanScorer
from guerdon.lm.endpoint import FIRST
from guerdon.lm.scorer import NO_CONTEXT
from guerdon.signals.likelihood import ReferenceProbability

CONTEXTS = ["2+2=", "the answer to 17 * 3 is ", "", "2+2="]
TARGETS = ["4", "fifty-one", "ab", ""]


@pytest.fixture
def make(server, char_tokenizer, tmp_path):
    def endpoint(tokenizer=char_tokenizer, style=None, **options):
        remote = RemoteModel(
            "m", **({"base_url": server.url, "cache": tmp_path / "kept", "backoff_s": 0.01, "retries": 1} | options)
        )
        return Endpoint(remote, tokenizer, style=style)

    return endpoint


@pytest.mark.parametrize("style", ["echo", "prompt_logprobs"])
def test_in_ids_the_same_as_the_local_model(server, make, tiny_model, char_tokenizer, style):
    server.script = Scores(tiny_model, char_tokenizer, style)
    endpoint = make()
    local = SpanScorer(LocalModel(tiny_model, char_tokenizer))
    for _ in range(2):  # the style is found once, and answers are kept
        ours = SpanScorer(endpoint).score(CONTEXTS, TARGETS)
        expected = local.score(CONTEXTS, TARGETS)
        torch.testing.assert_close(ours.values, expected.values, atol=1e-4, rtol=1e-4, equal_nan=True)
        assert torch.equal(ours.ids, expected.ids) and torch.equal(ours.mask, expected.mask)
        assert ours.texts == expected.texts and ours.reasons == expected.reasons == {2: NO_CONTEXT}
    assert endpoint.style == style
    assert server.count == 3 + (style != "echo")  # three prompts with something to score; one more to find the style
    assert all(isinstance(body["prompt"], list) for body in server.bodies)


def test_targets_that_begin_another_share_a_request(server, make, tiny_model, char_tokenizer):
    server.script = Scores(tiny_model, char_tokenizer)
    SpanScorer(make()).score(["2+2=", "2+2=", "2+2"], ["4", "45", "=4"])
    assert server.count == 1


@pytest.mark.parametrize("style", ["echo", "prompt_logprobs"])
def test_by_text_without_a_tokenizer(server, make, tiny_model, char_tokenizer, style):
    server.script = Scores(tiny_model, char_tokenizer, style, ids=False)
    endpoint = make(tokenizer=None)
    scores = endpoint.score_texts(CONTEXTS, TARGETS)
    expected = SpanScorer(LocalModel(tiny_model, char_tokenizer)).score(CONTEXTS, TARGETS)
    torch.testing.assert_close(scores.values, expected.values, atol=1e-4, rtol=1e-4, equal_nan=True)
    assert torch.equal(scores.mask, expected.mask) and scores.texts == TARGETS
    assert torch.equal(scores.offsets[1, :9], expected.offsets[1, :9])
    assert scores.reasons == {2: FIRST}
    assert scores.sum()[3] == 0 and scores.mean()[3].isnan()
    if style == "prompt_logprobs":
        told = scores.mask & scores.values.isfinite()  # vLLM says nothing of the first token, not even its number
        assert torch.equal(scores.ids[told], expected.ids[told])
    with pytest.raises(ConfigError, match="tokenizer"):
        SpanScorer(endpoint)
    with pytest.raises(ConfigError, match="4 contexts and 1 targets"):
        endpoint.score_texts(CONTEXTS, ["x"])


def test_a_token_across_the_seam_belongs_to_the_target(server, make):
    block = {"tokens": ["2", "+2", "= ", "4", "!"], "token_logprobs": [None, -1.0, -2.0, -3.0, -9.0]}
    for offsets in (
        {"text_offset": [0, 1, 3, 5, 6]},
        {"text_offset": [9, 10, 12, 14, 15]},
        {},
    ):  # told, shifted, not told
        server.script = lambda body, nth, o=offsets: {"choices": [{"text": "2+2= 4!", "logprobs": block | o}]}
        scores = make(tokenizer=None, cache=False).score_texts(["2+2="], " 4")
        assert scores.values.tolist() == [[-2.0, -3.0]] and scores.offsets.tolist() == [[[0, 1], [1, 2]]]


def test_vllm_leaves_the_first_token_out(server, make):
    own = [
        None,
        {"7": {"logprob": -1.5, "rank": 1, "decoded_token": "+2="}},
        {"9": {"logprob": -0.5, "decoded_token": "4"}},
    ]
    server.script = lambda body, nth: {"choices": [{"text": "z", "prompt_logprobs": own}]}
    scores = make(tokenizer=None, style="prompt_logprobs").score_texts(["2+2="], "4")
    assert server.bodies[0]["prompt_logprobs"] == 0
    assert scores.values.tolist() == [[-0.5]] and scores.ids.tolist() == [[9]]


@pytest.mark.parametrize(
    "script",
    [
        lambda body, nth: status(404, "not found") if "completions" in body["_path"] else chat_answer(),
        lambda body, nth: {"choices": [{"index": 0, "text": "hello", "finish_reason": "length"}]},
        lambda body, nth: status(400, "echo is not supported"),
        lambda body, nth: chat_answer(),
    ],
    ids=["no-such-path", "ignores-it", "refuses-it", "answers-as-chat"],
)
def test_an_endpoint_that_does_not_score_text_is_refused_with_a_sentence(server, make, script):
    server.script = script
    with pytest.raises(CapabilityError, match="chat endpoint only tells those of tokens it samples itself"):
        SpanScorer(make(retries=0)).score(["a"], ["b"])


def test_the_address_of_a_chat_interface_is_refused_at_once(server, make):
    with pytest.raises(CapabilityError, match="address of a chat interface"):
        make(base_url=server.url + "/chat/completions")
    assert server.count == 0


def test_trouble_is_nan_with_a_reason_and_not_a_refusal(server, make, tiny_model, char_tokenizer):
    good = Scores(tiny_model, char_tokenizer)
    five = char_tokenizer("5")["input_ids"][-1]
    server.script = lambda body, nth: status(500, "boom") if five in body["prompt"] else good(body, nth)
    scores = SpanScorer(make()).score(["1+1=", "5+5=", "2+2="], ["2", "10", "4"])
    assert scores.values[1].isnan().all() and "boom" in scores.reasons[1] and set(scores.reasons) == {1}
    assert scores.values[[0, 2], 0].isfinite().all()
    server.script = lambda body, nth: status(503, "down")
    down = SpanScorer(make(cache=False)).score(["1"], ["2"])  # the very first request: nothing is known of the server
    assert down.values.isnan().all() and "503" in down.reasons[0]
    text = make(tokenizer=None, cache=False).score_texts(["1"], ["2"])
    assert text.values.isnan().all() and "503" in text.reasons[0] and text.mask.all()


def test_tokens_that_are_not_those_that_were_sent(server, make, tiny_model, char_tokenizer):
    honest = Scores(tiny_model, char_tokenizer)

    def shifted(body, nth):  # another vocabulary behind the same numbers
        return honest(body | {"prompt": [i + 1 for i in body["prompt"]]}, nth)

    server.script = shifted
    scores = SpanScorer(make()).score(["12+2="], ["34"])
    assert scores.values.isnan().all() and "not that of the served model" in scores.reasons[0]
    honest = Scores(tiny_model, char_tokenizer, "prompt_logprobs")
    scores = SpanScorer(make(cache=False, style="prompt_logprobs")).score(["12+2="], ["34"])
    assert scores.values.isnan().all() and "the server's is" in scores.reasons[0]

    def short(body, nth):
        return honest(body | {"prompt": body["prompt"][:-1]}, nth)

    server.script = short
    scores = SpanScorer(make(cache=False, style="prompt_logprobs")).score(["12+2="], ["34"])
    assert "gives 6 log-probabilities for a prompt of 7 tokens" in scores.reasons[0]


@pytest.mark.parametrize("options", [{"grad": True}, {"raw": True}, {"temperature": 0.7}, {"gather": "logsumexp"}])
def test_what_an_endpoint_cannot_give_is_refused(server, make, options):
    with pytest.raises(ConfigError, match="use a local model"):
        SpanScorer(make()).score(["a"], ["b"], **options)
    assert server.count == 0


def test_prefixes_at_an_endpoint(server, make, tiny_model, char_tokenizer):
    server.script = Scores(tiny_model, char_tokenizer)
    arguments = (["2+2"], ["is 4, so"], [[0, 4]], "44")
    ours = PrefixScorer(make()).score_prefixes(*arguments)
    expected = PrefixScorer(LocalModel(tiny_model, char_tokenizer)).score_prefixes(*arguments)
    torch.testing.assert_close(ours.values, expected.values, atol=1e-4, rtol=1e-4)
    assert ours.path == "endpoint"


RLPR = [
    {"prompt": "2+2=", "completion": "<think>two and two</think> <answer> 4 </answer>", "answer": "4"},
    {"prompt": "2+2=", "completion": "no tags", "answer": "4"},
    {"prompt": "3+5=", "completion": "<think>eight?</think> <answer> 9 </answer>", "answer": "eight"},
]


@pytest.mark.parametrize("style", ["echo", "prompt_logprobs"])
def test_reference_probability_local_and_at_an_endpoint(server, make, tiny_model, char_tokenizer, style):
    server.script = Scores(tiny_model, char_tokenizer, style)
    rollouts = Rollouts(
        prompts=[row["prompt"] for row in RLPR],
        completions=[row["completion"] for row in RLPR],
        columns={"answer": [row["answer"] for row in RLPR]},
    )
    found = []
    for model in (LocalModel(tiny_model, char_tokenizer), make()):
        signal = ReferenceProbability()
        for role in ("policy", "initial"):
            signal.bind(role, model)
        found.append(signal(rollouts))
    for name in ("score", "baseline"):
        torch.testing.assert_close(found[1][name].values, found[0][name].values, atol=1e-5, rtol=1e-4)
    assert found[0]["score"].values[1, 0] == 0 and found[0]["score"].values[0, 0] > 0


def test_guerdon_score_with_a_model_here_and_at_an_endpoint(server, tiny_model, char_tokenizer, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from guerdon.cli.main import app

    monkeypatch.setenv("GUERDON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    server.script = Scores(tiny_model, char_tokenizer)
    folder, source = tmp_path / "model", tmp_path / "in.jsonl"
    tiny_model.save_pretrained(folder)
    char_tokenizer.save_pretrained(folder)
    source.write_text("".join(json.dumps(row) + "\n" for row in RLPR))

    def score(target, *more):
        result = CliRunner().invoke(app, ["score", str(source), str(tmp_path / target), "--reward", "rlpr", *more])
        return result, tmp_path / target

    result, local = score("local.jsonl", "--model", str(folder))
    assert result.exit_code == 0, result.output
    result, remote = score("remote.jsonl", "--model", "m", "--endpoint", server.url, "--tokenizer", str(folder))
    assert result.exit_code == 0, result.output
    here, there = ([json.loads(line) for line in path.read_text().splitlines()] for path in (local, remote))
    assert [row["reward"] for row in there] == pytest.approx([row["reward"] for row in here], abs=1e-5)
    assert len({row["reward"] for row in here}) == 3
    assert server.count > 0

    for arguments, message in (
        (["--model", "m", "--endpoint", server.url + "/chat/completions", "--tokenizer", str(folder)], "chat"),
        (["--model", "m", "--endpoint", server.url, "--tokenizer", "/no/such/folder"], "--tokenizer"),
        (["--model", str(folder), "--tokenizer", str(folder)], "goes with --endpoint"),
        (["--endpoint", server.url], "give it with --model"),
    ):
        result, target = score("refused.jsonl", *arguments)
        assert result.exit_code != 0 and message in str(result.exception) and not target.exists()
    server.script = lambda body, nth: status(404, "this is a chat model")
    result, _ = score("refused.jsonl", "--model", "m2", "--endpoint", server.url, "--tokenizer", str(folder))
    assert isinstance(result.exception, CapabilityError) and "chat endpoint only" in str(result.exception)
