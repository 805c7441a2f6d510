"""A stanza that cannot be meant is refused with stanza, key, value and the way out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel import catalogue
from citadel.catalogue import CatalogueError, format_cpus, parse_cpus

FIGURES = {  # rows M2 to M5
    "mixtral-8x7b": (11400, 8, 32768, 8192, 256, 100, 300),
    "hermes-2": (11401, 4, 8192, 4096, 128, 80, 200),
    "openchat-3.5": (11402, 4, 8192, 2048, 64, 120, 120),
    "phi-3-mini": (11403, 2, 4096, 1024, 32, 150, 60),
}


def test_the_committed_catalogue_has_the_required_figures(models: Any) -> None:
    found = {
        one.name: (one.port, one.cores, one.context, one.batched_tokens, one.sequences, one.concurrent, one.timeout)
        for one in models()
    }
    assert found == FIGURES


@pytest.mark.parametrize(
    ("model", "change", "words"),
    [
        ("hermes-2", {"port": 11400}, ["hermes-2.port = 11400", "mixtral-8x7b", "change one"]),
        ("hermes-2", {"port": 80}, ["hermes-2.port = 80", "1024"]),
        ("hermes-2", {"port": "11401"}, ["hermes-2.port = '11401'", "whole number"]),
        ("phi-3-mini", {"variant": "fp8"}, ["phi-3-mini.variant = 'fp8'", "bf16, int8, int4"]),
        (
            "phi-3-mini",
            {"variant": "int8", "kind": "embeddings"},
            ["phi-3-mini.variant = 'int8'", "phi-3-mini.variants"],
        ),
        ("phi-3-mini", {"variants": {"int3": {}}}, ["phi-3-mini.variants", "int3"]),
        ("phi-3-mini", {"cores": 0}, ["phi-3-mini.cores = 0", "from 1"]),
        ("phi-3-mini", {"cores": True}, ["phi-3-mini.cores = True"]),
        ("phi-3-mini", {"cpus": "3-1"}, ["phi-3-mini.cpus = '3-1'", "0-7"]),
        ("phi-3-mini", {"cpus": "0-3"}, ["phi-3-mini.cpus = '0-3'", "4 CPUs", "cores is 2"]),
        ("phi-3-mini", {"revision": "../../etc"}, ["phi-3-mini.revision"]),
        ("phi-3-mini", {"kind": "image"}, ["phi-3-mini.kind = 'image'", "embeddings"]),
        ("phi-3-mini", {"kv_cache_gib": -1}, ["phi-3-mini.kv_cache_gib = -1"]),
        ("phi-3-mini", {"source": {"kind": "ftp"}}, ["phi-3-mini.source", "hub, mirror"]),
        ("phi-3-mini", {"replicas": 12}, ["phi-3-mini.replicas = 12", "from 1 to 9"]),
        ("phi-3-mini", {"repository": ""}, ["phi-3-mini.repository", "owner/name"]),
        ("phi-4", {"port": 1}, ["phi-4", "no such model", "phi-3-mini"]),
    ],
)
def test_refuses_with_stanza_key_value_and_way_out(
    models: Any, model: str, change: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(CatalogueError) as refusal:
        models({model: change})
    assert "\n" not in str(refusal.value)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize("name", ["Mixtral", "a b", "a--b", "-a", "a-", "a/b", "ä", "a@b", "a" * 49, "", "a%i"])
def test_refuses_names_that_systemd_cannot_take(models: Any, committed: dict[str, Any], name: str) -> None:
    with pytest.raises(CatalogueError, match="systemd"):
        models(extra={name: {**committed["citadel_models"]["phi-3-mini"], "port": 11499}})


def test_refuses_a_port_of_another_service(committed: dict[str, Any]) -> None:
    stanzas = catalogue.complete(committed["citadel_models"], committed["citadel_models_defaults"])
    with pytest.raises(CatalogueError, match="the gateway"):
        catalogue.parse(stanzas, {11402: "the gateway"})


def test_replicas_have_ports_and_names_of_their_own(models: Any) -> None:
    two = next(one for one in models({"phi-3-mini": {"replicas": 2}}) if one.name == "phi-3-mini")
    assert two.instances() == [("phi-3-mini-1", 11403), ("phi-3-mini-2", 11503)]


def test_a_replica_cannot_take_another_models_port_or_name(models: Any, committed: dict[str, Any]) -> None:
    stanza = committed["citadel_models"]["phi-3-mini"]
    with pytest.raises(CatalogueError, match="both want port 11503"):
        models({"phi-3-mini": {"replicas": 2}}, {"other": {**stanza, "port": 11503}})
    with pytest.raises(CatalogueError, match="two instances would be called phi-3-mini-2"):
        models({"phi-3-mini": {"replicas": 2}}, {"phi-3-mini-2": {**stanza, "port": 11600}})


def test_a_model_can_be_left_out_but_not_all(models: Any) -> None:
    assert len(models({"mixtral-8x7b": {"enabled": False}})) == 3
    with pytest.raises(CatalogueError, match="no model is left"):
        models({name: {"enabled": False} for name in FIGURES})


def test_overrides_reach_into_mappings(committed: dict[str, Any]) -> None:
    stanzas = catalogue.complete(
        committed["citadel_models"],
        committed["citadel_models_defaults"],
        {"hermes-2": {"generation": {"temperature": 0.1}}},
    )
    assert stanzas["hermes-2"]["generation"]["temperature"] == 0.1
    assert stanzas["hermes-2"]["generation"]["max_tokens"] == 1024
    assert stanzas["phi-3-mini"]["generation"]["temperature"] == 0.7


@given(st.sets(st.integers(0, 300), max_size=40))
def test_a_list_of_cpus_survives_being_written(cpus: set[int]) -> None:
    assert parse_cpus(format_cpus(tuple(cpus))) == tuple(sorted(cpus))


def test_lists_of_cpus_are_short() -> None:
    assert format_cpus((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"
    assert parse_cpus(" 7-8, 0-2,5 ") == (0, 1, 2, 5, 7, 8)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("mixtral_8x7b", "mixtral-8x7b"),
        ("mixtral", "mixtral-8x7b"),
        ("hermes_2", "hermes-2"),
        ("nous-hermes2", "hermes-2"),
        ("openchat_3_5", "openchat-3.5"),
        ("openchat-3-5", "openchat-3.5"),
        ("openchat", "openchat-3.5"),
        ("phi_3_mini", "phi-3-mini"),
        ("phi3", "phi-3-mini"),
        ("text-embedding-ada-002", "nomic-embed-text"),
    ],
)
def test_every_name_that_the_documents_use(models: Any, name: str, model: str) -> None:
    assert [one.name for one in models(vectors=True) if name in one.aliases] == [model]


def test_each_model_that_talks_has_a_collection(models: Any) -> None:
    found = catalogue.vectors(
        models(vectors=True), {"url": "http://x:6333", "collections": {"hermes-2": {"size": 4096}}}
    )
    assert found["collections"]["phi-3-mini"] == {"name": "phi3_embeddings", "size": 768}
    assert found["collections"]["hermes-2"] == {"name": "hermes_embeddings", "size": 4096}
    assert "nomic-embed-text" not in found["collections"]
    assert found["embeddings"]["query_prefix"] == "search_query: "
    assert catalogue.vectors(models(), {}) == {}
    with pytest.raises(CatalogueError, match="enable one"):
        catalogue.vectors(models(), {"url": "http://x:6333"})


def test_each_model_has_a_schema_of_its_own(models: Any) -> None:
    found = catalogue.schemas(models())
    assert found["phi-3-mini"] == "phi3"
    assert len(set(found.values())) == len(found)
