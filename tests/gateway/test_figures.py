"""The way in to the models' figures: theirs as they come, all of them at once, and none that keeps back another's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from citadel_gateway import figures
from tests.gateway.harness import Lab, running

pytestmark = pytest.mark.anyio

TWO: dict[str, dict[str, Any]] = {"phi": {}, "mixtral": {}}


async def asked(lab: Lab, path: str) -> tuple[int, str]:
    answer = await lab.client.get(lab.url("export") + path)
    return answer.status_code, answer.text


async def test_each_model_and_the_gateway_have_a_path_of_their_own() -> None:
    async with running(models=TWO) as lab:
        status, text = await asked(lab, "/metrics/phi")
        assert status == 200
        assert 'model_name="phi"' in text
        assert "llm_" not in text
        status, text = await asked(lab, "/metrics/gateway")
        assert status == 200
        assert "llm_client_connections" in text
        assert "vllm:" not in text


async def test_all_of_them_are_one_exposition() -> None:
    async with running(models=TWO) as lab:
        status, text = await asked(lab, "/metrics")
        assert status == 200
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        of = {sample.labels["model"] for sample in samples if sample.name == "vllm:num_requests_running"}
        assert of == {"phi", "mixtral"}
        assert "llm_client_connections" in {sample.name for sample in samples}


async def test_several_replicas_of_a_model_are_told_apart() -> None:
    async with running(replicas=2) as lab:
        status, text = await asked(lab, "/metrics/phi")
        assert status == 200
        assert 'replica="phi-1"' in text
        assert 'replica="phi-2"' in text
        status, text = await asked(lab, "/metrics/phi-2")
        assert status == 200
        assert "replica=" not in text


async def test_what_has_no_figures_says_who_has_some(lab: Lab) -> None:
    assert await asked(lab, "/metrics/nobody") == (404, "nobody has no figures; known are gateway, phi\n")
    assert (await asked(lab, "/v1/models"))[0] == 404


async def test_a_model_that_is_down_keeps_nobody_elses_figures_back() -> None:
    async with running(models=TWO) as lab:
        await lab.simulators["phi"].close()
        status, text = await asked(lab, "/metrics/phi")
        assert status == 503
        assert text.startswith("phi does not answer (")
        status, text = await asked(lab, "/metrics")
        assert status == 200
        theirs = [line for line in text.splitlines() if line.startswith("vllm:")]
        assert theirs
        assert all('model="mixtral"' in line for line in theirs)


async def test_a_model_that_hangs_costs_its_own_figures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "PATIENCE", 3.0)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with running(models=TWO) as lab:
        hanging = await asyncio.start_server(hang, "127.0.0.1", 0)
        replica = lab.gateway.fleet.models["phi"].replicas[0]
        replica.pool.close_idle()
        replica.pool.port = hanging.sockets[0].getsockname()[1]
        slow = asyncio.create_task(asked(lab, "/metrics/phi"))
        assert (await asked(lab, "/metrics/mixtral"))[0] == 200
        assert not slow.done(), "the other one is still waited for"
        assert (await slow)[0] == 503
        replica.pool.close()
        hanging.close()
        await hanging.wait_closed()


async def test_scrapes_are_in_nobodys_figures_nor_in_the_log() -> None:
    async with running(models=TWO) as lab:
        await lab.simulators["phi"].close()
        for path in ("/metrics/phi", "/metrics/nobody", "/metrics/mixtral", "/metrics"):
            await asked(lab, path)
        _, text = await asked(lab, "/metrics/gateway")
        counted = [
            line for line in text.splitlines() if line.startswith(("llm_requests_total{", "llm_rejections_total{"))
        ]
        assert not [line for line in counted if not line.endswith(" 0.0")]
        assert not [line for line in lab.records() if line["path"].startswith("/metrics")]


@pytest.mark.parametrize(
    ("line", "labelled"),
    [
        (b"a 1", b'a{x="1"} 1'),
        (b'a{b="c d{"} 1', b'a{x="1",b="c d{"} 1'),
        (b"a{} 1", b'a{x="1"} 1'),
        (b'a_bucket{le="+Inf"} 1', b'a_bucket{x="1",le="+Inf"} 1'),
    ],
)
def test_a_label_is_put_before_the_others(line: bytes, labelled: bytes) -> None:
    assert figures.merged([({"x": "1"}, line)]) == labelled + b"\n"


def test_a_family_of_two_parts_stands_once() -> None:
    one = b'# HELP a of a\n# TYPE a histogram\na_bucket{le="1"} 1\na_sum 1\n# TYPE b gauge\nb 2\n'
    text = figures.merged([({"r": "1"}, one), ({"r": "2"}, one)]).decode()
    assert text.count("# TYPE a ") == text.count("# HELP a ") == 1
    (first, _) = text_string_to_metric_families(text)
    assert {(sample.name, sample.labels["r"]) for sample in first.samples} == {
        ("a_bucket", "1"),
        ("a_sum", "1"),
        ("a_bucket", "2"),
        ("a_sum", "2"),
    }
