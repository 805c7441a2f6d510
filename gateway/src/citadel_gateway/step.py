"""The one optional step before the model: it may answer itself, or change what the model is asked.

A cache of answers or knowledge put into the context hangs here, after the reservation and before admission, so that
the path need not know of either. A step that is late or fails is passed over: the request goes on without it.
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


class Step(Protocol):
    deadline: float  # seconds that it may take

    async def before(self, exchange: Exchange) -> Answer | bytes | None:
        """An answer, another body for the model, or nothing. `exchange.body` is what the model would get."""

    def wants(self, exchange: Exchange) -> bool:
        """Whether `finished` is to see the answer of this exchange; asked before the model is."""

    def finished(self, exchange: Exchange, answer: bytes) -> None:
        """A whole answer, or all events of a stream that came to its end. Never awaited."""


async def take(step: Step, exchange: Exchange, count: Callable[[str], None]) -> Answer | None:
    try:
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
