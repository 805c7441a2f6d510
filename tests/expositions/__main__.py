"""What the real programs export, recorded, so that rules and dashboards can be checked against it without them.

    python -m tests.expositions record [gateway] [node] [prometheus] [vllm] [--vllm ENVIRONMENT]

`gateway` is the gateway on simulated models, `node` Debian's node exporter, `prometheus` of itself, `vllm` the pinned
vLLM with a model of a few megabytes, which needs the environment that `make bench-serving` builds. citadel.prom is what
`citadel metrics` writes, by hand. What a new version no longer has is printed, and the tests say which rule that kills.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.expositions import HERE, LABEL, Exposition, read
from tests.gateway.harness import running
from tests.gateway.redis_server import redis_server
from tests.gateway.simulator import Act

ROOT = HERE.parents[1]
OF_MACHINE = {
    *(
        "device",
        "mountpoint",
        "interface",
        "ifalias",
        "address",
        "broadcast",
        "ip",
        "operstate",
        "duplex",
        "queue",
        "wwn",
    ),
    *("nodename", "domainname", "machine", "serial", "path", "name", "major", "minor", "revision", "clocksource"),
    *("id", "id_like", "variant", "variant_id", "version_id", "version_codename", "image_id", "image_version"),
    *("build_id", "pretty_name", "release", "time_zone", "goversion", "branch"),
}


async def of_gateway() -> str:
    """With all that it may share, after answers, an error of the model's at each try, a question for no model, and one
    that nobody may ask."""
    with redis_server() as redis:
        return await scraped({"redis": {"address": redis.address}, "limits": {"shared": True}, "cache": {}})


async def scraped(over: dict[str, Any]) -> str:
    async with running(over, models={"phi": {}, "mix": {}}) as lab:
        await lab.chat(model="phi")
        await lab.chat(model="nope")
        lab.simulators["phi"].script += [Act(status=500)] * 8
        await lab.chat(model="phi", max_tokens=4)
        await lab.stream(model="mix")
        await lab.chat(model="mix", temperature=99)
        await lab.settled()
        lab.reconfigure({})
        # what only a mishap counts has no series before
        metrics = lab.gateway.metrics
        metrics.dropped_logs.labels("access")
        metrics.fallbacks.labels("phi", "mix")
        metrics.steps.labels("passed")
        text: str = (await lab.client.get("/metrics")).text
        return text


def gateway(_: Path | None) -> str:
    return asyncio.run(of_gateway())


def node(_: Path | None) -> str:
    """Debian's package, unpacked and run for one scrape, with the collectors that a server has."""
    with tempfile.TemporaryDirectory(prefix="citadel-node-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        subprocess.run(["apt-get", "download", "--quiet", "prometheus-node-exporter"], cwd=folder, check=True)
        (package,) = folder.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
        address = "127.0.0.1:19100"
        program = folder / "usr/bin/prometheus-node-exporter"
        return served([program, f"--web.listen-address={address}"], f"http://{address}/metrics", {})


def prometheus(_: Path | None) -> str:
    """Of itself: whether rules are evaluated and targets found."""
    with tempfile.TemporaryDirectory(prefix="citadel-prometheus-") as name:
        folder = Path(name)
        (folder / "citadel-llm.yml").write_text("groups: [{name: llm_server_alerts, rules: [{record: a, expr: '1'}]}]")
        (folder / "prometheus.yml").write_text("rule_files: [citadel-llm.yml]\nscrape_configs: [{job_name: none}]\n")
        address = "127.0.0.1:19090"
        command: list[str | Path] = [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={name}",
        ]
        text = served([*command, f"--web.listen-address={address}"], f"http://{address}/metrics", {})
        return text.replace(name, "/etc/prometheus/rules.d")


def vllm(environment: Path | None) -> str:
    if environment is None:
        sys.exit("name the environment of vLLM: --vllm .cache/vllm-…, which `make bench-serving` builds")
    python = environment / "bin/python"
    with tempfile.TemporaryDirectory(prefix="citadel-vllm-") as name:
        tiny: list[str | Path] = [python, ROOT / "lab/tiny_models.py", name, "--only", "phi-3-mini"]
        subprocess.run(tiny, check=True)
        command: list[str | Path] = [python, "-W", "ignore", "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", Path(name) / "phi-3-mini", "--served-model-name", "phi-3-mini", "--port", "11499"]
        command += ["--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "4", "--host", "127.0.0.1"]
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CACHE_ROOT": f"{name}/cache",
        }
        return served(command, "http://127.0.0.1:11499/metrics", settings, asked)


def asked() -> None:
    """Some series are there after a request only."""
    body = b'{"model": "phi-3-mini", "prompt": "Hello", "max_tokens": 8}'
    request = urllib.request.Request(
        "http://127.0.0.1:11499/v1/completions", body, {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=120).read()
    time.sleep(1)


def served(
    command: list[str | Path], url: str, settings: dict[str, str], before: Callable[[], None] = lambda: None
) -> str:
    """One scrape of a program that is started for it."""
    process = subprocess.Popen(command, env={**os.environ, **settings}, stdout=sys.stderr)
    try:
        end = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).read()
            except OSError as error:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{command[0]} does not answer on {url}") from error
                time.sleep(0.3)
            else:
                break
        before()
        text: str = urllib.request.urlopen(url, timeout=30).read().decode()
        return text
    finally:
        process.terminate()
        process.wait(60)


def anonymous(sample: str) -> str:
    """Without what it tells of the machine that it was recorded on; labels whose values others ask for keep them."""
    head, brace, rest = sample.partition("{")
    return head + brace + LABEL.sub(lambda found: found[0] if found[1] not in OF_MACHINE else f'{found[1]}="x"', rest)


def record(name: str, text: str) -> None:
    """Values change from scrape to scrape and say nothing here: kept are names and labels."""
    path = HERE / f"{name}.prom"
    before = read(name) if path.exists() else Exposition({})
    samples = (line.rpartition(" ")[0] + " 1" for line in text.splitlines() if line and not line.startswith("#"))
    path.write_text("\n".join(dict.fromkeys(map(anonymous, samples))) + "\n")
    gone = sorted(set(before.series) - set(read(name).series))
    print(f"{path.name}: {len(read(name).series)} names" + "".join(f"\n  gone: {one}" for one in gone))


SOURCES: dict[str, Callable[[Path | None], str]] = {
    "gateway": gateway,
    "node": node,
    "prometheus": prometheus,
    "vllm": vllm,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.expositions", description=__doc__)
    parser.add_argument("verb", choices=["record"])
    parser.add_argument("names", nargs="*", choices=[*SOURCES, []], default=list(SOURCES))
    parser.add_argument("--vllm", type=Path)
    told = parser.parse_args()
    for name in told.names:
        record(name, SOURCES[name](told.vllm))


if __name__ == "__main__":
    main()
