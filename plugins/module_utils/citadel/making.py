"""Makes a variant of a stored model: tensor by tensor, in parallel, going on where a run before was cut off.

What the variant will look like is known from the headers of its source, so each file is laid out at its full length
first: a disk that is too small is known before a weight was read. Then each tensor is put in its place, and written
down once it is on the disk. The folder gets its name last, as that of a fetched revision does.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import pkgutil
import queue
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from . import safetensors, store
from .accuracy import way_out
from .fetch import MARGIN_BYTES, Progress
from .recipes import ERROR_MOST, FAMILIES, RECIPES, VERSION, Recipe, revision_of
from .sources import sha256_of

if TYPE_CHECKING:
    from . import quantiser  # noqa: F401 Ansible sends what is imported, and this has to be sent

ERRORS = "citadel-errors.json"
WIDTHS = {"I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I8": 1}
QUANTISED_FROM = ("BF16", "F16", "F32")
WORKERS_MOST = 8  # more only wait for the disk


class TooMuchLostError(store.StoreError):
    """A matrix that cannot be drawn with so few bits."""


@dataclass(frozen=True)
class Task:
    """One tensor: where it is, and where what becomes of it goes."""

    name: str
    length: int
    order: Mapping[str, Any]


@dataclass(frozen=True)
class File:
    """One file of weights as it will be."""

    name: str
    header: bytes
    size: int
    tensors: tuple[str, ...]
    tasks: tuple[Task, ...]


def made_by(manifest: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """What a manifest says of a making; empty if the files were fetched as they are."""
    made: Mapping[str, Any] = manifest.get("made") or {}
    if made and int(made["version"]) > VERSION:
        raise store.StoreError(
            f"{folder} was made by version {made['version']} of its recipe and this release knows {VERSION}; "
            "deploy a newer release, or remove the folder, which makes it anew"
        )
    return made


def stale(made: Mapping[str, Any], base: Path) -> str:
    """Why a variant is not one of what the store has now; empty if it is, or if its source is not kept."""
    try:
        now = store.digest_of(store.read_manifest(base)) if made else ""
    except store.StoreError:
        return ""
    return "" if not made or made["source"] == now else f"it was made from other files than {base} has"


@dataclass(frozen=True)
class Workshop:
    """What it is made with: a Python that has numpy, how many processes, and whom to tell how far they are."""

    python: Path
    workers: int = 0
    tell: Callable[[str], None] = lambda line: None
    accept_loss: bool = False  # whatever the errors are


def make(base: Path, repository: str, variant: str, workshop: Workshop) -> tuple[Path, dict[str, Any]]:
    """The folder and manifest of a variant of the revision in `base`."""
    recipe = RECIPES[variant]
    source = store.verify(base, deep=False)
    identity = {
        "variant": variant,
        "version": recipe.version,
        "recipe": recipe.digest,
        "source": store.digest_of(source),
    }
    files = list(layout(base, recipe))
    target = base.parent / revision_of(variant, repository, base.name)
    partial = begun(target.parent / f".{target.name}.partial", identity)
    reserve(partial, files)
    try:
        errors = fill(partial, base, files, workshop)
    except TooMuchLostError:
        shutil.rmtree(partial)  # nobody will go on with it
        raise
    try:
        store.verify(base, deep=False)
    except store.StoreError as error:
        shutil.rmtree(partial)  # nobody knows which of it came from what
        raise store.StoreError(f"the source changed while {variant} was made from it: {error}") from None
    dress(partial, base, recipe, files, errors)
    checksums = checksums_of(partial, source, files)
    safetensors.describe(partial)
    manifest = store.commit(partial, target, source["source"], source["revision"], checksums, more={"made": identity})
    partial.with_suffix(".progress").unlink(missing_ok=True)
    return target, manifest


def default_workers() -> int:
    return min(WORKERS_MOST, len(os.sched_getaffinity(0)))


def layout(base: Path, recipe: Recipe) -> Iterator[File]:
    model = base.parent.name
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    family = next(iter(config.get("architectures") or ["unknown"]))
    if family not in FAMILIES:
        raise store.StoreError(
            f"{model}: {recipe.variant} is made of {', '.join(sorted(FAMILIES))}, and this is {family}; "
            f"name a repository in citadel_models.{model}.variants.{recipe.variant}"
        )
    if config.get("quantization_config"):
        raise store.StoreError(f"{model}: {base} is quantised already; give the original as its repository")
    for name in safetensors.files_of(base):
        yield laid_out(base / name, recipe)


def laid_out(path: Path, recipe: Recipe) -> File:
    start = safetensors.data_start(path)
    parts: list[tuple[str, str, list[int]]] = []
    pieces: dict[str, list[str]] = {}
    tensors = safetensors.read_header(path)
    for name, entry in tensors.items():
        written = {name: (entry["dtype"], entry["shape"])}
        if recipe.quantises(name, entry["shape"]):
            problem = recipe.unfit(entry["shape"])
            if entry["dtype"] not in QUANTISED_FROM:
                problem = f"it is of type {entry['dtype']}, and only {', '.join(QUANTISED_FROM)} can be quantised"
            if problem:
                raise store.StoreError(f"{path}: {name} cannot be made {recipe.variant}: {problem}; choose another")
            written = recipe.written(name, entry["shape"])
        elif entry["dtype"] not in WIDTHS:
            raise store.StoreError(f"{path}: {name} is of type {entry['dtype']}, which no variant is made of")
        pieces[name] = list(written)
        parts += [(piece, dtype, shape) for piece, (dtype, shape) in written.items()]
    # The widest first keeps every tensor where its type may begin.
    parts.sort(key=lambda part: (-WIDTHS[part[1]], part[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at: dict[str, int] = {}
    offset = 0
    for piece, dtype, shape in parts:
        size = WIDTHS[dtype] * math.prod(shape)
        header[piece] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        at[piece] = offset
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    tasks = []
    for name, entry in tensors.items():
        length = safetensors.tensor_bytes(entry)
        quantised = pieces[name] != [name]
        order = {
            "name": name,
            "offset": start + entry["data_offsets"][0],
            "length": length,
            "dtype": entry["dtype"],
            "shape": entry["shape"],
            "bits": recipe.bits if quantised else 16,
            "group": recipe.group,
            "at": [len(head) + at[piece] for piece in pieces[name]],
        }
        tasks.append(Task(name, length, order))
    return File(path.name, head, len(head) + offset, tuple(at), tuple(tasks))


def begun(partial: Path, identity: Mapping[str, Any]) -> Path:
    """The folder of an unfinished making, empty unless it is one of the very same."""
    note = partial / "making.json"
    if note.exists():
        try:
            same = json.loads(note.read_text(encoding="utf-8")) == identity
        except ValueError:
            same = False
        if same:
            return partial
    # What nobody will go on with has taken its full room already.
    for abandoned in partial.parent.glob(f".{identity['variant']}-*.partial"):
        shutil.rmtree(abandoned, ignore_errors=True)
    partial.mkdir(parents=True)
    note.write_text(json.dumps(identity), encoding="utf-8")
    return partial


def reserve(partial: Path, files: Iterable[File]) -> None:
    """Every file at its full length, so that the disk cannot run full later."""
    new = [file for file in files if not (partial / file.name).exists()]
    free, wanted = shutil.disk_usage(partial).free, sum(file.size for file in new)
    if new and wanted + MARGIN_BYTES > free:
        raise store.StoreError(
            f"{partial.parent} has {free / 1e9:.1f} GB free and a variant takes {wanted / 1e9:.1f} GB; "
            f"free {(wanted + MARGIN_BYTES - free) / 1e9:.1f} GB, then run again"
        )
    for file in new:
        aside = partial / f".{file.name}"
        try:
            with aside.open("wb") as stream:
                os.posix_fallocate(stream.fileno(), 0, file.size)
                stream.write(file.header)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            aside.unlink(missing_ok=True)
            if error.errno != errno.ENOSPC:
                raise
            raise store.StoreError(f"{partial.parent} has no room for {file.size / 1e9:.1f} GB; make some") from None
        aside.replace(partial / file.name)


@dataclass
class Making:
    """What the workers share: tensors still to come, and what was lost of those that are done."""

    tasks: queue.SimpleQueue[tuple[File, Task]]
    note: IO[str]
    progress: Progress
    errors: dict[str, float]
    most: Mapping[int, float]  # bits -> the error at which it ends
    faults: list[store.StoreError] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> tuple[File, Task] | None:
        try:
            return None if self.faults else self.tasks.get_nowait()
        except queue.Empty:
            return None

    def done(self, task: Task, error: float) -> None:
        with self.lock:
            self.errors[task.name] = error
            self.note.write(json.dumps([task.name, error]) + "\n")
            self.note.flush()
        self.judge(task, error)
        self.progress.add(task.length)

    def judge(self, task: Task, error: float) -> None:
        most = self.most.get(task.order["bits"], math.inf)
        if error > most:
            model = self.progress.model
            problem = f"{model}: {task.name} loses {error:.1%} as int{task.order['bits']}"
            self.faults.append(TooMuchLostError(f"{problem}, and {most:.1%} is the most there is; {way_out(model)}"))


def fill(partial: Path, base: Path, files: Iterable[File], workshop: Workshop) -> dict[str, float]:
    """Puts every tensor in its place that is not there yet, and gives the error of each."""
    notes = partial / "done.jsonl"
    errors = dict(done_before(notes))
    everything = [(file, task) for file in files for task in file.tasks]
    total = sum(task.length for _, task in everything)
    progress = Progress(base.parent.name, total, partial.with_suffix(".progress"), workshop.tell)
    tasks: queue.SimpleQueue[tuple[File, Task]] = queue.SimpleQueue()
    most = {} if workshop.accept_loss else {RECIPES[variant].bits: most for variant, most in ERROR_MOST.items()}
    with notes.open("a", encoding="utf-8") as note:
        making = Making(tasks, note, progress, errors, most)
        for file, task in everything:
            if task.name in errors:
                progress.done += task.length
                making.judge(task, errors[task.name])
            else:
                tasks.put((file, task))
        if not tasks.empty():
            workers = workshop.workers or default_workers()
            with ThreadPoolExecutor(workers) as pool:
                for future in [pool.submit(employ, making, base, partial, workshop.python) for _ in range(workers)]:
                    future.result()
    if making.faults:
        raise making.faults[0]
    progress.add(0, force=True)
    return errors


def done_before(notes: Path) -> Iterator[tuple[str, float]]:
    if notes.exists():
        for line in notes.read_text(encoding="utf-8").splitlines():
            try:
                name, error = json.loads(line)
            except ValueError:
                return  # the line that was being written when the run was cut off
            yield name, error


def employ(making: Making, base: Path, partial: Path, python: Path) -> None:
    """One process that works until nothing is left. Its program is given as text, since Ansible keeps it zipped."""
    program = pkgutil.get_data(__package__, "quantiser.py") or b""
    command = [str(python), "-c", program.decode()]
    alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=alone) as process:
        assert process.stdin and process.stdout  # noqa: S101 they are pipes
        while (found := making.next()) is not None:
            file, task = found
            order = {**task.order, "source": str(base / file.name), "target": str(partial / file.name)}
            try:
                process.stdin.write(json.dumps(order) + "\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline() or "{}")
            except OSError:
                answer = {}
            if "error" not in answer:
                problem = answer.get("fault") or f"the process that quantises ended ({process.wait()})"
                told = f"{partial.parent.name}: {task.name}: {problem}; what is made is kept"
                making.faults.append(store.StoreError(told))
                break
            making.done(task, answer["error"])
        process.stdin.close()


def dress(partial: Path, base: Path, recipe: Recipe, files: Iterable[File], errors: Mapping[str, float]) -> None:
    """Everything beside the weights: the configuration, the index, the errors, and the rest as it is."""
    files = list(files)
    for name in store.read_manifest(base)["files"]:
        if name not in {"config.json", safetensors.INDEX, *(file.name for file in files)}:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base / name, partial / name)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    write_json(partial / "config.json", {**config, "quantization_config": recipe.described()})
    if len(files) > 1:
        total = sum(file.size - len(file.header) for file in files)
        where = {tensor: file.name for file in files for tensor in file.tensors}
        write_json(partial / safetensors.INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    of_layers = {
        task.name: errors[task.name] for file in files for task in file.tasks if task.order["bits"] == recipe.bits
    }
    worst = max(of_layers, key=lambda name: of_layers[name], default="")
    summary = {
        "worst": {"tensor": worst, "error": of_layers.get(worst, 0.0)},
        "mean": sum(of_layers.values()) / max(len(of_layers), 1),
        "layers": of_layers,
    }
    write_json(partial / ERRORS, summary)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def checksums_of(partial: Path, source: Mapping[str, Any], files: Iterable[File]) -> dict[str, str]:
    names = {*source["files"], *(file.name for file in files), ERRORS} - {safetensors.INDEX}
    if (partial / safetensors.INDEX).exists():
        names.add(safetensors.INDEX)
    with ThreadPoolExecutor(default_workers()) as pool:
        found = dict(zip(names, pool.map(lambda name: sha256_of(partial / name), names), strict=True))
    for name, checksum in found.items():
        expected = source["files"].get(name, {}).get("sha256")
        copied = name != "config.json" and not name.endswith(".safetensors") and name != safetensors.INDEX
        if copied and name != ERRORS and checksum != expected:
            raise store.StoreError(f"{name} changed while the variant was made; run again")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model")
    parser.add_argument("--variant", choices=tuple(RECIPES), required=True)
    parser.add_argument("--revision", required=True, help="of the stored model that it is made from")
    parser.add_argument("--repository", default="", help="owner/name of that revision, which the result is named by")
    parser.add_argument("--python", type=Path, required=True, help="a Python that has numpy: <environment>/bin/python")
    parser.add_argument("--root", type=Path, default=Path("/opt/models"))
    parser.add_argument("--workers", type=int, default=0, help="processes at once; 0: as many as there are cores")


def run(arguments: argparse.Namespace) -> int:
    base = arguments.root / arguments.model / arguments.revision
    workshop = Workshop(arguments.python, arguments.workers, print)
    try:
        target, _ = make(base, arguments.repository, arguments.variant, workshop)
    except (store.StoreError, safetensors.WeightsError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(target)
    return 0
