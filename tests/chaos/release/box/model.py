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
        self.answer({"data": [{"id": name}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
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

    def answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
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
