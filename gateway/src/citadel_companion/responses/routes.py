"""`/v1/responses`: a request becomes a chat at the gateway, in its client's name, and the answer a response."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar
from urllib.parse import quote
from weakref import WeakValueDictionary

import httpx
import orjson
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from citadel_companion.responses import chain
from citadel_companion.responses.answer import Answer, BrokenError, chunks, encoded, read
from citadel_companion.responses.chain import NO_PAST, Past
from citadel_companion.responses.items import Item, check_pairs, messages
from citadel_companion.responses.request import Wanted, numbered, response_of, wanted
from citadel_companion.responses.turns import Window
from citadel_companion.services import Asker, Problem, Services, Who, page

Result = TypeVar("Result")

_TRIES = 5  # with fewer turns each time, the last one with the newest turn alone
_CHARACTERS = 16  # that a token has at most, over a whole text
_ANSWER = 1024  # tokens that an answer is given room for, where its length is not said
_MODEL_SECONDS = 30.0  # that a model's window is believed
_MOST_REFERENCES = 100
_TIMES = ("x-request-timeout", "x-stainless-timeout", "x-stainless-read-timeout")
_TOLD_BY_CLIENT = ("x-request-id", "x-priority", "traceparent", "tracestate", *_TIMES)
_TOLD_BY_GATEWAY = ("retry-after", "retry-after-ms", "x-should-retry")


class PassedError(Exception):
    """The gateway's answer is the client's, as it is."""

    def __init__(self, answer: httpx.Response, content: bytes) -> None:
        super().__init__(answer.status_code)
        self.response = Response(content, answer.status_code, _headers(answer), "application/json")


class Model(NamedTuple):
    name: str
    window: int
    answer: int | None  # tokens of an answer whose length is not said


class Leaving(StreamingResponse):
    """A stream that lets go of what it holds, however it ends: a client that leaves ends the generation."""

    def __init__(self, content: AsyncIterator[bytes], held: AsyncExitStack, headers: dict[str, str]) -> None:
        super().__init__(content, headers={**headers, "cache-control": "no-cache"}, media_type="text/event-stream")
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


@dataclass(frozen=True)
class Turn:
    """One response while it is made."""

    who: Asker
    asked: Wanted
    answer: Answer
    window: Window
    kept: dict[str, Any]


class Conversations:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._settings = services.config.responses
        self._models: dict[str, tuple[float, Model]] = {}
        # one long conversation of each client is read at a time, since all wait for the store
        self._reading: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def read(self, who: Asker, work: Callable[..., Result], *values: Any) -> Result:
        lock = self._reading.setdefault(who.user, asyncio.Lock())
        async with lock:
            return await self._services.kept(work, self._services.store, who.user, *values, self._settings)

    async def create(self, request: Request, who: Asker) -> Response:
        asked = wanted(await request.body(), self._settings)
        try:
            return await _unless_gone(request, self._create(asked, request, who))
        except PassedError as passed:
            return passed.response

    async def _create(self, asked: Wanted, request: Request, who: Asker) -> Response:
        await self._refer(asked, who)
        if asked.store:
            self._check_size(asked)
        model = await self._model(who, asked.model)
        past = await self._past(asked, who, model)
        items = [*past.items, *asked.items]
        check_pairs(items)
        window = self._window(asked, model, past, items)
        named = numbered(asked.id.removeprefix("resp_"))
        for _ in asked.items:
            named("")
        answer = Answer(asked.response(int(time.time()), model.name), named)
        root = past.root or asked.id
        system = [one for one in past.items if one.get("role") in ("system", "developer")]
        kept = {"response": answer.response, "input": asked.items, "root": root, "system": system}
        turn = Turn(who, asked, answer, window, kept)
        told = {name: request.headers[name] for name in _TOLD_BY_CLIENT if name in request.headers}
        # the same replica has the beginning of a conversation in its cache
        told["x-session-id"] = request.headers.get("x-session-id") or asked.told["prompt_cache_key"] or root
        async with AsyncExitStack() as stack:
            opened = await self._opened(stack, turn, told)
            if asked.stream:
                events = self._events(opened, turn)
                held = stack.pop_all()
                held.push_async_callback(events.aclose)
                return Leaving(events, held, _headers(opened))
            try:
                answer.feed(read(await opened.aread()))
                answer.end()
            except BrokenError as error:
                raise Problem(503, "upstream_failed", f"{model.name}: {error}") from None
        await self._keep(turn)
        return JSONResponse(answer.response, headers=_headers(opened))

    # before the model is asked

    async def _refer(self, asked: Wanted, who: Asker) -> None:
        """References become what they refer to."""
        wished = [number for number, one in enumerate(asked.items) if one["type"] == "item_reference"]
        if len(wished) > _MOST_REFERENCES:
            raise Problem(400, "out_of_range", f"input has more than {_MOST_REFERENCES} references.", "input")
        known: dict[str, dict[str, Item]] = {}
        for number in wished:
            ident = asked.items[number]["id"]
            of = response_of(ident)
            if of not in known:
                thing = await self._services.kept(chain.thing_of, self._services.store, who.user, of)
                body: dict[str, Any] = thing.body if thing is not None else {"input": [], "response": {"output": []}}
                known[of] = {one["id"]: one for one in (*body["input"], *body["response"]["output"])}
            item = known[of].get(ident)
            if item is None:
                raise Problem(404, "item_not_found", f"Item with id {ident[:100]!r} not found.", f"input[{number}].id")
            asked.items[number] = dict(item)

    def _check_size(self, asked: Wanted) -> None:
        size = len(orjson.dumps([asked.items, asked.instructions, asked.told, asked.metadata]))
        if size > self._settings.largest:
            raise Problem(
                400,
                "response_too_large",
                f"This request has {size} bytes, and a response that is kept at most {self._settings.largest}; "
                "send less, or store: false.",
                "store",
            )

    async def _model(self, who: Asker, name: str) -> Model:
        known = self._models.get(name)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        async with self._services.ask(who, f"/v1/models/{quote(name, safe='/')}") as answer:
            content = await answer.aread()
            if answer.status_code != 200:
                raise PassedError(answer, content)
        told = orjson.loads(content)
        if not isinstance(told.get("max_model_len"), int):
            raise Problem(404, "model_not_found", f"The model {name[:100]!r} does not exist.", "model")
        model = Model(told["id"], told["max_model_len"], (told.get("defaults") or {}).get("max_tokens"))
        self._models[name] = (time.monotonic() + _MODEL_SECONDS, model)
        return model

    async def _past(self, asked: Wanted, who: Asker, model: Model) -> Past:
        services = self._services
        if asked.previous is None:
            if asked.store:
                # one that could not be kept is not worth the model's time
                await services.kept(chain.thing_of, services.store, who.user, asked.id)
            return NO_PAST
        most = _CHARACTERS * model.window
        past = await self.read(who, chain.past, asked.previous, most)
        if asked.truncation == "disabled" and not past.whole:
            raise Problem(
                400,
                "context_length_exceeded",
                f"The conversation before is longer than {model.name}'s {model.window} tokens or than "
                f"{chain.DEEPEST} turns; send truncation: auto to drop its oldest turns.",
                "previous_response_id",
            )
        return past

    @staticmethod
    def _window(asked: Wanted, model: Model, past: Past, items: list[Item]) -> Window:
        room = asked.max_output_tokens or min(model.answer or _ANSWER, model.window // 4)
        more = len(asked.instructions or "") + len(orjson.dumps(asked.chat.get("tools", "")))
        window = Window(items, more, max(1, model.window - room), past.density)
        if asked.truncation == "auto":
            window.narrow()
        return window

    # the model

    async def _opened(self, stack: AsyncExitStack, turn: Turn, told: dict[str, str]) -> httpx.Response:
        """The model's answer as it begins, with as many turns as fit."""
        asked, window = turn.asked, turn.window
        for number in range(_TRIES):
            body = {"model": asked.model, "messages": messages(asked.instructions, window.sent()), **asked.chat}
            if asked.stream:
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            async with AsyncExitStack() as inner:
                headers = {**told, "accept-encoding": "identity"}
                way = self._services.ask(turn.who, "/v1/chat/completions", orjson.dumps(body), headers)
                answer = await inner.enter_async_context(way)
                if answer.status_code == 200:
                    stack.push_async_exit(inner.pop_all())
                    return answer
                content = await answer.aread()
            message = _too_long(content)
            if message is None or asked.truncation != "auto":
                break
            if not window.refused(message, last=number == _TRIES - 2):
                break
        raise PassedError(answer, content)

    async def _events(self, opened: httpx.Response, turn: Turn) -> AsyncGenerator[bytes]:
        answer = turn.answer
        yield encoded(answer.begin())
        try:
            async for found in chunks(opened.aiter_bytes()):
                yield encoded([event for chunk in found for event in answer.feed(chunk)])
            yield encoded(answer.end())
        except BrokenError as error:
            answer.fail(str(error))
        except httpx.TransportError:
            answer.fail("The model's answer broke off.")
        try:
            await self._keep(turn)
        except Problem as problem:
            answer.fail(f"The response could not be kept. {problem.message}")
        yield encoded([answer.last()])

    async def _keep(self, turn: Turn) -> None:
        if not turn.asked.store:
            return
        usage = turn.answer.response["usage"] or {}
        tokens = usage.get("input_tokens")
        turn.kept["density"] = turn.window.characters() / tokens if tokens else None
        services = self._services
        await services.kept(chain.keep, services.store, turn.who.user, turn.kept, self._settings)


def _headers(answer: httpx.Response) -> dict[str, str]:
    return {
        name: value
        for name, value in answer.headers.items()
        if name in _TOLD_BY_GATEWAY or name.startswith(("x-ratelimit-", "x-citadel-"))
    }


def _too_long(content: bytes) -> str | None:
    """What a refusal says, if it is one for the length."""
    try:
        error = orjson.loads(content)["error"]
        return str(error["message"]) if error["code"] == "context_length_exceeded" else None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Ends with its client."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise Problem(499, "client_gone", "The client has left.")
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def routes(services: Services) -> APIRouter:
    router = APIRouter()
    conversations = Conversations(services)

    async def body_of(who: Asker, ident: str) -> dict[str, Any]:
        body: dict[str, Any] = await services.kept(chain.found, services.store, who.user, ident)
        return body

    @router.post("/v1/responses")
    async def create(request: Request, who: Who) -> Response:
        return await conversations.create(request, who)

    @router.get("/v1/responses/{ident}")
    async def retrieve(ident: str, request: Request, who: Who) -> Any:
        for name, value in request.query_params.items():
            if value not in ("false", ""):
                raise Problem(400, "unsupported_parameter", f"{name[:100]} is not offered here; leave it out.", name)
        return (await body_of(who, ident))["response"]

    @router.delete("/v1/responses/{ident}")
    async def delete(ident: str, who: Who) -> dict[str, Any]:
        await services.kept(chain.drop, services.store, who.user, ident)
        return {"id": ident, "object": "response", "deleted": True}

    @router.post("/v1/responses/{ident}/cancel")
    async def cancel(ident: str, who: Who) -> None:
        await body_of(who, ident)
        raise Problem(400, "not_in_background", "Cannot cancel a synchronous response.", "response_id")

    @router.get("/v1/responses/{ident}/input_items")
    async def input_items(
        ident: str,
        who: Who,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> dict[str, Any]:
        items = await conversations.read(who, chain.input_items, ident)
        if order == "desc":
            items = items[::-1]
        return page(items, after, limit)

    return router
