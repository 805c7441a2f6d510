"""The gateways that are compared: how each is installed, configured and started, on one core."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests import certificates

ROOT = Path(__file__).parents[3]
CACHE = ROOT / ".cache" / "bench"
PORT, EXPORT = 19000, 19003
GATEWAY_CORE = 0
LOAD_CORE = 1 if (os.cpu_count() or 1) > 1 else 0
MODEL = "phi"


@dataclass
class Runtime:
    """What runs this gateway: the source with this Python, or what `make bench-gateway` has built as it is deployed."""

    python: str = sys.executable
    paths: str = str(ROOT / "gateway" / "src")


RUNTIME = Runtime()


class Missing(Exception):
    """A contender cannot run here; the message says why."""


@dataclass
class Contender:
    name: str
    version: Callable[[], str]
    words: Callable[[Path, int], list[str]]  # folder for its files, port of the backend
    headers: Callable[[Path], dict[str, str]] = field(default=lambda _: {})
    patience: float = 60.0
    most_streams: int = 10_000  # more would only measure its time-outs
    environment: Callable[[], dict[str, str]] = dict
    scheme: str = "http"


def _output(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise Missing(f"{name} is not installed; `apt-get install {name}`")
    return found


def _venv(name: str, requirement: str) -> Path:
    """An environment of its own under .cache, made once."""
    folder = CACHE / name
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"  installing {requirement}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", requirement], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Missing(f"{requirement} could not be installed: {done.stderr.strip().splitlines()[-1:]}")
        (folder / "installed").touch()
    return folder / "bin"


def _citadel(folder: Path, backend: int, server: str = "", more: str = "") -> list[str]:
    """With everything on: a key, limits of every kind, metrics, access and audit log."""
    plenty = 10**8
    (folder / "gateway.yml").write_text(f"""
profile: production
listen: {{api: "127.0.0.1:{PORT}", management: null, export: "127.0.0.1:{EXPORT}"}}
auth: {{keys_file: {folder}/keys.json, anonymous: {{enabled: false}}}}
logs: {{access: {folder}/access.log, audit: {folder}/audit.log}}
server: {{connections: 2000, connections_per_address: 2000{server}}}
limits:
  overall: {{requests_per_minute: {plenty}, burst: {plenty}}}
  classes: {{light: {{requests_per_minute: {plenty}, concurrent: 2000}}}}
  tiers:
    default: {{requests_per_minute: {plenty}, requests_per_hour: {plenty}, requests_per_day: {plenty},
               tokens_per_minute: {plenty * 10}, concurrent: 2000}}
admission: {{budget: 2000.0}}
models:
  {MODEL}:
    {{context: 200000, limit_class: light, concurrency: 1000,
      replicas: [{{name: {MODEL}, url: "http://127.0.0.1:{backend}"}}]}}
{more}
""")
    command = [RUNTIME.python, "-m", "citadel_gateway"]
    made = subprocess.run(
        [*command, "keys", "create", "bench", "--file", str(folder / "keys.json")],
        env={**os.environ, "PYTHONPATH": RUNTIME.paths},
        capture_output=True,
        text=True,
        check=True,
    )
    (folder / "key").write_text(made.stdout.strip())
    return [*command, "serve", "--config", str(folder / "gateway.yml")]


def _citadel_headers(folder: Path) -> dict[str, str]:
    return {"Authorization": f"Bearer {(folder / 'key').read_text()}"}


def _citadel_tls(folder: Path, backend: int) -> list[str]:
    pair = certificates.made(folder, "bench")
    return _citadel(folder, backend, f", tls: {{certificate: {pair.certificate}, key: {pair.key}}}")


def citadel_with(name: str, more: Callable[[Path], str]) -> Contender:
    """The gateway with something more in its configuration."""
    return Contender(
        name,
        _own_version,
        lambda folder, backend: _citadel(folder, backend, more=more(folder)),
        _citadel_headers,
        environment=_own_environment,
    )


def _vllm_router(_: Path, backend: int) -> list[str]:
    command = str(_venv("vllm-router", "vllm-router==0.1.17") / "vllm-router")
    urls = ["--worker-urls", f"http://127.0.0.1:{backend}"]
    own = ["--prometheus-port", "19091"]
    return [command, "--host", "127.0.0.1", "--port", str(PORT), *urls, *own]


def _litellm(folder: Path, backend: int) -> list[str]:
    command = str(_venv("litellm", "litellm[proxy]==1.106.2") / "litellm")
    (folder / "litellm.yml").write_text(f"""
model_list:
  - model_name: {MODEL}
    litellm_params: {{model: openai/{MODEL}, api_base: "http://127.0.0.1:{backend}/v1", api_key: none}}
general_settings: {{master_key: sk-bench}}
""")
    return [command, "--config", str(folder / "litellm.yml"), "--host", "127.0.0.1", "--port", str(PORT)]


def _haproxy(folder: Path, backend: int, bind: str = "") -> list[str]:
    (folder / "haproxy.cfg").write_text(f"""
global
    nbthread 1
    maxconn 4000
defaults
    mode http
    option http-no-delay
    timeout connect 10s
    timeout client 300s
    timeout server 300s
frontend api
    bind 127.0.0.1:{PORT} {bind}
    default_backend models
backend models
    http-reuse always
    server one 127.0.0.1:{backend} check
""")
    return [program("haproxy"), "-f", str(folder / "haproxy.cfg")]


def _haproxy_tls(folder: Path, backend: int) -> list[str]:
    pair = certificates.made(folder, "bench")
    both = folder / "both.pem"
    both.write_text(Path(pair.certificate).read_text() + Path(pair.key).read_text())
    return _haproxy(folder, backend, f"ssl crt {both} ssl-min-ver TLSv1.3")


NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_buffer_size 256k; client_max_body_size 16m;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  {content}
}}
"""


def _nginx(folder: Path, backend: int) -> list[str]:
    content = f"""
  upstream models {{ server 127.0.0.1:{backend}; keepalive 1024; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{PORT} backlog=4096;
    location / {{
      proxy_pass http://models; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}"""
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, content=content))
    return [program("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")]


def _own_version() -> str:
    sys.path.insert(0, str(ROOT / "gateway" / "src"))
    from citadel_gateway import __version__

    compiled = ", compiled" if any(Path(RUNTIME.paths).glob("*__mypyc*")) else ""
    return f"{__version__} (Python {_output(RUNTIME.python, '-V').split()[1]}{compiled})"


def _own_environment() -> dict[str, str]:
    return {"PYTHONPATH": RUNTIME.paths, "PYTHONDONTWRITEBYTECODE": ""}


def _haproxy_version() -> str:
    return _output(program("haproxy"), "-v").split()[2].split("-")[0]


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("citadel-gateway", _own_version, _citadel, _citadel_headers, environment=_own_environment),
        Contender("vllm-router", lambda: "0.1.17", _vllm_router),
        Contender("LiteLLM", lambda: "1.106.2", _litellm, lambda _: {"Authorization": "Bearer sk-bench"}, 120.0, 1),
        Contender("HAProxy", _haproxy_version, _haproxy),
        Contender("nginx", lambda: _output(program("nginx"), "-v").rsplit("/", 1)[1], _nginx),
    )
}
ENCRYPTED = {
    "citadel-gateway": Contender(
        "citadel-gateway", _own_version, _citadel_tls, _citadel_headers, environment=_own_environment, scheme="https"
    ),
    "HAProxy": Contender("HAProxy", _haproxy_version, _haproxy_tls, scheme="https"),
}


class Running:
    """A contender on its core, in front of a backend."""

    def __init__(self, contender: Contender, folder: Path, backend: int) -> None:
        self.contender = contender
        folder.mkdir(parents=True, exist_ok=True)
        words = contender.words(folder, backend)
        self.headers = {"Content-Type": "application/json", **contender.headers(folder)}
        self._log = (folder / "output.log").open("wb")
        started = time.monotonic()
        self._process = subprocess.Popen(
            ["taskset", "-c", str(GATEWAY_CORE), *words],
            stdout=self._log,
            stderr=self._log,
            cwd=folder,
            env={**os.environ, **contender.environment()},
        )
        body = b'{"model":"%s","messages":[{"role":"user","content":"x"}],"max_tokens":1}' % MODEL.encode()
        trust = ssl._create_unverified_context() if contender.scheme == "https" else None
        while True:
            if time.monotonic() - started > contender.patience or self._process.poll() is not None:
                self.stop()
                raise Missing(f"{contender.name} did not answer; see {folder}/output.log")
            request = urllib.request.Request(
                f"{contender.scheme}://127.0.0.1:{PORT}/v1/chat/completions", data=body, headers=self.headers
            )
            try:
                with urllib.request.urlopen(request, timeout=5, context=trust) as answer:
                    answer.read()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.01)
        self.cold_start = time.monotonic() - started

    def seconds(self) -> float:
        """What it has taken of its core."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """Resident megabytes of it and its children."""
        total = 0
        for folder in self._tree():
            for line in (folder / "status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1])
        return total / 1024

    def _tree(self) -> list[Path]:
        found, todo = [], [self._process.pid]
        while todo:
            folder = Path(f"/proc/{todo.pop()}")
            found.append(folder)
            for task in (folder / "task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
        return found

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
