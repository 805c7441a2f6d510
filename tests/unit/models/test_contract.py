"""What others rely on, the settings beside the catalogue, and the configuration of the gateway: each has one place."""

from __future__ import annotations

from typing import Any

import pytest

from citadel import contract, gateway_config
from citadel.catalogue import CatalogueError
from citadel.settings import Settings, SettingsError

PORTS = {"api": 8000, "management": 8002, "health": 8080, "export": 9090, "node": 9100}
EMBEDDINGS = {
    "vectors": {
        "repository": "some/vectors",
        "revision": "r1",
        "kind": "embeddings",
        "port": 11410,
        "cores": 1,
        "context": 512,
        "batched_tokens": 512,
        "sequences": 4,
        "concurrent": 4,
        "timeout": 10,
        "vector_size": 384,
        "replicas": 2,
    }
}
TOLD: dict[str, Any] = {
    "profile": "development",
    "ports": PORTS,
    "side_address": "",
    "tls": {},
    "keys_file": "/k",
    "load_times": "/l",
    "logs": "/logs",
    "cors_origins": ["*"],
    "limits": {"tiers": {"default": {"requests_per_minute": 100}}},
}


def test_a_contract_has_what_others_need(models: Any) -> None:
    found = contract.contract("llm-01", "10.0.0.1", PORTS, models({}, EMBEDDINGS), {}).as_dict()
    assert (found["host"], found["address"], found["ports"]) == ("llm-01", "10.0.0.1", PORTS)
    asked = [(each["job"], each["address"] + each["path"]) for each in found["scraped"]]
    assert asked[-2:] == [
        (contract.GATEWAY, "10.0.0.1:9090/metrics/gateway"),
        (contract.HOST, "10.0.0.1:9100/metrics"),
    ]
    assert asked[:-2] == [
        (contract.MODELS, f"10.0.0.1:9090/metrics/{instance['name']}")
        for model in found["models"].values()
        for instance in model["instances"]
    ]
    assert found["url"] == "http://10.0.0.1:8000"
    vectors, hermes = found["models"]["vectors"], found["models"]["hermes-2"]
    assert [(one["name"], one["port"]) for one in vectors["instances"]] == [("vectors-1", 11410), ("vectors-2", 11510)]
    assert (vectors["kind"], vectors["vector_size"], vectors["capabilities"]) == ("embeddings", 384, ())
    assert hermes["capabilities"] == ("streaming", "tools", "structured_output")
    assert hermes["objectives"]["p95_ms"] == 2500


def test_ports_that_cannot_be_meant() -> None:
    with pytest.raises(contract.ContractError, match="health = 8000: the gateway has that port already"):
        contract.taken({**PORTS, "health": 8000})
    with pytest.raises(contract.ContractError, match="export is None: give the port of the metrics export"):
        contract.taken({"api": 1, "management": 2, "health": 3})


def test_clients_come_by_tls_where_there_is_a_whole_pair(models: Any) -> None:
    pair = {"certificate": "/etc/tls/a.pem", "key": "/etc/tls/a.key"}
    assert contract.contract("llm-01", "10.0.0.1", PORTS, models(), pair).url == "https://10.0.0.1:8000"
    for half in ({"certificate": "/etc/tls/a.pem"}, {**pair, "key": "a.key"}, {**pair, "ca": "/b"}):
        with pytest.raises(contract.ContractError, match="give the paths of two files on llm-01, certificate and key"):
            contract.contract("llm-01", "10.0.0.1", PORTS, models(), half)


def test_a_scrape_never_takes_longer_than_its_interval() -> None:
    asked: dict[str, Any] = {"job": contract.GATEWAY, "address": "10.0.0.1:9090", "path": "/metrics/gateway"}
    published = {"host": "a", "scraped": [asked | {"labels": {"citadel_host": "a"}}]}
    (group,) = contract.target_groups(published, 5)
    assert (group["labels"]["__scrape_interval__"], group["labels"]["__scrape_timeout__"]) == ("5s", "5s")
    assert contract.target_groups(published)[0]["labels"] == {
        "job": "citadel-llm-gateway",
        "citadel_host": "a",
        "__metrics_path__": "/metrics/gateway",
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"share_cores": "perhaps"}, "share_cores = 'perhaps': give true or false"),
        ({"reserve_gib": "much"}, "reserve_gib = 'much': give a number"),
        ({"drain": 1.5}, "drain = 1.5: give a whole number"),
        ({"drain": -1}, "drain = -1: give 0 or more"),
        ({"log_level": "LOUD"}, "choose one of DEBUG, INFO"),
        ({"libraries": "one.so"}, "give a list of texts"),
        ({"address": "0.0.0.0"}, "say in models_settings.clients which networks"),
        ({"reserve": 1}, "there is no such setting; known are share_cores"),
    ],
)
def test_settings_that_cannot_be_meant(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings.of(given)


def test_settings_as_the_command_line_gives_them() -> None:
    assert Settings.of({"share_cores": "true", "reserve_gib": "0.5"}) == Settings(share_cores=True, reserve_gib=0.5)
    assert Settings.of(Settings().as_dict()) == Settings()


def test_any_section_of_the_gateway_can_be_said_and_nothing_is_lost(models: Any) -> None:
    said = {
        "server": {"trusted_proxies": ["10.0.0.0/8"]},
        "limits": {"tiers": {"default": {"concurrent": 9}}},
        "admission": {"reserved": 0.2},
        "routing": {"policy": "resource"},
    }
    found = gateway_config.configuration(models(), instances(models()), TOLD, said)
    assert found["server"] == {"drain": 300.0, "cors": {"origins": ["*"]}, "trusted_proxies": ["10.0.0.0/8"]}
    assert found["limits"]["tiers"]["default"] == {"requests_per_minute": 100, "concurrent": 9}
    assert found["admission"] == {"budget": 2.0 * (8 * 8 + 4 * 12 + 4 * 16 + 2 * 20), "reserved": 0.2}
    assert found["routing"] == {"policy": "resource"}


def test_a_model_answers_to_its_aliases_and_its_repository(models: Any) -> None:
    found = gateway_config.configuration(models(), instances(models()), TOLD, {})["models"]
    assert {"phi3", "phi_3_mini", "microsoft/Phi-3-mini-4k-instruct"} == set(found["phi-3-mini"]["aliases"])
    assert {"hermes_2", "nous-hermes2"} < set(found["hermes-2"]["aliases"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"aliases": ["mixtral"]}, "mixtral names mixtral-8x7b already"),
        ({"aliases": ["hermes-2"]}, "hermes-2 names hermes-2 already"),
        ({"aliases": ["no name"]}, "'no name' is no name"),
        ({"aliases": "phi3"}, "give a list of texts"),
        ({"fallback": ["phi"]}, "phi is no other model; there are mixtral-8x7b, hermes-2, openchat-3.5"),
        ({"fallback": ["phi-3-mini"]}, "phi-3-mini is no other model"),
        ({"fallback": "hermes-2"}, "give a list of texts"),
        ({"unit": {"MemoryMax": "1G"}}, "MemoryMax follows from memory_gb; change that"),
        ({"unit": {"nice": 5}}, "'nice' is no option of"),
    ],
)
def test_stanzas_that_cannot_be_meant(models: Any, change: dict[str, Any], said: str) -> None:
    with pytest.raises(CatalogueError, match=said):
        models({"phi-3-mini": change})


def test_a_model_that_is_not_enabled_stands_in_for_nobody(models: Any) -> None:
    found = {model.name: model.fallback for model in models({"hermes-2": {"enabled": False}})}
    assert found["mixtral-8x7b"] == ()
    assert found["openchat-3.5"] == ("phi-3-mini",)


def instances(planned: Any) -> list[dict[str, Any]]:
    return [
        {"name": name, "model": model.name, "url": f"http://127.0.0.1:{port}", "hidden_size": 64, "revision": "r1"}
        for model in planned
        for name, port in model.instances()
    ]
