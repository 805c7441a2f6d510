"""A table of routes for each listener: path and method lead to the walk, to a built-in answer or to the companion."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from citadel_gateway.errors import Refusal

if TYPE_CHECKING:
    from citadel_gateway.protocol import Cycle

Handler = Callable[["Cycle"], Awaitable[None]]


class Routes:
    """`refuse` answers what leads nowhere, `preflight` what browsers ask beforehand, with the methods of the path."""

    def __init__(
        self,
        refuse: Callable[[Cycle, Refusal], Awaitable[None]],
        preflight: Callable[[Cycle, str], Awaitable[None]],
    ) -> None:
        self._refuse = refuse
        self._preflight = preflight
        self._exact: dict[str, dict[str, Handler]] = {}
        self._below: list[tuple[str, dict[str, Handler]]] = []

    def add(self, methods: str, path: str, handler: Handler) -> None:
        """`path` may end in `/*`: all that is below it. GET is HEAD, too."""
        if path.endswith("/*"):
            found = next((known for prefix, known in self._below if prefix == path[:-1]), None)
            if found is None:
                found = {}
                self._below.append((path[:-1], found))
        else:
            found = self._exact.setdefault(path, {})
        for method in methods.split():
            found[method] = handler
            if method == "GET":
                found["HEAD"] = handler

    def serve(self, cycle: Cycle) -> Awaitable[None]:
        found = self._exact.get(cycle.path)
        if found is not None and cycle.refusal is None:
            handler = found.get(cycle.method)
            if handler is not None:
                return handler(cycle)
        return self._other(cycle)

    def _other(self, cycle: Cycle) -> Awaitable[None]:
        if cycle.refusal is not None:
            return self._refuse(cycle, cycle.refusal)
        path, method = cycle.path, cycle.method
        found = self._lookup(path)
        if found is None:
            if path == "*" and method == "OPTIONS":
                return self._preflight(cycle, "GET, HEAD, POST, OPTIONS")
            return self._refuse(cycle, Refusal(404, "unknown_url", f"There is no {method} {path[:200]} here."))
        handler = found.get(method)
        if handler is not None:
            return handler(cycle)
        allowed = ", ".join([*found, "OPTIONS"])
        if method == "OPTIONS":
            return self._preflight(cycle, allowed)
        return self._refuse(
            cycle, Refusal(405, "method_not_allowed", f"{path[:200]} takes {allowed}, not {method}.", allow=allowed)
        )

    def _lookup(self, path: str) -> dict[str, Handler] | None:
        found = self._exact.get(path) or (self._exact.get(path[:-1]) if path.endswith("/") else None)
        if found is not None:
            return found
        for prefix, below in self._below:
            if path.startswith(prefix):
                return below
        return None
