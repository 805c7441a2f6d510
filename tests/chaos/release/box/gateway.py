"""Stands in for the gateway: systemd's sockets or --bind, requests held while a model restarts, drain on SIGTERM."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

configuration = json.loads(Path(sys.argv[sys.argv.index("--config") + 1]).read_text()) if "--config" in sys.argv else {}
if sys.argv[1] == "check-config":
    configuration = json.loads(Path(sys.argv[2]).read_text())
    sys.exit("gateway.yml: models: there are none" if not configuration.get("models") else 0)
models: dict[str, int] = configuration["models"]
stopping = threading.Event()
HELD = 30.0
shut: set[int] = set()  # models that are drained


def relay(port: int, method: str, path: str, body: bytes) -> bytes:
    """A model that is away is waited for: the deployment brings it back."""
    limit = time.monotonic() + HELD
    while True:
        try:
            while port in shut:
                time.sleep(0.02)
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=HELD)
            upstream.request(method, path, body, {"Content-Type": "application/json"})
            response = upstream.getresponse()
            return response.read()
        except (OSError, http.client.HTTPException):
            if time.monotonic() > limit:
                raise
            time.sleep(0.05)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(b'{"status": "healthy"}')
            return
        self.answer(json.dumps({"data": [{"id": name} for name in models]}).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path.startswith("/management/replicas/"):
            name, verb = self.path.partition("?")[0].split("/")[3:5]
            (shut.add if verb == "drain" else shut.discard)(models[name])
            self.answer(b"{}")
            return
        wanted = json.loads(body)["model"]
        if configuration.get("wrong"):
            self.answer(b'"nonsense"')
        elif wanted in models:
            self.answer(relay(models[wanted], "POST", self.path, body))
        else:
            self.send_error(404)

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if stopping.is_set():
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True


def on_socket(number: int) -> Server:
    server = Server(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.socket(fileno=number)
    # Two processes share the socket: whoever comes second to a connection must not wait for the next one.
    server.socket.setblocking(False)
    return server


def listening() -> list[Server]:
    if "--bind" in sys.argv:
        host, port = sys.argv[sys.argv.index("--bind") + 1].split(":")
        return [Server((host, int(port)), Handler)]
    names = os.environ["LISTEN_FDNAMES"].split(":")
    return [on_socket(3 + number) for number, _ in enumerate(names)]


def notify(state: bytes) -> None:
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(state, "\0" + address[1:] if address.startswith("@") else address)


def stop(*_: object) -> None:
    stopping.set()
    for server in servers:
        threading.Thread(target=server.shutdown).start()


servers = listening()
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGHUP, lambda *_: print("reads its configuration anew", flush=True))
time.sleep(float(configuration.get("load", 0)))
print(f"serves {', '.join(models)}", flush=True)
notify(b"READY=1")
threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for server in servers:
    server.server_close()
