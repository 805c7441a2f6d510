"""Asks all that a client may ask: every model directly and through the gateway, several at once, and the neighbours."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from .release.credential import Credential
from .release.failure import FailedError, RefusedError
from .release.history import live_release
from .release.layout import Layout
from .release.manifest import Manifest, read_manifest
from .release.probe import Connection, StrangerError, answer, listed
from .release.services import Service, environment_of
from .status import Check, figures, health_port, neighbours, of_neighbours

TOGETHER = 5
KEY = "CITADEL_KEY"
PATIENCE = 10.0  # until the gateway has read its keys again


def results(layout: Layout, manifest: Manifest, key: str) -> Iterator[Check]:
    gateway = manifest.gateway()
    models = [service for service in manifest.wanted() if service.kind == "model"]
    for model in models:
        yield tried(f"{model.name}-direct", partial(ask, model, model))
    if gateway:
        for model in {model.served: model for model in models}.values():
            yield tried(f"{model.served}-gateway", partial(ask, gateway, model, key))
        yield tried("gateway-models", partial(names, gateway, key))
        yield tried("gateway-health", partial(health, health_port(layout, manifest)))
        yield tried("gateway-metrics", partial(told, health_port(layout, manifest)))
    for check in of_neighbours(neighbours(layout)):
        yield Check(f"{check.name}-connectivity", check.good, check.said)
    if gateway and models:
        lightest = min(models, key=lambda model: need(layout, model))
        yield tried("concurrent-requests", partial(together, gateway, lightest, key))


def tried(name: str, act: Callable[[], str]) -> Check:
    begun = time.monotonic()
    try:
        said = act()
    except (FailedError, OSError) as error:
        return Check(name, False, str(error))
    return Check(name, True, f"{said} ({time.monotonic() - begun:.2f} s)")


def ask(server: Service, model: Service, key: str = "") -> str:
    with Connection(server.port, key, tls=server.tls) as connection:
        return repr(answer(connection, model.served, model.task)["answer"])


def names(gateway: Service, key: str) -> str:
    with Connection(gateway.port, key, tls=gateway.tls) as connection:
        return ", ".join(sorted(listed(connection)))


def health(port: int) -> str:
    with Connection(port) as connection:
        status, value = connection.ask("/health")
    if status != 200:
        raise FailedError(f"{status}, {value.get('status')}")
    return str(value.get("status"))


def told(port: int) -> str:
    found = sum(line.startswith("llm_") for line in figures(port))
    if not found:
        raise FailedError("no figure of a model among the metrics")
    return f"{found} figures"


def need(layout: Layout, model: Service) -> int:
    path = layout.current / "config/models" / f"{model.name}.env"
    return int(environment_of(path.read_text(encoding="utf-8")).get("CITADEL_NEED_BYTES", "0"))


def together(gateway: Service, model: Service, key: str) -> str:
    with ThreadPoolExecutor(TOGETHER) as pool:
        answers = list(pool.map(lambda _: ask(gateway, model, key), range(TOGETHER)))
    return f"{len(answers)} answers of {model.served} at once"


def introduced(credential: Credential, manifest: Manifest) -> str:
    """A key where the gateway serves nobody without one; root may make it, and it is revoked afterwards."""
    gateway = manifest.gateway()
    if gateway is None or os.geteuid() != 0:
        return ""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        try:
            names(gateway, credential.secret)
            break
        except StrangerError:
            if not credential.secret:
                credential.make(manifest)
            time.sleep(0.3)  # it looks at its keys again in a moment
        except FailedError:
            break  # told by the checks
    return credential.secret


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{KEY} holds a key, where one is needed and root does not ask."


def run(_: argparse.Namespace) -> int:
    layout = Layout()
    credential = Credential(layout)
    try:
        release = live_release(layout)
        if release is None:
            print("No release is live on this host: `make deploy` makes one.", file=sys.stderr)
            return 1
        manifest = read_manifest(layout.release(release))
        key = os.environ.get(KEY) or introduced(credential, manifest)
        found = []
        for check in results(layout, manifest, key):
            print(check, flush=True)
            found.append(check.good)
    except (RefusedError, FailedError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        credential.revoke()
    print(f"{'PASSED' if all(found) else 'FAILED'}: {sum(found)} of {len(found)}")
    return 0 if all(found) else 1
