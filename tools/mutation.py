"""`make mutate`: small wrongs are put into the gateway's stations one at a time; the tests must notice each of them.

    MUTANTS=40 SEED=1 STATIONS=admission,route make mutate

A mutant is one operator, number or truth value changed. It is killed when a test of its station fails or hangs. What
lives is shown with its line: either a test is missing, or the change makes no difference.
"""

from __future__ import annotations

import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools import toolchain
from tools.phases import ROOT, Failure, say

SOURCE = ROOT / "gateway" / "src" / "citadel_gateway"
ALONE = "tests/gateway/stations"
CHAOS = "tests/chaos/gateway"
SHARES = "tests/gateway/test_shares.py"
# the tests of each station, those that fail soonest first: of the station by itself, then before simulated models
STATIONS: dict[str, tuple[str, ...]] = {
    "admission": (f"{ALONE}/test_admission.py", SHARES, f"{CHAOS}/test_limits.py", f"{CHAOS}/test_upstreams.py"),
    "bounds": (f"{ALONE}/test_bounds.py", "tests/gateway/test_parameters.py"),
    "breaker": (f"{ALONE}/test_breaker.py", f"{CHAOS}/test_poison.py", f"{CHAOS}/test_upstreams.py"),
    "envelope": (
        f"{ALONE}/test_envelope.py",
        "tests/gateway/test_parameters.py",
        "tests/gateway/test_route.py",
        "tests/gateway/test_api.py",
    ),
    "identity": (f"{ALONE}/test_identity.py", "tests/gateway/test_keys.py", SHARES),
    "limits": (f"{ALONE}/test_limits.py", "tests/gateway/test_limits.py", f"{CHAOS}/test_limits.py"),
    "quarantine": (f"{ALONE}/test_quarantine.py", f"{CHAOS}/test_poison.py"),
    "relay": (
        f"{ALONE}/test_relay.py",
        f"{CHAOS}/test_upstreams.py",
        f"{CHAOS}/test_poison.py",
        "tests/gateway/test_api.py",
    ),
    "reservation": (f"{ALONE}/test_reservation.py", SHARES, f"{CHAOS}/test_limits.py"),
    "route": (f"{ALONE}/test_route.py", "tests/gateway/test_route.py", SHARES),
    "settlement": (f"{ALONE}/test_reservation.py", SHARES, f"{CHAOS}/test_limits.py"),
    "sse": (f"{ALONE}/test_sse.py", SHARES, f"{CHAOS}/test_upstreams.py"),
}
PATIENCE = 240  # seconds of a mutant's tests; one that hangs is noticed, too
_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    station: str
    line: int
    what: str
    source: str

    def __str__(self) -> str:
        text = (SOURCE / f"{self.station}.py").read_text().splitlines()[self.line - 1].strip()
        return f"{self.station}.py:{self.line}: {self.what} in `{text}`"


def _skipped(tree: ast.AST) -> set[int]:
    """Nodes that are no decisions: annotations, and what only type checkers read."""
    skipped: set[int] = set()

    def skip(node: ast.AST | None) -> None:
        if node is not None:
            skipped.update(id(inner) for inner in ast.walk(node))

    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            skip(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            skip(node.returns)
            for argument in (*node.args.args, *node.args.kwonlyargs):
                skip(argument.annotation)
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            skip(node)
        elif isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Call) and _is_refusal(node)):
            skip(node)  # what is said is not what is done
    return skipped


def _is_refusal(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id in ("Refusal", "Exceeded")


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may go wrong in this node: a name for it, and the node as it is then."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
        wrong = copy.deepcopy(node)
        wrong.ops = [_SWAPS[type(node.ops[0])](), *wrong.ops[1:]]  # type: ignore[list-item]
        yield f"{type(node.ops[0]).__name__} -> {type(wrong.ops[0]).__name__}", wrong
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in _SWAPS:
        turned = copy.deepcopy(node)
        turned.op = _SWAPS[type(node.op)]()  # type: ignore[assignment]
        yield f"{type(node.op).__name__} -> {type(turned.op).__name__}", turned
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "without not", node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} -> {not node.value}", ast.copy_location(ast.Constant(not node.value), node)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        # one more of a hundred thousand makes no difference that anybody has to notice
        other = node.value + 1 if abs(node.value) <= 1 else node.value * 2
        yield f"{node.value} -> {other}", ast.copy_location(ast.Constant(other), node)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
        call = copy.deepcopy(node)
        call.func = ast.copy_location(ast.Name("max" if node.func.id == "min" else "min", ast.Load()), node)
        yield f"{node.func.id} turned round", call


class _Put(ast.NodeTransformer):
    def __init__(self, at: ast.AST, wrong: ast.AST) -> None:
        self._at, self._wrong = at, wrong

    def visit(self, node: ast.AST) -> ast.AST:
        return self._wrong if node is self._at else self.generic_visit(node)


def mutants(station: str) -> Iterator[Mutant]:
    text = (SOURCE / f"{station}.py").read_text()
    tree = ast.parse(text)
    skipped = _skipped(tree)
    for node in list(ast.walk(tree)):
        if id(node) in skipped:
            continue
        for what, wrong in _changes(node):
            changed = _Put(node, wrong).visit(tree)
            yield Mutant(station, getattr(node, "lineno", 1), what, ast.unparse(ast.fix_missing_locations(changed)))
            tree = ast.parse(text) if changed is not tree else tree
            # put back what was taken out: the walk goes on over the same nodes
            _Put(wrong, node).visit(tree)


def survives(mutant: Mutant, pytest: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="citadel-mutant-") as name:
        folder = Path(name)
        shutil.copytree(SOURCE, folder / "citadel_gateway", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        (folder / "citadel_gateway" / f"{mutant.station}.py").write_text(mutant.source)
        environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
        options = ["-x", "-q", "-p", "no:cacheprovider", f"--override-ini=pythonpath={folder} ."]
        first, *others = STATIONS[mutant.station]
        # nearly all die of the first, which is quick by itself
        return all(_passes(mutant, [pytest, *options, *tests], environment) for tests in ([first], others))


def _passes(mutant: Mutant, command: list[str], environment: dict[str, str]) -> bool:
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1, 2):
        raise Failure(f"{mutant}: pytest cannot run:\n{done.stdout.decode()[-2000:]}")
    return done.returncode == 0


def chosen(stations: list[str], most: int, seed: int) -> list[Mutant]:
    """As many of each station as its size says, the same ones for the same seed."""
    chance = random.Random(seed)  # noqa: S311 - a sample, no secret
    everything = [mutant for station in stations for mutant in mutants(station)]
    return everything if most >= len(everything) else chance.sample(everything, most)


def mutate() -> None:
    stations = [name for name in os.environ.get("STATIONS", "").split(",") if name] or list(STATIONS)
    unknown = set(stations) - set(STATIONS)
    if unknown:
        raise Failure(f"STATIONS: {', '.join(sorted(unknown))}: known are {', '.join(STATIONS)}")
    seed = int(os.environ.get("SEED", "1"))
    todo = chosen(stations, int(os.environ.get("MUTANTS", "60")), seed)
    pytest = str(toolchain.program("pytest"))
    alive: list[Mutant] = []
    began = time.monotonic()
    for number, mutant in enumerate(todo, 1):
        lives = survives(mutant, pytest)
        if lives:
            alive.append(mutant)
        say(f"  {number}/{len(todo)} {'ALIVE ' if lives else 'killed'} {mutant}")
    killed = len(todo) - len(alive)
    say(
        f"{killed} of {len(todo)} mutants were killed ({100 * killed / len(todo):.0f} %), seed {seed}, "
        f"{time.monotonic() - began:.0f} s"
    )
    for mutant in alive:
        say(f"  alive: {mutant}")
    if killed < 0.9 * len(todo):
        raise Failure("fewer than nine of ten mutants were killed: tests are missing for the lines above")


if __name__ == "__main__":
    try:
        mutate()
    except Failure as failure:
        sys.exit(str(failure))
