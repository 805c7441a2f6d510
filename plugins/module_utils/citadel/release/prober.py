"""The proofs of a release over real sockets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import files
from .failure import FailedError
from .layout import Layout
from .manifest import Manifest
from .probe import ask, await_ready, prove_answer, prove_model
from .services import GATEWAY_TEMPLATE, Service
from .systemd import Systemd
from .trial import UNIT, free_port, trial_unit

ANSWER = 60.0  # seconds that one short completion may take
TRIAL = 60.0  # seconds that a gateway may take to come up on its side port


class HttpProber:
    def __init__(self, layout: Layout, systemd: Systemd) -> None:
        self._layout = layout
        self._systemd = systemd

    def model(self, service: Service) -> dict[str, Any]:
        return await_ready(
            self._systemd, service, lambda: prove_model(service.port, service.served, service.task, ANSWER)
        )

    def gateway(self, manifest: Manifest, service: Service) -> dict[str, Any]:
        return await_ready(self._systemd, service, self._answers(manifest, service.port))

    def trial(self, manifest: Manifest, release: Path) -> dict[str, Any]:
        template = (release / "units" / GATEWAY_TEMPLATE).read_text(encoding="utf-8")
        port = free_port()
        unit = self._layout.root / "run/systemd/system" / UNIT
        files.write(unit, trial_unit(template, manifest.id, port))
        try:
            self._systemd.reload()
            self._systemd.start(UNIT, wait=False)
            return await_ready(
                self._systemd, Service(UNIT, "gateway", "", timeout=TRIAL), self._answers(manifest, port)
            )
        finally:
            self._systemd.stop(UNIT, wait=True)
            unit.unlink()

    def _answers(self, manifest: Manifest, port: int) -> Callable[[], dict[str, Any]]:
        """The gateway lists every model of the release, and each of them answers through it."""
        models = [service for service in manifest.services if service.kind == "model"]

        def prove() -> dict[str, Any]:
            status, _, listing = ask(port, "/v1/models")
            names = {str(entry.get("id")) for entry in listing.get("data", []) if isinstance(entry, dict)}
            if status != 200 or not {model.served for model in models} <= names:
                raise FailedError(
                    f"the gateway on port {port} lists {', '.join(sorted(names)) or 'nothing'} ({status})"
                )
            answers = {model.served: model.task for model in models}
            return {
                "port": port,
                "answers": [prove_answer(port, served, task, ANSWER) for served, task in sorted(answers.items())],
            }

        return prove
