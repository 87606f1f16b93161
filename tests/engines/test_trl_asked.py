"""Parts whose answers cost money are asked on one rank of two, and what they answer, or raise, is the same on both."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from guerdon.errors import ChainError
from guerdon.lm import ScriptedModel
from guerdon.parts import asked_of
from guerdon.signals import RewardFunction, Route
from guerdon.system import System

SCRIPT = str(Path(__file__).with_name("asked_run.py"))


@pytest.fixture
def judge() -> Iterator[tuple[str, Counter[str]]]:
    """A server whose answers count up, so that no two are equal, and which fails every fifth request; (address, questions)."""
    questions: Counter[str] = Counter()
    count, lock = itertools.count(1), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                questions[body["messages"][-1]["content"]] += 1
                number = next(count)
            message = {"role": "assistant", "content": str(number % 97 / 10)}
            document: Any = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
            document["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
            data = json.dumps(document).encode()
            self.send_response(500 if number % 5 == 0 else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", questions
    server.shutdown()


def run(policy: str, url: str, out: Path, *more: str) -> list[dict[str, Any]]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        [*start, SCRIPT, policy, url, str(out), *more], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{out}.{rank}", weights_only=False) for rank in range(2)]


@pytest.mark.slow
def test_nothing_is_asked_twice_and_ranks_agree(policy_path: str, judge: Any, tmp_path: Path) -> None:
    url, questions = judge
    one, two = run(policy_path, url, tmp_path / "out")
    assert one["processes"] == two["processes"] == 2 and one["raised"] == two["raised"] == ""
    twice = {question: n for question, n in questions.items() if n > 1 and question.split()[0] not in ("rows", "truth")}
    assert not twice, "a question names its row and step"
    # `rows` and `truth` know no row: two rollouts of one text are asked about once each, and no more.
    assert sum(n for q, n in questions.items() if q.startswith("rows")) == 2 * 12 + 2 * 8
    assert sum(n for q, n in questions.items() if q.startswith("truth")) == 2 * (8 + 8)
    assert sum(questions.values()) >= 2 * 3 * 12
    assert len(one["seen"]) == len(two["seen"]) == 2
    for mine, theirs in zip(one["seen"], two["seen"], strict=True):
        assert torch.equal(mine[0], theirs[0]) and mine[0].abs().sum() > 0
        assert torch.equal(mine[1].nan_to_num(-9), theirs[1].nan_to_num(-9)) and mine[2] == theirs[2]


@pytest.mark.slow
def test_an_exception_is_raised_on_both_ranks(policy_path: str, judge: Any, tmp_path: Path) -> None:
    one, two = run(policy_path, judge[0], tmp_path / "out", "broken")
    assert one["raised"] == two["raised"] == "the judge's template is broken"
    assert len(one["seen"]) == len(two["seen"]) == 1


class Asks:
    scope, level = "group", "sequence"

    def __init__(self, model: Any = None, **said: Any) -> None:
        self.inner = {"judge": [model]}
        self.__dict__ |= said

    def __call__(self, rollouts: Any, scores: Any) -> Any:
        raise AssertionError


def test_where_a_part_is_asked() -> None:
    remote = ScriptedModel(lambda messages, draw: "1")
    assert asked_of(Asks()) == "everywhere" and asked_of(Asks(remote)) == "once"
    assert asked_of(Asks(remote, asked="everywhere")) == "everywhere", "what a part says goes first"
    assert asked_of(lambda rollouts, scores: remote.chat(["?"])) == "once", "a function that closes over a judge"
    function = RewardFunction(lambda completions, **_: [])
    assert asked_of(function) == "once", "of a whole batch"
    assert System({"f": function}).row_signals() == ["f"], "alone, each rank its own rows, as in TRL"
    assert System({"f": Asks(scope="row", asked="once")}).row_signals() == []
    assert Route({"a": Asks(scope="row"), "b": Asks(scope="row", asked="once")}, by="way").asked == "once"
    with pytest.raises(ChainError, match=r"asked='twice'.*everywhere, rows, once"):
        System({"f": Asks(asked="twice")})
