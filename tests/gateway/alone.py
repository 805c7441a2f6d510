"""`make gateway`: gateway and companion on this machine and nothing else, with simulated models behind them.

python -m tests.gateway.alone [--port 8000]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import tempfile
from pathlib import Path
from typing import Any

import yaml

from citadel_gateway import config as configuration
from citadel_gateway.server import Process
from tests.gateway.beside import Beside
from tests.gateway.simulator import Act, Simulator

ROOT = Path(__file__).parents[2]

MODELS: dict[str, dict[str, Any]] = {
    "mixtral-8x7b": {"context": 32768, "specialisation": ["reasoning", "long-form"]},
    "hermes-2": {"context": 8192, "specialisation": ["conversation", "tools"], "capabilities": ["streaming", "tools"]},
    "openchat-3.5": {"context": 8192, "specialisation": ["interactive", "streaming"]},
    "phi-3-mini": {"context": 4096, "specialisation": ["fast", "cheap"]},
}


async def serve(port: int, folder: Path) -> None:
    models = {}
    for name, model in MODELS.items():
        simulator = await Simulator(name).start()
        simulator.default = Act(tokens=24, gap=0.05, text=f"{name} ")
        models[name] = {"capabilities": ["streaming"], **model, "replicas": [{"name": name, "url": simulator.url}]}
    config = yaml.safe_load((ROOT / "gateway" / "example.yml").read_text())
    config["auth"]["keys_file"] = str(folder / "keys.json")
    config["models"] = models
    companion = Beside(folder)
    config["listen"]["inner"] = str(folder / "inner.sock")
    config["companion"] = {"socket": str(companion.socket), "routes": routes()}
    config["usage"] = {"folder": str(folder / "spool"), "sync": 0.2}
    path = folder / "gateway.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    addresses = {"api": port, "management": port + 2, "health": port + 80}
    bind = {name: f"127.0.0.1:{number}" for name, number in addresses.items()}
    bind["inner"] = config["listen"]["inner"]
    print(f"""
the gateway with four simulated models, and its companion, which keeps things in SQLite; its configuration is {path}

  curl localhost:{port}/health
  curl localhost:{port}/v1/models
  curl localhost:{port}/v1/chat/completions -d '{{"messages": [{{"role": "user", "content": "hi"}}], "max_tokens": 5}}'
  curl localhost:{port}/v1/responses -d '{{"model": "phi-3-mini", "input": "hi"}}'
  curl localhost:{port}/v1/usage
  http://localhost:{port}/docs        http://localhost:{port + 2}/docs (management)

Ctrl-C ends it.
""")
    await companion.start(config["listen"]["inner"])
    try:
        await Process(configuration.load(path), path, bind).run()
    finally:
        await companion.stop()


def routes() -> list[str]:
    """Those that a deployment gives the companion, but for Qdrant's."""
    told = yaml.safe_load((ROOT / "group_vars" / "llm_servers" / "serving.yml").read_text())
    found: list[str] = told["gateway_companion"]["routes"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="gateway-") as folder, contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(arguments.port, Path(folder)))


if __name__ == "__main__":
    main()
