"""Stands in for a model: the answers of vLLM's API, without a model. `wrong` in its options makes it fail."""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

options = dict(line.split(": ", 1) for line in Path(sys.argv[1]).read_text().splitlines() if ": " in line)
name, wrong = options["served-model-name"], options.get("wrong", "")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self.send(b'vllm:num_requests_running{engine="0"} 0.0\n', "text/plain")
        else:
            self.answer({"data": [{"id": name}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked.get("stream"):
            self.stream(int(asked.get("max_tokens", 40)))
            return
        if wrong == "nonsense":
            self.answer({"choices": [{"message": {"content": ""}, "text": ""}], "usage": {"completion_tokens": 0}})
            return
        self.answer(
            {
                "model": name,
                "choices": [
                    {"message": {"content": f"I am {name}."}, "text": f"I am {name}.", "finish_reason": "stop"}
                ],
                "usage": {"completion_tokens": 4},
            }
        )

    def stream(self, tokens: int) -> None:
        """Ten tokens a second, numbered, so that a missing one shows."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        events = [json.dumps({"model": name, "choices": [{"delta": {"content": f"{n} "}}]}) for n in range(tokens)]
        for event in [*events, "[DONE]"]:
            chunk = f"data: {event}\n\n".encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            time.sleep(0.1)
        self.wfile.write(b"0\r\n\r\n")

    def answer(self, value: object) -> None:
        self.send(json.dumps(value).encode(), "application/json")

    def send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


if wrong == "crash":
    sys.exit("there is no such model")
time.sleep(float(options.get("load", 0.5)))
while wrong == "never":
    time.sleep(60)
server = ThreadingHTTPServer(("127.0.0.1", int(options["port"])), Handler)
server.daemon_threads = True
server.serve_forever()
