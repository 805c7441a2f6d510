"""A server that speaks like the hub, and misbehaves as it is told."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0" * 39 + "1"


class Hub(ThreadingHTTPServer):
    """Speaks like the hub, and misbehaves as it is told."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = folder
        self.cut_after = 0  # bytes, then the connection is gone
        self.cuts_left = 10**9
        self.wrong = 0  # how often the weights come with a flipped byte
        self.ranges = True
        self.sent = 0  # bytes of files
        self.fail = 0  # how many requests get a 503
        self.pause = 0.0  # before each piece
        self.sends_on_to = ""  # where the weights are really taken from
        self.credentials: set[str | None] = set()
        self.requests: Counter[str] = Counter()
        self.offsets: list[int] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.0"

    def log_message(self, *_: Any) -> None:
        pass

    def json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        hub = self.server
        path = self.path.partition("?")[0]
        hub.requests[path] += 1
        hub.credentials.add(self.headers.get("Authorization"))
        with hub.lock:
            if hub.fail:
                hub.fail -= 1
                self.send_error(503)
                return
        if path.startswith("/api/models/o/n/revision/"):
            self.json({"sha": COMMIT})
        elif path.startswith("/api/models/o/n/tree/"):
            self.json([self.entry(one) for one in sorted(hub.folder.rglob("*")) if one.is_file()])
        elif hub.sends_on_to and path.endswith(".safetensors") and path.startswith("/o/n/"):
            self.send_response(302)
            self.send_header("Location", f"{hub.sends_on_to}/mirror/phi/{path.partition('/resolve/')[2]}")
            self.end_headers()
        elif path.startswith("/o/n/resolve/") or path.startswith("/mirror/"):
            self.file(hub.folder / path.split("/", 5 if path.startswith("/o/n") else 4)[-1])
        else:
            self.send_error(404)

    def entry(self, path: Path) -> dict[str, Any]:
        content = path.read_bytes()
        found: dict[str, Any] = {
            "type": "file",
            "path": path.relative_to(self.server.folder).as_posix(),
            "size": len(content),
            "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
        }
        if path.suffix == ".safetensors":
            found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
        return found

    def file(self, path: Path) -> None:
        hub = self.server
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        start, partial = 0, False
        if hub.ranges and (asked := self.headers.get("Range")):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first)
            content = content[: int(last) + 1] if last else content
            partial = True
        if path.suffix == ".safetensors":
            with hub.lock:
                hub.offsets.append(start)
                if hub.wrong:
                    hub.wrong -= 1
                    content = content[:-1] + bytes([content[-1] ^ 1])
        self.send_response(206 if partial else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if hub.cut_after and path.suffix == ".safetensors" and len(body) > hub.cut_after and hub.cuts_left:
            hub.cuts_left -= 1
            self.wfile.write(body[: hub.cut_after])
            self.wfile.flush()
            self.connection.close()
            return
        hub.sent += len(body)
        for piece in range(0, len(body), 1 << 16):
            if hub.pause:
                time.sleep(hub.pause)
            self.wfile.write(body[piece : piece + (1 << 16)])
