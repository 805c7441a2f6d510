"""Filters of group_vars and roles: thin faces of the package `citadel`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError

# modules get the package from Ansible itself; on the controller it is found beside the plugins
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "module_utils"))

from citadel import (
    access,
    audit,
    catalogue,
    contract,
    gateway_config,
    network,
    registration,
    routing,
    serving,
    settings,
    storage,
    tuning,
)


def citadel_contract(
    stanzas: Mapping[str, Any], host: str, address: str, ports: Mapping[str, Any], tls: Mapping[str, str] | None = None
) -> dict[str, Any]:
    return contract.contract(host, address, ports, catalogue.parse(stanzas), tls or {}).as_dict()


def citadel_of_each(
    hosts: Iterable[str], hostvars: Mapping[str, Any], variable: str, otherwise: Any = None
) -> dict[str, Any]:
    """A variable of several hosts, by host."""
    return {host: hostvars[host].get(variable, otherwise) for host in hosts}


def citadel_targets(contracts: Mapping[str, Any], interval: int) -> dict[str, list[dict[str, Any]]]:
    """Targets for Prometheus by LLM host."""
    return {host: contract.target_groups(published, int(interval)) for host, published in contracts.items()}


def citadel_target_files(groups: Mapping[str, Any]) -> dict[str, str]:
    """The text of each file of targets, with our mark."""
    return {host: f"{registration.MARK}\n{as_yaml(of_one)}" for host, of_one in groups.items()}


def citadel_routing(receivers: list[Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, str]:
    """Entries for lists of alertmanager.yml, as text."""
    found = routing.routing(receivers, settings)
    return {key: as_yaml(entries) for key, entries in found.items()}


def as_yaml(value: Any) -> str:
    """Of plain values, which Ansible's are not."""
    return str(yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False))


def citadel_dashboards(folder: str) -> dict[str, str]:
    """The text of each dashboard in a folder of the controller, by the name of its file."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).glob("*.json"))}


def citadel_registered(answers: list[Mapping[str, Any]], host: str) -> str:
    """What became of the registration, as lines for people."""
    return "\n".join([f"| {host}", *(f"|   {line}" for line in registration.sentences(answers))])


def citadel_not_registered(answers: list[Mapping[str, Any]], host: str) -> str:
    """What went wrong; empty where nothing did."""
    return " ".join(f"{host}: {line}" for line in registration.failures(answers))


def citadel_scraped(contracts: Mapping[str, Any], failures: Mapping[str, str]) -> list[dict[str, Any]]:
    """The targets of the hosts that failed in nothing."""
    return [target for host, one in contracts.items() if failures[host] == "" for target in one["scraped"]]


def citadel_models_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    return settings.Settings.of(given).as_dict()


def citadel_storage(
    mounts: list[Mapping[str, Any]], caches: Mapping[str, Any], root: str, space: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The items that the role `storage` declares."""
    return storage.items(mounts, caches, root, space)


def citadel_tmpfs(caches: Mapping[str, Any], root: str) -> dict[str, Any]:
    """What others know of caches in memory: their sum, and where units find each."""
    return {"gib": storage.gib(caches), "places": storage.places(caches, root)}


def citadel_netplan(wanted: Mapping[str, Any], reached_at: str) -> str:
    """The file that gives a server its static address; empty where none is asked for."""
    return network.netplan(wanted, reached_at)


def citadel_gateway_configuration(
    stanzas: Mapping[str, Any], instances: list[Mapping[str, Any]], told: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    return gateway_config.configuration(catalogue.parse(stanzas), instances, told, given)


def citadel_drain(stanzas: Mapping[str, Any]) -> int:
    return int(gateway_config.drain(catalogue.parse(stanzas)))


def citadel_instance_digest(instance: Mapping[str, Any], unit: str, options: str, stored: str) -> str:
    return serving.digest(instance, unit, options, stored)


def citadel_schemas(stanzas: Mapping[str, Any]) -> dict[str, str]:
    """The schema of each model's table of usage."""
    return catalogue.schemas(catalogue.parse(stanzas))


def citadel_vectors(told: Mapping[str, Any], stanzas: Mapping[str, Any]) -> dict[str, Any]:
    """What the companion is told of Qdrant, where there is one."""
    return catalogue.vectors(catalogue.parse(stanzas), told)


def citadel_gateway_digest(source: Mapping[str, str], *parts: Any) -> str:
    return gateway_config.digest(source, *parts)


def citadel_access(given: Mapping[str, Any], contract: Mapping[str, Any]) -> dict[str, Any]:
    """Who may reach a host of this contract."""
    return access.Policy.of(given, contract).as_dict()


def citadel_networks(addresses: Iterable[Any]) -> list[str]:
    return access.of_estate(addresses)


def citadel_findings(told: str, host: str) -> str:
    """What `citadel audit --json` says, as lines for people."""
    found = [audit.Finding(**one) for one in json.loads(told)["findings"]]
    return "\n".join([f"| {host}: {audit.verdict(found)}", *(f"|   {one}" for one in found)])


def citadel_listeners(published: Mapping[str, Any]) -> dict[str, int]:
    """What listens on an LLM server, by name."""
    instances = [instance for model in published["models"].values() for instance in model["instances"]]
    return {**published["ports"], **{one["name"]: one["port"] for one in instances}}


def citadel_neighbours(
    ports: Mapping[str, Mapping[str, int]], groups: Mapping[str, list[str]], hostvars: Mapping[str, Any]
) -> dict[str, str]:
    """Who of the estate shall answer, and at which address."""
    return {
        f"{service} of {host}": f"{hostvars[host]['ansible_host']}:{port}"
        for group, services in ports.items()
        for host in groups.get(group, [])
        for service, port in services.items()
    }


def citadel_tuning(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The items that the role `tuning` declares."""
    return tuning.items(given)


def told(filtered: Callable[..., Any]) -> Callable[..., Any]:
    """What the package refuses is said by Ansible in the same words."""

    @wraps(filtered)
    def speaking(*arguments: Any) -> Any:
        try:
            return filtered(*arguments)
        except ValueError as error:
            raise AnsibleFilterError(str(error)) from error

    return speaking


FILTERS = (
    citadel_contract,
    citadel_of_each,
    citadel_targets,
    citadel_target_files,
    citadel_routing,
    citadel_dashboards,
    citadel_registered,
    citadel_not_registered,
    citadel_scraped,
    citadel_models_settings,
    citadel_storage,
    citadel_tmpfs,
    citadel_netplan,
    citadel_gateway_configuration,
    citadel_drain,
    citadel_instance_digest,
    citadel_schemas,
    citadel_vectors,
    citadel_gateway_digest,
    citadel_access,
    citadel_networks,
    citadel_findings,
    citadel_listeners,
    citadel_neighbours,
    citadel_tuning,
)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {one.__name__: told(one) for one in FILTERS}
