"""What a variant costs: the figures, the bounds, and a measurement from the store to the plan that refuses."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from citadel import accuracy, capacity, evaluator, fetch, making, measuring, offering, passages, safetensors, store
from citadel.accuracy import Reading, Report
from citadel.catalogue import CatalogueError, Model
from citadel.measuring import Bench, MeasureError
from citadel.needs import Knowledge
from citadel.serving import Places
from citadel.settings import Settings
from citadel.sources import sha256_of, source_of
from citadel.topology import GIB, Host
from tests.unit.models import numpy_engine
from tests.weights import FILE, rewritten

ROOT = Path(__file__).resolve().parents[3]
NAME = "hermes-2"
MATRICES = [f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in range(2) for part in ("gate", "up", "down")]
BOUND = {"int8": 1.01, "int4": 1.05}


class TestFigures:
    def reading(self, *rows: dict[int, float], came: int = 0) -> Reading:
        reading = Reading()
        ranked = [sorted(row, key=lambda one: -row[one]) for row in rows]
        reading.add(
            {
                "tokens": [came] * len(rows),
                "likely": [math.log(row[came]) for row in rows],
                "candidates": ranked,
                "chances": [[math.log(row[one]) for one in order] for row, order in zip(rows, ranked, strict=True)],
            }
        )
        return reading

    def test_a_model_agrees_with_itself(self) -> None:
        same = self.reading({0: 0.5, 1: 0.3, 2: 0.2})
        found = accuracy.compared(same, same)
        assert found["agreement"] == 1 and found["divergence"] == pytest.approx(0, abs=1e-12)
        assert found["perplexity"] == found["original"] == pytest.approx(2)

    def test_divergence_is_exact_where_all_is_told_and_never_more_where_it_is_not(self) -> None:
        p, q = {0: 0.5, 1: 0.3, 2: 0.2}, {0: 0.25, 1: 0.25, 2: 0.5}
        exact = sum(p[one] * math.log(p[one] / q[one]) for one in p)
        found = accuracy.compared(self.reading(p), self.reading(q))
        assert found["divergence"] == pytest.approx(exact, rel=1e-6)
        assert found["agreement"] == 0 and found["perplexity"] / found["original"] == pytest.approx(2)
        part = accuracy.compared(self.reading({0: 0.5, 1: 0.3}), self.reading({0: 0.25, 2: 0.5}))
        assert 0 < part["divergence"] < exact

    def test_a_variant_that_gives_no_numbers_is_not_let_through(self, model: Model) -> None:
        broken = self.reading({0: 1.0})
        broken.likely = [math.nan]
        report = Report("int8", "w", "t", **accuracy.compared(self.reading({0: 0.5}), broken))  # type: ignore[arg-type]
        assert "has nan times the perplexity" in accuracy.objection(model, "int8", report)
        broken.likely = [-math.inf]
        assert broken.perplexity > 1e300

    def test_other_tokens_are_not_compared(self) -> None:
        with pytest.raises(ValueError, match="tokenizers differ"):
            accuracy.compared(self.reading({0: 1.0}), self.reading({1: 1.0}, came=1))


class TestProgram:
    """What the program in vLLM's environment does before and after vLLM; vLLM itself is asked in the lab."""

    def test_windows_hold_every_token_once_behind_the_first(self) -> None:
        found = list(evaluator.windows(range(10), 5, [99]))
        assert [piece[0] for piece in found] == [99, 99, 99]
        assert [token for piece in found for token in piece[1:]] == list(range(10))
        assert list(evaluator.windows(range(11), 5, [])) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], (
            "one token tells nothing"
        )

    def test_the_token_that_came_is_told_also_where_it_is_no_candidate(self) -> None:
        class Chance:
            def __init__(self, logprob: float, rank: int) -> None:
                self.logprob, self.rank = logprob, rank

        found = evaluator.answer([7, 3], [None, {3: Chance(-9.0, 40), 5: Chance(-1.0, 2), 8: Chance(-0.5, 1)}], 2)
        assert found == {"tokens": [3], "likely": [-9.0], "candidates": [[8, 5]], "chances": [[-0.5, -1.0]]}


def test_the_text_is_long_and_of_many_kinds() -> None:
    assert 20_000 < len(passages.TEXT) < 60_000
    assert all(word in passages.TEXT for word in ("def ", "SELECT", "| Mars", "über", "Hélène"))


@pytest.fixture
def model(models: Any) -> Model:
    found: dict[str, Model] = {one.name: one for one in models()}
    return replace(found[NAME], accuracy=BOUND)


@pytest.fixture(scope="module")
def shop(tiny: Path, committed: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a network that has an opinion, both variants of it, and a text that it drew itself."""
    shop, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(3)
    header = safetensors.read_header(tiny / NAME / FILE)
    sharp = {"model.embed_tokens.weight": 1.0, "lm_head.weight": 0.2, **dict.fromkeys(MATRICES, 0.045)}
    numbers = {name: rng.normal(0, sharp[name], header[name]["shape"]).astype(np.float32) for name in sharp}
    rewritten(tiny / NAME, shop / "source" / NAME, list(sharp), numbers.__getitem__)
    stanza = committed["citadel_models"][NAME]
    source = source_of(NAME, "", stanza["revision"], {"kind": "directory", "path": str(shop / "source" / NAME)})
    base, _ = fetch.fetch(NAME, source, stanza["revision"], shop / "models")
    for variant in ("int8", "int4"):
        making.make(base, stanza["repository"], variant, making.Workshop(Path(sys.executable)))
    chances = np.exp(numpy_engine.table(base))
    tokens = [0]
    for _ in range(3000):
        tokens.append(int(rng.choice(len(chances), p=chances[tokens[-1]] / chances[tokens[-1]].sum())))
    (shop / "text").write_text(" ".join(map(str, tokens)))
    return shop


@pytest.fixture
def bench(shop: Path, tmp_path: Path) -> Bench:
    shutil.copytree(shop / "models", tmp_path / "models")
    environment = tmp_path / "env"
    paths = f"PYTHONPATH={ROOT}/plugins/module_utils:{ROOT}"
    stand_in(environment, f"{paths} exec {sys.executable} {numpy_engine.__file__}")
    places = Places(str(environment), str(tmp_path / "models"), str(tmp_path), Settings(libraries=()))
    place = {"kind": "directory", "path": f"{shop}/source/{{model}}"}
    host = Host.sketched(4, 64 * GIB, isa="avx512")
    return Bench(tmp_path / "models", places, host, source=place, text=(shop / "text").read_text())


def stand_in(environment: Path, script: str) -> None:
    python = environment / "bin/python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)


def folder(bench: Bench, model: Model, variant: str) -> Path:
    return bench.root / model.name / model.weights[variant].revision


def spoil(made: Path) -> None:
    """Scales that are a tenth too large, in files that are as whole as any."""
    path = made / FILE
    start, header = safetensors.data_start(path), safetensors.read_header(path)
    path.chmod(0o644)
    with path.open("r+b") as file:
        for name in MATRICES:
            begin, end = header[f"{name}_scale"]["data_offsets"]
            file.seek(start + begin)
            scales = np.frombuffer(file.read(end - begin), np.float32) * np.float32(1.1)
            file.seek(start + begin)
            file.write(scales.tobytes())
    manifest = store.read_manifest(made)
    names = {name: sha256_of(made / name) for name in manifest["files"]}
    store.write_manifest(made, "x", manifest["revision"], names, {"made": manifest["made"]})


def test_variants_are_measured_and_the_figures_stand_beside_their_manifests(bench: Bench, model: Model) -> None:
    told: list[str] = []
    int8, int4 = measuring.measure(model, replace(bench, tell=told.append))
    assert (int8.variant, int4.variant) == ("int8", "int4")
    assert 1.5 < int8.original < 200, "a network without an opinion would lose nothing"
    assert int8.ratio < 1.01 and 1.001 < int4.ratio < 1.05
    assert 0 < int8.divergence < int4.divergence < 0.05
    assert int8.agreement > int4.agreement > 0.8
    assert accuracy.read(folder(bench, model, "int8")) == int8
    assert "hermes-2 as int4: 6 of 6 windows read, 0 s to go" in told
    assert not list(Path(bench.places.cache).glob(".measuring-*"))
    (line,) = [one for one in offered(bench, model) if " int8 " in one]
    assert f"perplexity {int8.perplexity:.2f} instead of {int8.original:.2f}" in line


def offered(bench: Bench, model: Model) -> list[str]:
    return list(offering.lines([model], bench.host, Knowledge(), bench.root, {}))


def test_what_was_not_measured_says_how(bench: Bench, model: Model) -> None:
    assert sum("not measured yet: make variants MEASURE=hermes-2" in line for line in offered(bench, model)) == 2


def test_a_bad_variant_is_found_out_and_the_plan_refuses_it(bench: Bench, model: Model) -> None:
    made = folder(bench, model, "int8")
    spoil(made)
    int8, _ = measuring.measure(model, bench)
    assert int8.ratio > 1.01
    knowledge = Knowledge(reports=accuracy.reports([model], bench.root))
    with pytest.raises(
        CatalogueError, match=r"int8 of hermes-2 has 1\.\d+ times .*, or set .*accept_accuracy_loss: true"
    ):
        capacity.plan([replace(model, variant="int8")], bench.host, knowledge=knowledge)
    spoil(made)
    assert accuracy.read(made) is None, "the figures were of other files"


def test_the_original_is_fetched_again_when_it_was_collected(bench: Bench, model: Model) -> None:
    base = folder(bench, model, "bf16")
    base.rename(base.with_name("aside"))
    assert [report.tokens for report in measuring.measure(model, bench)] == [2995, 2995]
    assert base.exists()


def test_what_the_processor_cannot_run_is_told_by_its_matrices_alone(bench: Bench, model: Model) -> None:
    host = Host.sketched(4, 64 * GIB, isa="avx2")
    int8, int4 = measuring.measure(model, replace(bench, host=host))
    assert int8.tokens and not int4.tokens
    assert str(int4) == "by its matrices alone: int4 needs AVX512, which this host has not got"


def test_what_does_not_fit_disturbs_nobody(bench: Bench, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "read_meminfo", lambda _: {"MemAvailable": GIB})
    stand_in(Path(bench.places.environment), "exit 1")
    reasons = [report.reason for report in measuring.measure(model, bench)]
    assert len(reasons) == 2
    assert all("1.0 GiB are available; stop a model for that time" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo >&2 'ValueError: no such layer'; exit 1", "could not read the text: ValueError: no such layer"),
        ("kill -9 $$", "ended by signal 9, perhaps for want of memory"),
        ("echo '{\"windows\": 0}'", "could not read the text: it said nothing"),
    ],
)
def test_an_engine_that_fails(bench: Bench, model: Model, script: str, told: str) -> None:
    stand_in(Path(bench.places.environment), f"cat >/dev/null; {script}")
    with pytest.raises(MeasureError, match=told):
        list(measuring.measure(model, bench))
    assert not list(bench.root.glob(f"*/*/{accuracy.REPORT}"))
    assert not list(Path(bench.places.cache).glob(".measuring-*"))


def test_a_model_of_which_there_is_no_variant(bench: Bench, models: Any) -> None:
    (phi,) = [one for one in models() if one.name == "phi-3-mini"]
    with pytest.raises(MeasureError, match="no variant of it to measure, only nothing; deploy one"):
        list(measuring.measure(phi, bench))


class TestPlan:
    """Of a host that is too small for bf16, and reports that somebody wrote."""

    SMALL = Host.sketched(4, 20 * GIB, isa="avx512")

    def knowledge(self, model: Model, **ratios: float) -> Knowledge:
        return Knowledge(
            reports={
                f"{model.name}/{model.weights[variant].revision}": Report(
                    variant, "w", "t", "2026-11-25", tokens=9, original=10.0, perplexity=10.0 * ratio
                )
                for variant, ratio in ratios.items()
            }
        )

    @pytest.fixture
    def variant(self, model: Model) -> Callable[..., tuple[str, str]]:
        def planned(host: Host = self.SMALL, accept: bool = False, **ratios: float) -> tuple[str, str]:
            asked = replace(model, accept_accuracy_loss=accept)
            plan = capacity.plan([asked], host, knowledge=self.knowledge(model, **ratios))
            return plan.placed[0].need.variant, "\n".join(plan.notes)

        return planned

    def test_within_its_bound_it_is_chosen(self, variant: Any) -> None:
        chosen, notes = variant(int8=1.009)
        assert chosen == "int8" and "perplexity" not in notes

    def test_beyond_its_bound_another_is_chosen_and_the_plan_says_why(self, variant: Any) -> None:
        chosen, notes = variant(int8=1.02)
        assert chosen == "int4"
        assert "int8 of hermes-2 has 1.020 times the perplexity of the original (measured 2026-11-25)" in notes
        assert "citadel_models.hermes-2.accuracy.int8 allows 1.01, so the plan does not choose it" in notes

    def test_where_nothing_else_fits_it_is_refused_with_the_figure_and_the_way_out(self, variant: Any) -> None:
        with pytest.raises(capacity.DoesNotFit) as refused:
            variant(int8=1.02, int4=1.3)
        assert "int4 of hermes-2 has 1.300 times the perplexity" in str(refused.value)
        assert "set citadel_models.hermes-2.accept_accuracy_loss: true" in str(refused.value)

    def test_who_accepts_the_loss_is_served_and_told(self, variant: Any) -> None:
        chosen, notes = variant(accept=True, int8=1.02)
        assert chosen == "int8"
        assert "allows 1.01; it is served all the same, as accept_accuracy_loss says" in notes


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"accuracy": {"int2": 1.1}}, "'int2' is none of int8, int4"),
        ({"accuracy": {"int8": 0.9}}, "int8: give the most perplexity as a share of bf16's"),
        ({"accuracy": {"int8": "1 %"}}, "int8: give the most perplexity"),
        ({"accept_accuracy_loss": "yes"}, "give true or false"),
    ],
)
def test_a_bound_that_cannot_be_meant(models: Any, keys: dict[str, Any], told: str) -> None:
    with pytest.raises(CatalogueError, match=told):
        models({NAME: keys})
