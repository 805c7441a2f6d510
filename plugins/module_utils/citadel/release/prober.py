"""The proofs of a release over real sockets."""

from __future__ import annotations

from typing import Any

from . import files
from .credential import Credential
from .failure import FailedError
from .layout import Layout
from .manifest import Manifest
from .peer import family, server_of
from .probe import Connection, StrangerError, WrongError, answer, await_proof, listed, own_answer
from .services import GATEWAY_TEMPLATE, Service
from .systemd import Systemd
from .trial import UNIT, free_port, trial_unit

TRIAL = 60.0  # seconds that a gateway may take to come up on its side port


class HttpProber:
    def __init__(self, layout: Layout, systemd: Systemd) -> None:
        self._layout = layout
        self._systemd = systemd
        self._credential = Credential(layout)

    def __enter__(self) -> HttpProber:
        return self

    def __exit__(self, *_: object) -> None:
        self._credential.revoke()

    def model(self, service: Service) -> dict[str, Any]:
        return await_proof(self._systemd, service, lambda: own_answer(service))

    def trial(self, manifest: Manifest) -> dict[str, Any]:
        """On a side port, alone, before any client can meet it."""
        template = self._layout.release(manifest.id) / "units" / GATEWAY_TEMPLATE
        port = free_port()
        unit = self._layout.root / "run/systemd/system" / UNIT
        files.write(unit, trial_unit(template.read_text(encoding="utf-8"), manifest.id, port))
        gateway = manifest.gateway()
        tried = Service(UNIT, "gateway", "", port=port, timeout=TRIAL, tls=bool(gateway and gateway.tls))
        try:
            self._systemd.reload()
            try:
                self._systemd.start(UNIT, wait=True)
            except FailedError as error:
                words = " | ".join(line.strip() for line in self._systemd.log(UNIT, 8) if line.strip())[-800:]
                raise FailedError(f"{UNIT} did not start: {error}. Its last words: {words}") from error
            return await_proof(self._systemd, tried, lambda: self._introduced(manifest, tried))
        finally:
            self._systemd.stop(UNIT, wait=True)
            unit.unlink()

    def gateway(self, manifest: Manifest, service: Service) -> dict[str, Any]:
        """On the port that clients use. An older gateway may share it: only this one's own answers count."""
        return await_proof(self._systemd, service, lambda: self._introduced(manifest, service))

    def _introduced(self, manifest: Manifest, service: Service) -> dict[str, Any]:
        """The proof, with a key if it takes one."""
        try:
            return self._answers(manifest, service)
        except StrangerError as error:
            if not self._credential.secret:
                self._key(manifest)
            # The gateway reads its keys again in a moment: that passes.
            raise FailedError(str(error)) from error

    def _key(self, manifest: Manifest) -> None:
        try:
            self._credential.make(manifest)
        except FailedError as error:
            raise WrongError(str(error)) from error

    def _answers(self, manifest: Manifest, service: Service) -> dict[str, Any]:
        """The gateway lists every model of the release, and each of them answers through it."""
        wanted = {model.served: model.task for model in manifest.services if model.kind == "model"}
        pid = self._systemd.show(service.unit).pid
        with self._connected(service, pid) as connection:
            missing = sorted(wanted.keys() - listed(connection))
            if missing:
                raise FailedError(f"the gateway on port {service.port} does not list {', '.join(missing)}")
            answers = [answer(connection, model, task) for model, task in sorted(wanted.items())]
        return {"port": service.port, "process": pid, "answers": answers}

    def _connected(self, service: Service, pid: int, attempts: int = 200) -> Connection:
        """A connection that this process has accepted; the kernel hands them out as it likes."""
        for _ in range(attempts):
            connection = Connection(service.port, self._credential.secret, tls=service.tls)
            listed(connection)
            if server_of(connection.own_port, service.port, family(pid)):
                return connection
            connection.close()
        raise FailedError(f"process {pid} accepted none of {attempts} connections to port {service.port}")
