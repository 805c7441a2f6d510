"""What the compiler asks of the modules that it is given, beyond what the language does."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from citadel_gateway.compiled import MODULES, PACKAGE

SUSPENDS = (ast.Await, ast.AsyncFor, ast.AsyncWith, ast.Yield, ast.YieldFrom)
OTHERS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)  # run at another time


def within(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, OTHERS):
            yield child
            yield from within(child)


def suspended_in_handlers(source: str) -> list[int]:
    """Lines in which a coroutine is suspended while it handles an exception."""
    handlers = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ExceptHandler)]
    return sorted({node.lineno for handler in handlers for node in within(handler) if isinstance(node, SUSPENDS)})


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_awaited_while_an_exception_is_handled(module: str) -> None:
    """Compiled, a coroutine that is suspended there leaves its exception, with all it holds, to whoever runs next."""
    assert suspended_in_handlers((PACKAGE / f"{module}.py").read_text()) == []


def test_such_a_place_would_be_found() -> None:
    bad = "async def f():\n try:\n  pass\n except E:\n  if x:\n   async with y:\n    return await z()\n"
    assert suspended_in_handlers(bad) == [6, 7]
    assert not suspended_in_handlers("try:\n pass\nexcept E:\n async def f():\n  await x\n")
