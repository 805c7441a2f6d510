"""Variants made here: the bytes that vLLM reads, and a making that is killed, starved, cheated or altered."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from citadel import fetch, making, prestart, quantiser, safetensors, store
from citadel.recipes import RECIPES, revision_of
from citadel.sources import MANIFEST, sha256_of, source_of
from citadel.store import StoreError
from lab.tiny_models import bfloat16, make_large
from tests.weights import matrix, tensor

PYTHON = Path(sys.executable)
PACKAGE = Path(making.__file__).parents[1]
MATRIX = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def base(tiny: Path, tmp_path: Path) -> Path:
    source = source_of("hermes-2", "", "r1", {"kind": "directory", "path": str(tiny / "hermes-2")})
    return fetch.fetch("hermes-2", source, "r1", tmp_path / "models")[0]


def make(base: Path, variant: str, **more: Any) -> Path:
    return making.make(base, "o/n", variant, making.Workshop(PYTHON, **more))[0]


@pytest.mark.parametrize(("variant", "most"), [("int8", 0.01), ("int4", 0.12)])
def test_what_is_read_back_is_the_matrix_but_for_the_error_that_is_told(base: Path, variant: str, most: float) -> None:
    made = make(base, variant)
    told = json.loads((made / making.ERRORS).read_text())
    assert len(told["layers"]) == 14, "seven matrices in each of two layers"
    for name, error in told["layers"].items():
        was = tensor(base, name)
        lost = np.linalg.norm(matrix(made, name) - was) / np.linalg.norm(was)
        assert lost == pytest.approx(error, rel=1e-4)
        assert 0 < lost < most
    assert told["worst"]["error"] == max(told["layers"].values())
    assert told["mean"] == pytest.approx(sum(told["layers"].values()) / 14)
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert (tensor(made, name) == tensor(base, name)).all()


def test_every_expert_is_made_and_no_router(tiny: Path, tmp_path: Path) -> None:
    source = source_of("mixtral-8x7b", "", "r1", {"kind": "directory", "path": str(tiny / "mixtral-8x7b")})
    made = make(fetch.fetch("mixtral-8x7b", source, "r1", tmp_path)[0], "int8")
    kinds = {name: entry["dtype"] for name, entry in safetensors.read_header(made / "model.safetensors").items()}
    assert sum(kind == "I8" for kind in kinds.values()) == 2 * (4 + 3 * 8)
    assert kinds["model.layers.0.block_sparse_moe.gate.weight"] == "BF16"


def test_it_is_a_revision_like_any_other(base: Path) -> None:
    made = make(base, "int8")
    assert made == base.parent / revision_of("int8", "o/n", "r1")
    manifest = store.verify(made, deep=True)
    assert manifest["made"]["source"] == store.digest_of(store.read_manifest(base))
    assert set(manifest["files"]) == {*store.read_manifest(base)["files"], making.ERRORS}
    assert json.loads((made / "config.json").read_text())["quantization_config"]["format"] == "int-quantized"
    assert not list(prestart.model_problems(made))
    assert sorted(path.name for path in base.parent.iterdir()) == sorted([made.name, "r1"]), "nothing else is left"


def test_the_same_source_gives_the_same_bytes(base: Path, tmp_path: Path) -> None:
    first = store.digest_of(store.read_manifest(make(base, "int4")))
    shutil.rmtree(base.parent / revision_of("int4", "o/n", "r1"))
    assert store.digest_of(store.read_manifest(make(base, "int4", workers=3))) == first


def test_the_name_follows_source_and_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {revision_of(v, repository, r) for v in ("int8", "int4") for repository in ("a/b", "c/d") for r in "12"}
    assert len(names) == 8


def sharded(base: Path, folder: Path) -> Path:
    """The same weights in two files with an index."""
    whole = (base / "model.safetensors").read_bytes()
    start = safetensors.data_start(base / "model.safetensors")
    header = safetensors.read_header(base / "model.safetensors")
    folder.mkdir(parents=True)
    where = {}
    for number, names in enumerate((list(header)[::2], list(header)[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        parts, offset, entries = [], 0, {}
        for name in names:
            begin, end = header[name]["data_offsets"]
            entries[name] = {**header[name], "data_offsets": [offset, offset + end - begin]}
            parts.append(whole[start + begin : start + end])
            offset += end - begin
            where[name] = file
        text = json.dumps(entries).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    (folder / safetensors.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    shutil.copy(base / "config.json", folder)
    return folder


def test_several_files_keep_their_names_and_get_an_index(base: Path, tmp_path: Path) -> None:
    place = {"kind": "directory", "path": str(sharded(base, tmp_path / "parts"))}
    made = make(fetch.fetch("parts", source_of("parts", "", "r1", place), "r1", tmp_path / "m")[0], "int8")
    index = json.loads((made / safetensors.INDEX).read_text())
    assert set(index["weight_map"].values()) == {f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    found = safetensors.describe(made)
    assert found["weight_bytes"] == index["metadata"]["total_size"]
    assert found["weight_bytes"] == safetensors.describe(make(base, "int8"))["weight_bytes"]


@pytest.mark.parametrize("variant", ["int8", "int4"])
def test_any_shape_and_value(variant: str, tmp_path: Path) -> None:
    """Zeros, one huge weight, and more rows than one block has."""
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((20_000, 256)).astype(np.float32)
    matrix[7], matrix[9, 3] = 0, 1e4
    raw = bfloat16(matrix)
    (tmp_path / "in").write_bytes(raw.tobytes())
    recipe = RECIPES[variant]
    at, offset = [], 0
    for kind, shape in recipe.written("x", matrix.shape).values():
        at.append(offset)
        offset += making.WIDTHS[kind] * int(np.prod(shape))
    (tmp_path / "out").write_bytes(b"\xff" * offset)
    order = {"name": "x", "source": str(tmp_path / "in"), "target": str(tmp_path / "out"), "offset": 0, "at": at}
    order |= {"length": raw.nbytes, "dtype": "BF16", "shape": [20_000, 256], "bits": recipe.bits, "group": recipe.group}
    assert quantiser.work(order)["error"] < 0.2
    out = (tmp_path / "out").read_bytes()
    numbers = np.frombuffer(out[: at[1]], dtype=np.int8)
    if variant == "int8":
        assert not numbers.reshape(20_000, 256)[7].any()
    scales = out[at[1] : at[2] if len(at) > 2 else None]
    scales_read = quantiser.floats(scales, "BF16" if recipe.group else "F32")
    assert np.isfinite(scales_read).all() and (scales_read > 0).all()


def test_weights_that_are_no_numbers_are_refused(base: Path) -> None:
    path = base / "model.safetensors"
    begin = safetensors.data_start(path) + safetensors.read_header(path)[MATRIX]["data_offsets"][0]
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(b"\xc0\x7f")
    store.write_manifest(base, "x", "r1", {n: sha256_of(base / n) for n in store.read_manifest(base)["files"]}, {})
    with pytest.raises(StoreError, match=r"down_proj.weight.* no numbers"):
        make(base, "int8")
    assert not (base.parent / revision_of("int8", "o/n", "r1")).exists()


def test_a_matrix_that_loses_too_much_is_refused_and_leaves_nothing(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "ERROR_MOST", {"int8": 0.1, "int4": 0.01})
    assert make(base, "int8").exists()
    with pytest.raises(StoreError, match=r"_proj.weight loses 10\.\d% as int4, .*hermes-2.accept_accuracy_loss: true"):
        make(base, "int4")
    assert not list(base.parent.glob("*int4*/*"))
    assert make(base, "int4", accept_loss=True).exists()


class TestCutOff:
    @pytest.fixture
    def large(self, tmp_path: Path) -> Path:
        make_large(0.1e9, tmp_path / "large")
        source = source_of("large", "", "r1", {"kind": "directory", "path": str(tmp_path / "large")})
        return fetch.fetch("large", source, "r1", tmp_path / "models")[0]

    def test_one_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(self, large: Path) -> None:
        command = [sys.executable, "-m", "citadel", "make", "large", "--variant", "int4", "--revision", "r1"]
        command += [
            "--python",
            sys.executable,
            "--root",
            str(large.parents[1]),
            "--workers",
            "1",
            "--repository",
            "o/n",
        ]
        process = subprocess.Popen(
            command, cwd=PACKAGE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        target = large.parent / revision_of("int4", "o/n", "r1")
        notes = large.parent / f".{target.name}.partial" / "done.jsonl"
        while process.poll() is None and not (notes.exists() and notes.read_text().count("\n") >= 3):
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        done = len(list(making.done_before(notes)))
        assert done >= 3
        assert not target.exists(), "a half variant has no name"
        with notes.open("a") as note:
            note.write('["half a li')
        told: list[str] = []
        made = make(large, "int4", tell=told.append)
        assert int(told[0].split("%")[0].split()[-1]) > 0, "what was done counts"
        resumed = store.digest_of(store.verify(made, deep=True))
        shutil.rmtree(made)
        assert store.digest_of(store.read_manifest(make(large, "int4"))) == resumed

    def test_a_worker_that_dies_is_told_and_what_is_made_is_kept(self, large: Path, tmp_path: Path) -> None:
        python = tmp_path / "python"
        python.write_text("#!/bin/sh\nread line\nkill -KILL $$\n")
        python.chmod(0o755)
        with pytest.raises(StoreError, match=r"the process that quantises ended \(-9\); what is made is kept"):
            making.make(large, "o/n", "int8", making.Workshop(python))
        assert make(large, "int8").exists()

    def test_one_of_another_source_is_begun_anew(self, large: Path) -> None:
        partial = large.parent / f".{revision_of('int8', 'o/n', 'r1')}.partial"
        partial.mkdir()
        (partial / "making.json").write_text('{"source": "other"}')
        (partial / "done.jsonl").write_text(f'["{MATRIX}", 0.0]\n')
        abandoned = large.parent / ".int8-0123456789abcdef.partial"
        abandoned.mkdir()
        assert json.loads((make(large, "int8") / making.ERRORS).read_text())["layers"][MATRIX] > 0
        assert not abandoned.exists(), "it would keep its room for ever"

    def test_it_steps_back_for_what_serves(self) -> None:
        code = (
            "import os, ctypes; from citadel import quantiser; quantiser.step_back();"
            "print(os.nice(0), ctypes.CDLL(None).syscall(252, 1, 0) >> 13)"
        )
        told = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=PACKAGE)
        assert told.split() == ["19", "3"]

    def test_the_memory_does_not_grow_with_the_tensors(self, large: Path) -> None:
        """The largest matrix has 46 MB as floats; a process that holds three like it would be beyond this."""
        code = (
            "from citadel import quantiser; quantiser.main();"
            "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])"
        )
        (file,) = making.layout(large, RECIPES["int4"])
        target = large.parent / "out"
        target.write_bytes(b"")
        task = max(file.tasks, key=lambda task: task.length if task.order["bits"] == 4 else 0)
        order = json.dumps({**task.order, "source": str(large / file.name), "target": str(target)})
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, input=order, capture_output=True, text=True, check=True, cwd=PACKAGE)
        assert int(done.stdout.split()[-1]) < 120_000


class TestRoom:
    def test_too_little_is_known_before(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage("/")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(StoreError, match=r"free 0\.3 GB, then run again"):
            make(base, "int8")

    def test_a_disk_that_runs_full_all_the_same(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as broken:
            broken.setattr(os, "posix_fallocate", full)
            with pytest.raises(StoreError, match="has no room for"):
                make(base, "int8")
        assert not (base.parent / revision_of("int8", "o/n", "r1")).exists()
        assert make(base, "int8").exists()


class TestTrust:
    def test_an_altered_variant_is_never_started(self, base: Path) -> None:
        weights = make(base, "int8") / "model.safetensors"
        weights.chmod(0o644)
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        assert "was altered" in next(prestart.model_problems(weights.parent))

    def test_a_source_that_changes_meanwhile(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        right = making.fill

        def meddled(*given: Any) -> dict[str, float]:
            found = right(*given)
            weights = base / "model.safetensors"
            weights.chmod(0o644)
            weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
            return found

        monkeypatch.setattr(making, "fill", meddled)
        with pytest.raises(StoreError, match=r"the source changed while int8 was made"):
            make(base, "int8")
        assert [path.name for path in base.parent.iterdir() if "int8" in path.name and path.is_dir()] == []

    def test_a_source_that_is_not_whole(self, base: Path) -> None:
        (base / "tokenizer.json").unlink()
        with pytest.raises(StoreError, match=r"tokenizer.json is missing"):
            make(base, "int8")

    def test_a_recipe_of_a_newer_version_is_refused(self, base: Path) -> None:
        made = make(base, "int8")
        manifest = store.read_manifest(made)
        manifest["made"]["version"] += 1
        (made / MANIFEST).unlink()
        (made / MANIFEST).write_text(json.dumps(manifest))
        (problem,) = prestart.model_problems(made)
        assert "was made by version 2 of its recipe and this release knows 1" in problem

    def test_an_architecture_that_nobody_tried(self, base: Path) -> None:
        config = json.loads((base / "config.json").read_text())
        with pytest.raises(StoreError, match=r"this is OddForCausalLM; name a repository in .*variants.int4"):
            self.with_config(base, {**config, "architectures": ["OddForCausalLM"]}, "int4")

    def test_one_that_is_quantised_already(self, base: Path) -> None:
        config = json.loads((base / "config.json").read_text())
        with pytest.raises(StoreError, match="is quantised already"):
            self.with_config(base, {**config, "quantization_config": {"bits": 4}}, "int8")

    def with_config(self, base: Path, config: dict[str, Any], variant: str) -> None:
        path = base / "config.json"
        path.chmod(0o644)
        path.write_text(json.dumps(config))
        names = store.read_manifest(base)["files"]
        store.write_manifest(base, "x", "r1", {name: sha256_of(base / name) for name in names}, {})
        make(base, variant)

    def test_matrices_that_the_kernel_does_not_take(self) -> None:
        assert "is no multiple of 32 x 128" in RECIPES["int4"].unfit([64, 200])
        assert not RECIPES["int8"].unfit([63, 200])
