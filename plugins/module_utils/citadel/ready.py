"""Waits until a model of the live release answers, and tells at once if its unit dies instead."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace

from .release.failure import FailedError, RefusedError
from .release.history import live_release
from .release.layout import Layout
from .release.manifest import read_manifest
from .release.prober import HttpProber
from .release.services import Service
from .release.systemd import Systemctl


def model_of(layout: Layout, instance: str) -> Service:
    release = live_release(layout)
    services = read_manifest(layout.release(release)).services if release else ()
    models = {service.name: service for service in services if service.kind == "model"}
    if instance not in models:
        raise RefusedError(f"The live release has no model {instance!r}; it has {', '.join(sorted(models)) or 'none'}.")
    return models[instance]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instance")
    parser.add_argument("--timeout", type=float, default=300.0)


def run(arguments: argparse.Namespace) -> int:
    layout = Layout()
    try:
        model = replace(model_of(layout, arguments.instance), timeout=arguments.timeout)
        print(json.dumps(HttpProber(layout, Systemctl()).model(model)))
    except (RefusedError, FailedError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
