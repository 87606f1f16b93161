"""A server on this machine that speaks the OpenAI protocol, also badly. It counts what it was really asked."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def chat_answer(text="hello", **choice):
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"} | choice],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


class Server:
    """`script(body, nth)` returns a document, or a function that gets the handler and does what it likes with it."""

    def __init__(self, port=0):
        self.script = lambda body, nth: chat_answer(f"echo: {body['messages'][-1]['content']}")
        self.bodies, self.times, self.under_way, self.most_under_way = [], [], 0, 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                body["_path"] = self.path
                with server.lock:
                    server.bodies.append(body)
                    server.times.append(time.monotonic())
                    nth = len(server.bodies)
                    server.under_way += 1
                    server.most_under_way = max(server.most_under_way, server.under_way)
                try:
                    answer = server.script(body, nth)
                    if callable(answer):
                        answer(self)
                    else:
                        send(self, 200, answer)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    with server.lock:
                        server.under_way -= 1

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_):
                pass

        self.http = Quiet(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def count(self):
        return len(self.bodies)


def send(handler, status, document, **headers):
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)


def status(code, message="no", **headers):
    return lambda handler: send(handler, code, {"error": {"message": message}}, **headers)


def slow(seconds):
    def answer(handler):
        time.sleep(seconds)
        send(handler, 200, chat_answer())

    return answer


def dripping(handler):
    """Never silent for long, never done: a time-out per read would wait for ever."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def cut(handler):
    data = json.dumps(chat_answer()).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


class Scores:
    """A script for `Server`: the completions protocol of a real model, which scores the prompts it is given.

    style: "echo" or "prompt_logprobs", the only one it knows; the other is ignored, as servers do. `ids`: whether prompts may
    be token ids.
    """

    def __init__(self, model, tokenizer, style="echo", *, ids=True):
        self.model, self.tokenizer, self.style, self.ids = model, tokenizer, style, ids

    def __call__(self, body, nth):
        import torch

        if not body["_path"].endswith("/v1/completions"):
            return status(404, "no such path")
        prompt = body["prompt"]
        if not isinstance(prompt, str) and not self.ids:
            return status(400, "prompt must be a string")
        ids = prompt if not isinstance(prompt, str) else self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logprobs = self.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        values = [None] + [float(logprobs[i, token]) for i, token in enumerate(ids[1:])]
        texts = [self.tokenizer.decode([token]) for token in ids]
        choice = {"index": 0, "text": "", "finish_reason": "length", "logprobs": None}
        if self.style == "echo" and body.get("echo"):
            starts = [sum(map(len, texts[:n])) for n in range(len(texts))]
            choice["text"] = "".join(texts)
            choice["logprobs"] = {
                "tokens": texts,
                "token_logprobs": values,
                "text_offset": starts,
                "top_logprobs": None,
            }
        if self.style == "prompt_logprobs" and "prompt_logprobs" in body:
            choice["text"] = "x"
            choice["prompt_logprobs"] = [
                None if value is None else {str(token): {"logprob": value, "rank": 1, "decoded_token": text}}
                for token, value, text in zip(ids, values, texts, strict=True)
            ]
        return {"id": "1", "object": "text_completion", "choices": [choice], "usage": {"prompt_tokens": len(ids)}}
