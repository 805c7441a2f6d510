"""Our part of an Alertmanager's configuration: who is told of which of our alerts, after how long, and what is not.

Receivers are Alertmanager's own, passed through. Alerts of others are not routed here: everything hangs below one route
that matches our mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

OURS = 'citadel="llm"'
NOBODY = "citadel-llm-nobody"  # what is for the dashboards alone
GROUPED = ("citadel_host", "alertname", "model")
SEVERITIES = ("critical", "warning", "info")
TOLD = ("critical", "warning")  # where a receiver does not say
HOST_DOWN = 'alertname="HostDown"'  # nothing else that is told of a host in that moment is news
# Alertmanager's keys that hold a secret in the text; each has a brother that names a file, or should be put into one
SECRET = frozenset(
    {
        *("api_key", "api_secret", "api_url", "auth_password", "auth_secret", "bearer_token", "bot_token"),
        *("client_secret", "credentials", "password", "routing_key", "secret_key", "service_key", "token"),
        *("user_key", "webhook_url"),
    }
)
DURATION = re.compile(r"(\d+(ms|s|m|h|d))+")


class RoutingError(ValueError):
    """What nobody can want of an Alertmanager, in one sentence."""


def routing(receivers: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Entries for the lists of alertmanager.yml; none where nobody shall be told."""
    refuse(receivers, settings)
    if not receivers:
        return {}
    return {
        "routes": [
            {
                "matchers": [OURS],
                "receiver": NOBODY,
                "group_by": list(GROUPED),
                "group_interval": settings["group_interval"],
                "repeat_interval": settings["repeat_interval"],
                "routes": list(branches(receivers, settings["waits"])),
            }
        ],
        "receivers": [
            {"name": NOBODY},
            *({"name": called(one), **configurations(one)} for one in receivers),
        ],
        "inhibit_rules": [
            {
                "source_matchers": [OURS, HOST_DOWN],
                "target_matchers": [OURS, HOST_DOWN.replace("=", "!=")],
                "equal": ["citadel_host"],
            },
            {
                "source_matchers": [OURS, 'severity="critical"'],
                "target_matchers": [OURS, 'severity="warning"'],
                "equal": list(GROUPED),
            },
        ],
    }


def branches(receivers: Sequence[Mapping[str, Any]], waits: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Of each kind of alert one route for each receiver; the last of them ends the search."""
    kinds = [
        # before the warnings, of which it is one
        ("warning", waits["cache"], ['severity="warning"', 'alertname=~"cache_.*"']),
        *((severity, waits[severity], [f'severity="{severity}"']) for severity in SEVERITIES),
    ]
    for severity, wait, matchers in kinds:
        hearers = [one for one in receivers if severity in one.get("severities", TOLD)]
        for one in hearers:
            more = {} if one is hearers[-1] else {"continue": True}
            yield {"matchers": matchers, "receiver": called(one), "group_wait": wait, **more}


def called(receiver: Mapping[str, Any]) -> str:
    return f"citadel-llm-{receiver['name']}"


def configurations(receiver: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in receiver.items() if key not in {"name", "severities"}}


def refuse(receivers: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    for one in receivers:
        name = one.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise RoutingError(
                f"monitoring_receivers: {name!r} is no name: give each receiver a `name` of letters and digits"
            )
        unknown = [str(key) for key in configurations(one) if not str(key).endswith("_configs")]
        if unknown or not configurations(one):
            raise RoutingError(
                f"monitoring_receivers: {name} has {', '.join(unknown) or 'nothing that tells anybody'}: give it lists "
                "of Alertmanager such as webhook_configs, email_configs or slack_configs"
            )
        if odd := [str(each) for each in one.get("severities", TOLD) if each not in SEVERITIES]:
            raise RoutingError(
                f"monitoring_receivers: {name} has severities {', '.join(odd)}: there are {', '.join(SEVERITIES)}"
            )
        for key in secrets(configurations(one)):
            raise RoutingError(
                f"monitoring_receivers: {name} has a secret in {key}: put it into a file on the metrics server and "
                f"name that file in {key}_file"
            )
    names = [one["name"] for one in receivers]
    if double := sorted({name for name in names if names.count(name) > 1} | {"nobody"} & set(names)):
        raise RoutingError(f"monitoring_receivers: {', '.join(double)} is taken already: choose another name")
    given = {**settings["waits"], **{key: settings[key] for key in ("group_interval", "repeat_interval")}}
    for key, value in given.items():
        if not DURATION.fullmatch(str(value)):
            raise RoutingError(f"monitoring_routing: {key} is {value!r}: give a time such as 10s or 5m")


def secrets(value: Any, key: str = "") -> Iterator[str]:
    """Keys whose value is a secret in clear text."""
    if isinstance(value, Mapping):
        for inner, held in value.items():
            yield from secrets(held, str(inner))
    elif isinstance(value, list):
        for held in value:
            yield from secrets(held, key)
    elif key in SECRET or (key.endswith("url") and re.match(r"\w+://[^/@]*:[^/@]*@", str(value))):
        yield key
