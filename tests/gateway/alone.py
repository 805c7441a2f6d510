"""`make gateway`: the gateway on this machine and nothing else, with simulated models behind it.

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
from tests.gateway.simulator import Act, Simulator

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
    config = yaml.safe_load((Path(__file__).parents[2] / "gateway" / "example.yml").read_text())
    config["auth"]["keys_file"] = str(folder / "keys.json")
    config["models"] = models
    path = folder / "gateway.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    addresses = {"api": port, "management": port + 2, "health": port + 80}
    bind = {name: f"127.0.0.1:{number}" for name, number in addresses.items()}
    print(f"""
the gateway with four simulated models; its configuration is {path}

  curl localhost:{port}/health
  curl localhost:{port}/v1/models
  curl localhost:{port}/v1/chat/completions -d '{{"messages": [{{"role": "user", "content": "hi"}}], "max_tokens": 5}}'
  http://localhost:{port}/docs        http://localhost:{port + 2}/docs (management)

Ctrl-C ends it.
""")
    await Process(configuration.load(path), path, bind).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="gateway-") as folder, contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(arguments.port, Path(folder)))


if __name__ == "__main__":
    main()
