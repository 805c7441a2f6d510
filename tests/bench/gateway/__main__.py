"""`make bench-gateway`: this gateway beside others, in one run, in front of the same backends.

python -m tests.bench.gateway [--seconds 8] [--only [NAME ...]] [--tls] [--leave 100000] [--churn 600]
    [--no-report] [--python P] [--compiled F]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.gateway import leaving, report, streams
from tests.bench.gateway.contenders import (
    CONTENDERS,
    ENCRYPTED,
    EXPORT,
    LOAD_CORE,
    MODEL,
    NGINX,
    PORT,
    ROOT,
    RUNTIME,
    Contender,
    Missing,
    Running,
    program,
)

WHOLE, STREAMS = 19001, 19002
POINTS = [(body, connections) for body in ("1 kB", "64 kB") for connections in (1, 16, 64)]
SIZES = {"1 kB": 1024, "64 kB": 65536}
COUNTS = [1, 50, 500]
ANSWER = (
    '{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"phi","choices":[{"index":0,"message":'
    '{"role":"assistant","content":"The quick brown fox jumps over the lazy dog."},"finish_reason":"stop"}],'
    '"usage":{"prompt_tokens":12,"completion_tokens":16,"total_tokens":28}}'
)


@contextlib.contextmanager
def backends(folder: Path) -> Iterator[None]:
    """nginx for whole answers, since it is never the slower one; a clocked server for streams."""
    content = f"""
  server {{
    listen 127.0.0.1:{WHOLE} backlog=4096; default_type application/json;
    location = /health {{ return 200 ""; }}
    location = /metrics {{ return 200 "vllm:num_requests_running 0\\n"; }}
    location = /v1/models {{ return 200 '{{"object":"list","data":[{{"id":"{MODEL}"}}]}}'; }}
    location / {{ return 200 '{ANSWER}'; }}
  }}"""
    for port in (WHOLE, STREAMS, PORT):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise Missing(f"port {port} is in use; see what holds it with `ss -ltnp`") from None
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, content=content))
    pin = ["taskset", "-c", str(LOAD_CORE)]
    with (folder / "backend.log").open("wb") as log:
        started = [
            subprocess.Popen([*pin, *words], stdout=log, stderr=log, cwd=ROOT)
            for words in (
                [program("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")],
                [sys.executable, "-m", "tests.bench.gateway.streams", str(STREAMS)],
            )
        ]
        try:
            for port in (WHOLE, STREAMS):
                _await(port)
            yield
        finally:
            for process in started:
                process.terminate()
                process.wait()


def _await(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise Missing(f"the backend on port {port} does not answer") from None
            time.sleep(0.02)


def load(
    port: int, size: int, connections: int, headers: dict[str, str], seconds: float, scheme: str = "http"
) -> dict[str, float]:
    """wrk, with a body of so many bytes."""
    wrk = program("wrk")
    frame = f'{{"model":"{MODEL}","messages":[{{"role":"user","content":""}}],"max_tokens":16,"temperature":0}}'
    body = frame.replace('"content":""', f'"content":"{"x" * (size - len(frame))}"')
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
        script.write("wrk.method = 'POST'\nwrk.body = '" + body + "'\n" + "\n".join(lines) + "\n")
        script.flush()
        words = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "-s", script.name]
        url = f"{scheme}://127.0.0.1:{port}/v1/chat/completions"
        done = subprocess.run(
            ["taskset", "-c", str(LOAD_CORE), wrk, *words, url], capture_output=True, text=True, check=True
        )
    output = done.stdout
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    rate = re.search(r"Requests/sec:\s*([\d.]+)", output)
    return {
        "rate": float(rate[1]) if rate and not refused else 0.0,
        "p50": _milliseconds(output, "50%"),
        "p99": _milliseconds(output, "99%"),
    }


def best(
    port: int, point: tuple[str, int], headers: dict[str, str], seconds: float, scheme: str = "http"
) -> dict[str, float]:
    """The best of three: what else runs on the machine only ever takes away."""
    tries = [load(port, SIZES[point[0]], point[1], headers, seconds / 3, scheme) for _ in range(3)]
    return max(tries, key=lambda found: found["rate"])


def _milliseconds(output: str, part: str) -> float:
    found = re.search(rf"{part}\s+([\d.]+)(us|ms|s)", output)
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]] if found else float("nan")


def clocked(port: int, headers: dict[str, str], direct: dict[int, Any] | None, most: int = 10_000) -> dict[int, Any]:
    found = {}
    os.sched_setaffinity(0, {LOAD_CORE})
    for count in [count for count in COUNTS if count <= most]:
        tries = [streams.measure(port, count, headers, rounds=4 if count == 1 else 1) for _ in range(2)]
        result = min(tries, key=lambda result: report.percentile(result.first, 0.99))
        point = {
            "first_p50": report.percentile(result.first, 0.5),
            "first_p99": report.percentile(result.first, 0.99),
            "transit_p50": report.percentile(result.transit, 0.5),
            "transit_p99": report.percentile(result.transit, 0.99),
            "lost": sum(one.lost for one in tries),
        }
        base = direct[count] if direct else point
        point["added_p50"] = point["first_p50"] - base["first_p50"]
        point["added_p99"] = point["first_p99"] - base["first_p99"]
        found[count] = point
    return found


def compare(names: list[str], seconds: float, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    headers = {"Content-Type": "application/json"}
    results: dict[str, Any] = {}
    missing: dict[str, str] = {}
    print("no gateway", flush=True)
    direct = {point: best(WHOLE, point, headers, seconds / 2) for point in POINTS}
    results["none"] = {"version": "", "whole": direct, "streams": clocked(STREAMS, headers, None)}
    for name in names:
        print(name, flush=True)
        try:
            results[name] = _one(CONTENDERS[name], seconds, folder / name, results["none"]["streams"])
        except Missing as error:
            missing[name] = str(error)
            print(f"  {error}", flush=True)
    return results, missing


def _one(contender: Contender, seconds: float, folder: Path, direct: dict[int, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {"version": contender.version(), "whole": {}}
    # a first start fills the caches of the file system and of Python
    Running(contender, folder, WHOLE).stop()
    with Running(contender, folder, WHOLE) as running:
        result["cold"] = running.cold_start
        result["rest"] = running.memory()
        load(PORT, 1024, 16, running.headers, 1)
        for point in POINTS:
            result["whole"][point] = best(PORT, point, running.headers, seconds)
            print(f"  {point[0]} at {point[1]}: {result['whole'][point]['rate']:,.0f}/s", flush=True)
        result["after"] = running.memory()
    with Running(contender, folder, STREAMS) as running:
        result["streams"] = clocked(PORT, running.headers, direct, contender.most_streams)
        for count, point in result["streams"].items():
            print(
                f"  {count} streams: +{point['added_p50']:.2f} / +{point['added_p99']:.2f} ms, {point['lost']} lost",
                flush=True,
            )
    return result


def encrypted(seconds: float, folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Requests/s on kept connections and with a connection for each, in the clear and with TLS."""
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name, over_tls in ENCRYPTED.items():
        results[name] = {}
        for contender in (CONTENDERS[name], over_tls):
            with Running(contender, folder / name / contender.scheme, WHOLE) as running:
                closing = {**running.headers, "Connection": "close"}
                load(PORT, 1024, 16, running.headers, 1, contender.scheme)
                results[name][contender.scheme] = {
                    kind: best(PORT, ("1 kB", 16), headers, seconds, contender.scheme)["rate"]
                    for kind, headers in (("kept", running.headers), ("each", closing))
                }
            print(f"  {name} over {contender.scheme}: {results[name][contender.scheme]}", flush=True)
    return results


def left(requests: int, folder: Path) -> leaving.Found:
    with Running(CONTENDERS[report.OURS], folder, STREAMS) as running:
        os.sched_setaffinity(0, {LOAD_CORE})
        return leaving.measure(PORT, EXPORT, running.headers, requests, running.memory)


def churn(seconds: float, folder: Path) -> list[float]:
    """Requests and streams without end; what the process holds must not grow. Megabytes, in the order of time."""
    with Running(CONTENDERS[report.OURS], folder, STREAMS) as running:
        samples = []
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            load(PORT, 1024, 32, running.headers, min(5.0, seconds / 10))
            streams.measure(PORT, 100, running.headers)
            samples.append(running.memory())
    return samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each point of whole answers")
    parser.add_argument("--only", nargs="*", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--churn", type=float, default=0.0, help="seconds of churn for the memory's slope")
    parser.add_argument("--tls", action="store_true", help="in the clear and with TLS")
    parser.add_argument("--leave", type=int, default=0, help="so many requests, of which every tenth client leaves")
    parser.add_argument("--no-report", action="store_true", help="print only")
    parser.add_argument("--python", help="for this gateway, as it is deployed")
    parser.add_argument("--compiled", help="what tools/toolchain.py makes of the gateway")
    arguments = parser.parse_args()
    RUNTIME.python = arguments.python or RUNTIME.python
    RUNTIME.paths = arguments.compiled or RUNTIME.paths
    folder = Path(tempfile.mkdtemp(prefix="bench-gateway-"))
    average = f"{os.getloadavg()[0]:.2f}"
    try:
        with backends(folder):
            if arguments.only:
                results, missing = compare(arguments.only, arguments.seconds, folder)
                settings: dict[str, Any] = {
                    "seconds": arguments.seconds,
                    "points": POINTS,
                    "streams": COUNTS,
                    "chunks": streams.CHUNKS,
                    "missing": missing,
                    "load": average,
                }
                tell("gateway", report.section(results, settings), write=not arguments.no_report)
                if not arguments.no_report:
                    report.draw(results)
            if arguments.tls:
                found = encrypted(arguments.seconds, folder / "tls")
                tell("tls", report.encrypted(found), write=not arguments.no_report)
            if arguments.leave:
                tell("leave", report.left(left(arguments.leave, folder / "leave")), write=not arguments.no_report)
            if arguments.churn:
                samples = churn(arguments.churn, folder / "churn")
                tell("churn", report.churn(samples, arguments.churn), write=not arguments.no_report)
    except Missing as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def tell(mark: str, section: str, *, write: bool) -> None:
    print(section)
    if write:
        report.write(mark, section)


if __name__ == "__main__":
    sys.exit(main())
