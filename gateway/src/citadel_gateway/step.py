"""The optional steps before the model, in their order: each may answer itself, or change what the model is asked.

Knowledge that is put into the context and a cache of answers hang here, after the reservation and before admission, so
that the path need not know of either. A step that is late or fails is passed over: the request goes on without it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from citadel_gateway.exchange import Exchange


class Answer(NamedTuple):
    """What the client gets in the model's place, and what it is charged."""

    body: bytes
    content_type: bytes = b"application/json"
    status: int = 200
    prompt_tokens: int = 0
    completion_tokens: int = 0
    lines: bytes = b""  # more headers
    as_it_is: bool = False  # never compressed on its way


class Step(Protocol):
    @property
    def deadline(self) -> float | None:
        """Seconds that it may take; None for one that sees to that itself."""

    async def before(self, exchange: Exchange) -> Answer | bytes | None:
        """An answer, another body for the model, or nothing. `exchange.body` is what the model would get."""

    def wants(self, exchange: Exchange) -> int:
        """The longest answer of this exchange that `finished` is to see, in bytes; 0 if it is not to be told at all.
        Asked right after `before`, unless that has answered."""

    def finished(self, exchange: Exchange, answer: bytes | None) -> None:
        """Once for each exchange that it wants, however that ends: a whole answer, or all events of a stream that came
        to its end; None if it did not come to that, or is longer. Never awaited."""


async def take(step: Step, exchange: Exchange, count: Callable[[str], None]) -> Answer | None:
    try:
        if step.deadline is None:
            result = await step.before(exchange)
        else:
            async with asyncio.timeout(step.deadline):
                result = await step.before(exchange)
    except TimeoutError:
        count("late")
        return None
    except Exception:
        count("failed")
        return None
    if isinstance(result, bytes):
        count("changed")
        exchange.body = result
        return None
    count("passed" if result is None else "answered")
    return result
