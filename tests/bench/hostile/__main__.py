"""Hostile clients beside an innocent one, on this gateway and on others: what the innocent one saw.

python -m tests.bench.hostile --seconds 150 --others 20 --write
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.bench.gateway import contenders
from tests.bench.gateway.contenders import CONTENDERS, MODEL, PORT, ROOT, Contender, Missing, Running
from tests.bench.gateway.report import machine, percentile, table, today, write
from tests.bench.hostile.attacks import ATTACKS, Target
from tests.gateway.simulator import Act, Simulator

BACKENDS = (19101, 19102)
PATIENCE = 5.0  # the innocent client calls it an outage after this
RESTART = 2.0  # an engine that has died is back after this


@dataclass
class Seen:
    """What the innocent client saw while something went on."""

    name: str
    sent: int = 0
    seconds: list[float] = field(default_factory=list)
    wrong: dict[str, int] = field(default_factory=dict)


async def innocent(port: int, key: str, seen: Seen) -> None:
    """Ten questions a second, each on a connection of its own, from an address of its own."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 4})
    data = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n{body}"
    ).encode()
    while True:
        began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.7", 0))
                writer.write(data)
                status = (await reader.read()).partition(b"\r\n")[0].decode("latin-1")[9:12]
            writer.close()
        except TimeoutError:
            status = f"nothing within {PATIENCE:g} s"
        except OSError as error:
            status = type(error).__name__
        took = time.monotonic() - began
        seen.seconds.append(took)
        if status != "200":
            seen.wrong[status or "closed"] = seen.wrong.get(status or "closed", 0) + 1
        await asyncio.sleep(max(0.0, 0.1 - took))


async def under(name: str, keys: tuple[str, str], seconds: float) -> Seen:
    attack, _ = ATTACKS[name]
    target, seen = Target(PORT, keys[1]), Seen(name)
    tasks = [asyncio.create_task(innocent(PORT, keys[0], seen)), asyncio.ensure_future(attack(target))]
    done, _ = await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in done:
        task.result()  # neither of them ends by itself
    seen.sent = target.sent
    return seen


def _citadel(folder: Path, _: int) -> list[str]:
    """As it is shipped, but for the two replicas; each client has a key of the tier that keys have."""
    config = yaml.safe_load((ROOT / "gateway" / "example.yml").read_text())
    config["profile"] = "production"
    config["auth"] = {"keys_file": str(folder / "keys.json"), "anonymous": {"enabled": False}}
    config["logs"] = {"access": str(folder / "access.log"), "audit": str(folder / "audit.log")}
    # the innocent one asks more often than a person's key allows by default; the hostile one may as well
    config["limits"]["tiers"]["default"].update(
        requests_per_minute=1000, requests_per_hour=10**6, requests_per_day=10**6
    )
    config["limits"]["overall"] = {"requests_per_minute": 10**6, "burst": 10**4}
    replicas = [{"name": f"{MODEL}-{n}", "url": f"http://127.0.0.1:{port}"} for n, port in enumerate(BACKENDS, 1)]
    config["routing"]["default_model"] = None
    config["models"] = {MODEL: {"context": 4096, "replicas": replicas}}
    path = folder / "gateway.yml"
    path.write_text(yaml.safe_dump(config))
    command = [contenders.RUNTIME.python, "-m", "citadel_gateway"]
    for name in ("innocent", "hostile"):
        made = subprocess.run(
            [*command, "keys", "create", name, "--file", str(folder / "keys.json")],
            env={**os.environ, "PYTHONPATH": contenders.RUNTIME.paths},
            capture_output=True,
            text=True,
            check=True,
        )
        (folder / ("key" if name == "innocent" else "hostile")).write_text(made.stdout.strip())
    return [*command, "serve", "--config", str(path), "--bind", f"127.0.0.1:{PORT}"]


def _vllm_router(folder: Path, _: int) -> list[str]:
    first, second = (f"http://127.0.0.1:{port}" for port in BACKENDS)
    command = CONTENDERS["vllm-router"].words(folder, BACKENDS[0])
    at = command.index(first) + 1
    return [*command[:at], second, *command[at:]]


def _litellm(folder: Path, _: int) -> list[str]:
    command = CONTENDERS["LiteLLM"].words(folder, BACKENDS[0])
    config = yaml.safe_load((folder / "litellm.yml").read_text())
    config["model_list"] = [
        {
            "model_name": MODEL,
            "litellm_params": {
                "model": f"openai/{MODEL}",
                "api_base": f"http://127.0.0.1:{port}/v1",
                "api_key": "none",
            },
        }
        for port in BACKENDS
    ]
    (folder / "litellm.yml").write_text(yaml.safe_dump(config))
    return command


def rivals() -> dict[str, Contender]:
    own, router, litellm = (CONTENDERS[name] for name in ("citadel-gateway", "vllm-router", "LiteLLM"))
    return {
        own.name: Contender(own.name, own.version, _citadel, own.headers, environment=own.environment),
        router.name: Contender(router.name, router.version, _vllm_router),
        litellm.name: Contender(litellm.name, litellm.version, _litellm, litellm.headers, litellm.patience),
    }


async def _backends() -> None:
    """Two engines that die of poison, as vLLM's do, and are started again."""
    for port in BACKENDS:
        simulator = Simulator(MODEL, port)
        simulator.deadly, simulator.dies_by = lambda body: body.get("user") == "poison", "error"
        simulator.restart_after = RESTART
        simulator.default = Act(delay=0.02)
        for user, act in (
            ("long", Act(tokens=2000, gap=0.02)),
            ("flood", Act(tokens=2000, text="word " * 400)),
            ("fails", Act(status=500, body=b'{"error":{"message":"Internal server error"}}')),
        ):
            simulator.rules.append((lambda body, user=user: body.get("user") == user, act))  # type: ignore[misc]
        await simulator.start()
    print("ready", flush=True)
    await asyncio.Event().wait()


@contextmanager
def backends() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.hostile", "--backends"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def section(results: dict[str, list[Seen]], versions: dict[str, str], seconds: dict[str, float]) -> str:
    """One row for each attack, one column for each gateway."""

    def cell(seen: Seen) -> str:
        kinds = ", ".join(f"{count} x {what}" for what, count in sorted(seen.wrong.items(), key=lambda one: -one[1]))
        wrong = f"**{sum(seen.wrong.values())} failed** ({kinds})" if kinds else "none failed"
        typical, late, longest = (1000 * percentile(seen.seconds, part) for part in (0.5, 0.99, 1.0))
        return (
            f"{len(seen.seconds):,} asked, {wrong}; {typical:.0f} / {late:.0f} / {longest:.0f} ms; {seen.sent:,} sent"
        )

    names = list(results)
    by_attack = {name: [next(s for s in results[gateway] if s.name == name) for gateway in names] for name in ATTACKS}
    heads = [f"{name} {versions[name]}, {seconds[name]:g} s each" for name in names]
    lines = table(
        ["beside", *heads],
        [[f"{name}: {ATTACKS[name][1]}", *(cell(seen) for seen in row)] for name, row in by_attack.items()],
    )
    return f"{today()}, {machine()}; `make bench-hostile`.\n\n" + "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=150.0, help="for each attack on this gateway")
    parser.add_argument("--others", type=float, default=20.0, help="for each attack on another one")
    parser.add_argument("--only", action="store_true", help="this gateway alone")
    parser.add_argument("--attack", action="append", choices=sorted(ATTACKS))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--compiled", default="")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    parser.add_argument("--backends", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.backends:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_backends())
        return 0
    contenders.RUNTIME.python = arguments.python
    if arguments.compiled:
        contenders.RUNTIME.paths = arguments.compiled
    results: dict[str, list[Seen]] = {}
    versions: dict[str, str] = {}
    lengths: dict[str, float] = {}
    for name, contender in rivals().items():
        if arguments.only and name != "citadel-gateway":
            continue
        lengths[name] = arguments.seconds if name == "citadel-gateway" else arguments.others
        try:
            versions[name] = contender.version()
            results[name] = []
            for attack in arguments.attack or ATTACKS:
                # what one attack has broken is not the next one's fault
                with (
                    tempfile.TemporaryDirectory(prefix="hostile-") as folder,
                    backends(),
                    Running(contender, Path(folder), BACKENDS[0]) as running,
                ):
                    own = running.headers.get("Authorization", "Bearer none").removeprefix("Bearer ")
                    other = Path(folder) / "hostile"
                    keys = (own, other.read_text() if other.exists() else own)
                    seen = asyncio.run(under(attack, keys, lengths[name]))
                results[name].append(seen)
                print(
                    f"{name}, {attack}: {seen.sent} sent, {len(seen.seconds)} asked, wrong {seen.wrong or 'none'}, "
                    f"longest {max(seen.seconds) * 1000:.0f} ms",
                    flush=True,
                )
        except Missing as missing:
            print(f"{name} is left out: {missing}", flush=True)
            results.pop(name, None)
    if arguments.write and not arguments.attack:
        write("hostile", section(results, versions, lengths))
    return 1 if any(seen.wrong for seen in results.get("citadel-gateway", [])) else 0


if __name__ == "__main__":
    sys.exit(main())
