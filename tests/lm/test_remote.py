"""The remote client against a server on this machine that also misbehaves. The server counts what it was really asked."""

from __future__ import annotations

import asyncio
import fcntl
import json
import pickle
import re
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from local_server import chat_answer, cut, dripping, send, slow, status

from guerdon.errors import ConfigError
from guerdon.lm.background import run
from guerdon.lm.chat import ChatModel
from guerdon.lm.judging import judge
from guerdon.lm.kept import FILE, KeptAnswers
from guerdon.lm.remote import RemoteModel


@pytest.fixture
def client(server, tmp_path):
    def make(**options):
        return RemoteModel(
            "m",
            **(
                {
                    "base_url": server.url,
                    "cache": tmp_path / "cache",
                    "backoff_s": 0.01,
                    "timeout_s": 5.0,
                    "api_key": "secret",
                }
                | options
            ),
        )

    return make


def test_replies_in_order(server, client):
    model = client()
    assert isinstance(model, ChatModel)
    replies = model.chat([f"p{i}" for i in range(20)])
    assert [r.text for r in replies] == [f"echo: p{i}" for i in range(20)]
    assert replies[0].prompt_tokens == 3 and replies[0].attempts == 1 and not replies[0].cached
    assert server.bodies[0]["model"] == "m" and server.bodies[0]["_path"] == "/v1/chat/completions"


@pytest.mark.parametrize(
    "trouble",
    [
        status(500),
        status(503),
        status(429),
        cut,
        lambda handler: send(handler, 200, b'{"choices": [{"mess'),
        lambda handler: send(handler, 200, b"<html>gateway</html>"),
        {"choices": []},
        {"choices": None},
        {"choices": [{"index": 0}]},
        [1],
    ],
    ids=["500", "503", "429", "cut", "truncated", "html", "empty", "none", "no-message", "list"],
)
def test_trouble_is_tried_again(server, client, trouble):
    server.script = lambda body, nth: trouble if nth <= 2 else chat_answer("at last")
    (reply,) = client().chat(["x"])
    assert (reply.text, reply.attempts, server.count) == ("at last", 3, 3)


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (status(500, "boom"), "500: .*boom"),
        (cut, "connection failed or was cut"),
        (lambda handler: send(handler, 200, b"{"), "no JSON"),
        ({"choices": []}, "no choices"),
    ],
)
def test_lasting_trouble_is_a_reply_with_a_reason(server, client, trouble, reason):
    server.script = lambda body, nth: trouble
    model = client(retries=2)
    (reply,) = model.chat(["x"])
    assert reply.text is None and reply.retryable and reply.attempts == 3 == server.count
    assert re.search(reason, reply.error) and "after 3 tries" in reply.error
    server.script = lambda body, nth: chat_answer("well again")
    assert model.chat(["x"])[0].text == "well again"  # failures are not kept


@pytest.mark.parametrize("trouble", [slow(1.5), dripping], ids=["slow", "dripping"])
def test_timeout(server, client, trouble):
    server.script = lambda body, nth: trouble
    started = time.monotonic()
    (reply,) = client(timeout_s=0.3, retries=1).chat(["x"])
    assert "no answer within 0.3 s" in reply.error and server.count == 2
    assert time.monotonic() - started < 1.4


def test_retry_after_is_honoured(server, client):
    server.script = lambda body, nth: status(429, "slow down", Retry_After="0.4") if nth == 1 else chat_answer()
    assert client().chat(["x"])[0].ok
    assert 0.4 <= server.times[1] - server.times[0] < 1.5


def test_too_long_a_pause_is_given_up(server, client):
    server.script = lambda body, nth: status(429, "slow down", Retry_After="3600")
    (reply,) = client().chat(["x"])
    assert "3600" in reply.error and server.count == 1


def test_connection_refused(client):
    (reply,) = client(base_url="http://127.0.0.1:9/v1", retries=1).chat(["x"])
    assert "connection" in reply.error and reply.attempts == 2


@pytest.mark.parametrize(
    ("code", "remedy"), [(401, "API key"), (404, "base_url"), (403, "may not use"), (400, "refuses")]
)
def test_what_asking_again_cannot_mend_fails_at_once(server, client, code, remedy):
    server.script = lambda body, nth: status(code, "the server's own words")
    replies = client(concurrency=1).chat([f"p{i}" for i in range(10)])
    assert all(not r.ok and not r.retryable and remedy in r.error and "own words" in r.error for r in replies)
    assert "secret" not in replies[0].error
    assert server.count == (10 if code == 400 else 1)  # 400 may be about one prompt; the others are about all of them


def test_exhausted_quota_is_not_tried_again(server, client):
    document = {"error": {"message": "pay", "code": "insufficient_quota", "type": "insufficient_quota"}}
    server.script = lambda body, nth: lambda handler: send(handler, 429, document)
    assert "quota" in client().chat(["x"])[0].error and server.count == 1


def test_cache_survives_a_new_client(server, client):
    first = client().chat(["a", "b"])
    again = client().chat(["b", "a", "c"])
    assert [r.text for r in again] == ["echo: b", "echo: a", "echo: c"]
    assert [r.cached for r in again] == [True, True, False]
    assert server.count == 3 and first[0].attempts == 1 and again[1].attempts == 0


def test_whole_request_is_the_key(server, client):
    model = client()
    model.chat(["a"])
    model.chat(["a"], temperature=0.5)
    model.chat(["a"], max_tokens=7)
    model.chat(["a"], stop=["x"])
    model.chat(["a"], draws=[1])
    client(extra={"seed": 3}).chat(["a"])
    assert server.count == 6 and server.bodies[-1]["seed"] == 3
    model.chat(["a"], draws=[1])
    client(api_key="another key, same answers").chat(["a"])
    assert server.count == 6


def test_no_cache(server, client):
    model = client(cache=False)
    model.chat(["a"])
    model.chat(["a"])
    assert server.count == 2


def test_unreadable_cache_entry_is_bought_again(server, client):
    model = client()
    model.chat(["a"])
    with sqlite3.connect(model.kept.folder / FILE) as store:
        store.execute("UPDATE replies SET reply = ?", ('{"text": ',))
    assert client().chat(["a"])[0].text == "echo: a" and server.count == 2
    assert client().chat(["a"])[0].cached


def test_identical_requests_in_flight_are_sent_once(server, client):
    def answer(body, nth):
        time.sleep(0.2)
        return chat_answer(body["messages"][0]["content"])

    server.script = answer
    one, two = client(), client()
    results = []
    threads = [
        threading.Thread(target=lambda m=m: results.append(m.chat(["same"] * 5 + ["other"])))
        for m in (one, one, two, two)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[r.text for r in replies] for replies in results] == [["same"] * 5 + ["other"]] * 4
    assert server.count == 2
    assert sum(not r.cached for replies in results for r in replies) == 2  # who paid


def test_deduplication_without_a_disk_cache(server, client):
    server.script = lambda body, nth: slow(0.2)
    replies = client(cache=False).chat(["same"] * 8)
    assert server.count == 1 and all(r.ok for r in replies)


def test_concurrency_limit(server, client):
    server.script = lambda body, nth: slow(0.05)
    client(concurrency=3).chat([f"p{i}" for i in range(12)])
    assert server.most_under_way == 3 and server.count == 12


def test_inside_a_running_event_loop(server, client):
    model = client()

    async def main():
        blocking = model.chat(["a"])
        awaited = await model.achat(["a", "b"])
        return [r.text for r in blocking + awaited]

    assert asyncio.run(main()) == ["echo: a", "echo: a", "echo: b"]
    assert server.count == 2


def test_waiting_for_oneself_is_refused(client):
    async def inside():
        return client().chat(["a"])

    with pytest.raises(RuntimeError, match="wait for itself"):
        run(inside())


def test_cancelled_call_does_not_send_what_queues(server, client):
    server.script = lambda body, nth: slow(0.3)
    model = client(concurrency=2)

    async def main():
        task = asyncio.create_task(model.achat([f"p{i}" for i in range(50)]))
        while server.count < 2:  # both places are taken
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    time.sleep(0.6)
    assert server.count == 2
    assert all(r.cached for r in model.chat(["p0", "p1"]))  # what was paid for is kept


def test_chat_logprobs(server, client):
    tokens = [
        {
            "token": "yes",
            "logprob": -0.1,
            "top_logprobs": [{"token": "yes", "logprob": -0.1}, {"token": "no", "logprob": -2.4}],
        }
    ]
    server.script = lambda body, nth: chat_answer("yes", logprobs={"content": tokens})
    (reply,) = client().chat(["a"], logprobs=True, top_logprobs=2)
    assert server.bodies[0]["logprobs"] is True and server.bodies[0]["top_logprobs"] == 2
    assert reply.logprobs[0].logprob == -0.1 and reply.logprobs[0].top == {"yes": -0.1, "no": -2.4}
    assert client().chat(["a"], logprobs=True, top_logprobs=2)[0].logprobs == reply.logprobs  # through the cache
    server.script = lambda body, nth: chat_answer("yes")
    assert client().chat(["b"], logprobs=True)[0].logprobs is None


def test_answer_without_text_is_not_bought_again(server, client):
    server.script = lambda body, nth: chat_answer(None, finish_reason="content_filter")
    (reply,) = client().chat(["a"])
    assert "content_filter" in reply.error and server.count == 1 and not reply.cached
    (again,) = client().chat(["a"])  # another run
    assert again.cached and again.error == reply.error and not again.retryable and server.count == 1
    client().chat(["a"], draws=[1])
    assert server.count == 2, "another draw is another request"


@pytest.mark.parametrize("nothing", ["", "  \n"])
def test_an_empty_answer_is_tried_again_and_never_kept(server, client, nothing):
    server.script = lambda body, nth: chat_answer(nothing if nth <= 2 else "yes")
    assert client().chat(["a"])[0].text == "yes" and server.count == 3
    server.script = lambda body, nth: chat_answer(nothing)
    model = client(retries=1)
    (reply,) = model.chat(["b"])
    assert not reply.ok and "empty" in reply.error and "after 2 tries" in reply.error and server.count == 5
    server.script = lambda body, nth: chat_answer("now")
    assert client().chat(["b"])[0].text == "now", "a failure is not kept"


def test_an_answer_cut_before_it_began_is_kept_with_the_remedy(server, client):
    server.script = lambda body, nth: chat_answer("", finish_reason="length")
    assert "max_tokens" in client().chat(["a"])[0].error
    assert client().chat(["a"])[0].cached and server.count == 1
    server.script = lambda body, nth: chat_answer("yes")
    assert client().chat(["a"], max_tokens=9999)[0].text == "yes"


ASK = """
import sys
from guerdon.lm import RemoteModel
url, folder, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = RemoteModel("m", base_url=url, cache=folder, concurrency=4, backoff_s=0.01)
replies = model.chat([f"question {n}" for n in range(size)])
print(sum(r.ok for r in replies), model.counts["requests"])
"""


def start(server, folder, size):
    return subprocess.Popen(
        [sys.executable, "-c", ASK, server.url, str(folder), str(size)], stdout=subprocess.PIPE, text=True
    )


def test_two_processes_with_one_cache_pay_once(server, tmp_path):
    server.script = lambda body, nth: slow(0.03)
    pair = [start(server, tmp_path, 60) for _ in range(2)]
    told = [process.communicate(timeout=120)[0].split() for process in pair]
    assert [int(ok) for ok, _ in told] == [60, 60]
    assert server.count == sum(int(sent) for _, sent in told) == 60, "nothing was asked twice"
    assert min(int(sent) for _, sent in told) > 0, "both bought their share"


def test_a_claim_ends_with_its_process(server, client, tmp_path):
    asked = threading.Event()

    def never(handler):
        asked.set()
        time.sleep(30)

    server.script = lambda body, nth: never if nth == 1 else chat_answer("yes")
    first = start(server, tmp_path / "c", 1)
    assert asked.wait(60)
    began = time.monotonic()
    results = []
    other = threading.Thread(target=lambda: results.extend(client(cache=tmp_path / "c").chat(["question 0"])))
    other.start()
    time.sleep(0.5)
    assert server.count == 1 and other.is_alive(), "it waits for the answer that is under way"
    first.kill()
    first.wait()
    other.join(20)
    assert results[0].text == "yes" and server.count == 2 and time.monotonic() - began < 20


def test_a_lease_that_ran_out_holds_nobody(tmp_path):
    other = KeptAnswers(tmp_path)
    with sqlite3.connect(tmp_path / FILE) as store:
        handle = (tmp_path / "owners" / "alive").open("w")
        fcntl.flock(handle, fcntl.LOCK_EX)
        store.execute("INSERT INTO claims VALUES ('k', 'alive', ?)", (time.time() + 60,))
    assert not other.claim("k", 60)
    with sqlite3.connect(tmp_path / FILE) as store:
        store.execute("UPDATE claims SET until = ?", (time.time() - 1,))
    assert other.claim("k", 60)


@pytest.mark.parametrize("keep", [0, 20])
def test_a_damaged_cache_is_put_aside(server, client, caplog, tmp_path, keep):
    folder = tmp_path / "c"
    start(server, folder, 1).communicate(timeout=60)
    whole = (folder / FILE).read_bytes()
    for path in folder.glob(f"{FILE}-*"):
        path.unlink()
    (folder / FILE).write_bytes(whole[:keep] + b"x" * (len(whole) - keep))
    assert client(cache=folder).chat(["a"])[0].text == "echo: a"
    assert "put aside" in caplog.text and len(list(folder.glob("*.damaged-*"))) == 1
    assert client(cache=folder).chat(["a"])[0].cached


def test_the_cache_is_text(server, client, tmp_path):
    model = client(cache=tmp_path / "c")
    model.chat(["a"])
    with sqlite3.connect(model.kept.folder / FILE) as store:
        ((kind, reply),) = store.execute("SELECT typeof(reply), reply FROM replies").fetchall()
        assert kind == "text" and json.loads(reply)["text"] == "echo: a"
        store.execute("UPDATE replies SET reply = ?", (pickle.dumps(Bomb()),))
    assert client(cache=tmp_path / "c").chat(["a"])[0].text == "echo: a" and not Bomb.went_off


class Bomb:
    went_off = False

    def __reduce__(self):
        return setattr, (Bomb, "went_off", True)


def test_completions(server, client):
    block = {
        "tokens": ["4", "2"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"4": -0.5}, None],
        "text_offset": [3, 4],
    }
    server.script = lambda body, nth: {"choices": [{"text": "42", "logprobs": block, "finish_reason": "length"}]}
    (reply,) = client().complete(["x ="], logprobs=1, max_tokens=2)
    assert server.bodies[0]["_path"] == "/v1/completions" and reply.text == "42"
    assert [t.logprob for t in reply.logprobs] == [-0.5, -0.25]


def test_progress(client):
    seen = []
    client().chat(["a", "b", "c"], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_lone_surrogate_is_a_reason(server, client):
    replies = client().chat(["\ud800", "fine"])
    assert replies[1].ok and (replies[0].ok or "UTF-8" in replies[0].error)


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"timeout_s": 0}, {"retries": -1}])
def test_wrong_options(client, options):
    with pytest.raises(ConfigError):
        client(**options)


def test_missing_key_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        RemoteModel("m", cache=tmp_path).chat(["a"])


def test_judge_over_the_wire(server, client):
    """A dead server gives NaN with a reason, never a number."""
    server.script = lambda body, nth: (
        status(500) if "bad" in body["messages"][0]["content"] else chat_answer("Score: 7")
    )
    verdicts = judge(client(retries=1), ["good", "bad"], lambda text: float(text.removeprefix("Score: ")))
    assert verdicts.values[0] == 7 and verdicts.values[1].isnan() and "500" in verdicts.reasons[1]
