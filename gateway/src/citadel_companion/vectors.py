"""Vectors and the texts that they stand for: stored, searched and deleted in Qdrant, each owner's apart from others'.

A point's payload is `text`, `model`, `timestamp`, whatever its owner has said of it, and who that owner is.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import uuid
from array import array
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import orjson
from fastapi import APIRouter, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    StrictStr,
    ValidationError,
    model_validator,
)

from citadel_companion.config import Vectors as Settings
from citadel_companion.qdrant import OWNER, Collections, Qdrant, State
from citadel_companion.services import Asker, Problem, Services, Who

EVERYBODY = "*"
MOST = 1000  # points in a request
_RESERVED = ("text", "model", "timestamp")
_LONGEST_TEXT = 32 * 1024  # characters
_LONGEST_VECTOR = 65536
_LONGEST_VALUE, _MOST_VALUES = 1000, 32  # of metadata
_LONGEST_QUESTION = 2 * 1024 * 1024  # bytes of what is neither stored nor longer than the longest vector
_UPSERT = 12 * 1024 * 1024  # bytes; Qdrant takes 32 MiB
_MOST_KEYS = 32  # of an object
_STORING = 2  # requests at a time, for the memory that they take
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:citadel:vectors")


def _numbers(given: Any) -> array[float]:
    if isinstance(given, str):
        try:
            found = array("f", base64.b64decode(given[: 8 * _LONGEST_VECTOR], validate=True))
        except (binascii.Error, ValueError):
            raise ValueError("is not the base64 of numbers of 32 bits") from None
    elif isinstance(given, list) and len(given) <= _LONGEST_VECTOR and set(map(type, given)) <= {int, float}:
        try:
            found = array("f", given)
        except OverflowError:
            raise ValueError("has a number that is too large for 32 bits") from None
    else:
        raise ValueError("must be a list of numbers, or the base64 of numbers of 32 bits")
    if not all(map(isfinite, found)):
        raise ValueError("has a number that is not finite: NaN, Infinity, or too large for 32 bits")
    if not any(found):
        raise ValueError("has nothing but zeros, which point nowhere")
    return found


def _meant(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


def _of_its_own(key: str) -> str:
    if key in _RESERVED or key.startswith("citadel_"):
        raise ValueError(f"{key} is said by the companion; choose another name")
    return key


def _scalar(value: Any) -> Any:
    if isinstance(value, str) and len(value) <= _LONGEST_VALUE:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("is not Unicode") from None
        return value
    if isinstance(value, bool) or (isinstance(value, int) and -(2**63) <= value < 2**63):
        return value
    if isinstance(value, float) and isfinite(value):
        return value
    raise ValueError(f"must be true or false, a finite number, or a text of at most {_LONGEST_VALUE} characters")


def _several(value: Any) -> Any:
    if isinstance(value, list) and 0 < len(value) <= _MOST_VALUES:
        kinds = set(map(type, value))
        if kinds in ({str}, {int}):
            return [_scalar(one) for one in value]
    raise ValueError(f"must be a list of 1 to {_MOST_VALUES} texts or of as many whole numbers")


def _value(value: Any) -> Any:
    return _several(value) if isinstance(value, list) else _scalar(value)


def _matched(value: Any) -> Any:
    if isinstance(value, float):
        raise ValueError("must be a text, a whole number, true or false; for other numbers give a range")  # noqa: TRY004
    return _scalar(value)


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic's way to hear of it
    return _scalar(value)


Key = Annotated[StrictStr, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$")]
Name = Annotated[Key, AfterValidator(_of_its_own)]
Value = Annotated[Any, PlainValidator(_value)]
Matched = Annotated[Any, PlainValidator(_matched)]
Several = Annotated[Any, PlainValidator(_several)]
Number = Annotated[Any, PlainValidator(_number)]
Text = Annotated[StrictStr, Field(max_length=_LONGEST_TEXT), AfterValidator(_meant)]
if TYPE_CHECKING:
    Numbers = array[float]
else:
    Numbers = array  # cannot be subscripted before Python 3.12
Vector = Annotated[Numbers, PlainValidator(_numbers)]


Meant = TypeVar("Meant", bound=BaseModel)


def _few(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > _MOST_KEYS:
        raise ValueError(f"has {len(value)} keys, and may have at most {_MOST_KEYS}")
    return value


class Given(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def few(cls, value: Any) -> Any:
        """Before each unknown key becomes an error of its own, which takes a hundred times its room."""
        return _few(value)


class Point(Given):
    text: Text
    vector: Vector | None = None
    metadata: Annotated[dict[Name, Value], BeforeValidator(_few)] = {}


class Stored(Given):
    points: Annotated[list[Point], Field(min_length=1, max_length=MOST), FailFast()]
    shared: bool = False


class Match(Given):
    value: Matched = None
    any: Several = None

    @model_validator(mode="after")
    def one_of_them(self) -> Match:
        if (self.value is None) == (self.any is None):
            raise ValueError("give either value or any")
        return self


class Range(Given):
    gt: Number = None
    gte: Number = None
    lt: Number = None
    lte: Number = None


class Condition(Given):
    key: Annotated[Key, Field(description="of the metadata")]
    match: Match | None = None
    range: Range | None = None

    @model_validator(mode="after")
    def one_of_them(self) -> Condition:
        if self.key.startswith("citadel_"):
            raise ValueError(f"{self.key} cannot be asked for")
        if (self.match is None) == (self.range is None):
            raise ValueError("give either match or range")
        return self


class Filter(Given):
    must: Annotated[list[Condition], Field(min_length=1, max_length=16), FailFast()]


class Search(Given):
    text: Text | None = None
    vector: Vector | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 10
    threshold: Number = 0.7
    filter: Filter | None = None

    @model_validator(mode="after")
    def one_of_them(self) -> Search:
        if (self.text is None) == (self.vector is None):
            raise ValueError("give either text or vector")
        return self


class Ids(Given):
    ids: Annotated[list[uuid.UUID], Field(min_length=1, max_length=MOST), FailFast()]


class Retrieval(Given):
    """What the gateway asks for."""

    model: str
    text: StrictStr
    limit: Annotated[int, Field(ge=1, le=100)]
    threshold: Number
    seconds: Annotated[float, Field(gt=0, le=60)]


class Vectors:
    def __init__(self, services: Services, settings: Settings) -> None:
        self._services = services
        self._settings = settings
        self.collections = Collections(Qdrant(settings), settings)

    def told(self) -> dict[str, Any]:
        return {model: state.told() for model, state in self.collections.states.items()}

    async def store(self, model: str, given: Stored, who: Asker) -> dict[str, Any]:
        owner = _owner(who, shared=given.shared)
        state = await self.collections.ready(model)
        for number, point in enumerate(given.points):
            if point.vector is not None:
                _check_size(point.vector, state, f"points.{number}.vector")
        ids = [point_id(model, owner, point.text) for point in given.points]
        await self._check_room(state, owner, ids)
        vectors = await self._all_vectors(state, given.points, who)
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        for first, last in _portions(given.points, state.collection.size):
            points = []
            for number in range(first, last):
                point = given.points[number]
                said = {"text": point.text, "model": model, "timestamp": moment, OWNER: owner}
                payload: dict[str, Any] = {**point.metadata, **said}
                points.append({"id": ids[number], "vector": list(vectors[number]), "payload": payload})
            await self.collections.call(state, "PUT", "/points?wait=true", {"points": points})
        return {"object": "list", "model": model, "collection": state.collection.name, "ids": ids}

    async def search(
        self, model: str, given: Search, who: Asker, headers: dict[str, str] | None = None
    ) -> list[dict[str, Any]]:
        state = await self.collections.ready(model)
        if given.vector is not None:
            vector = given.vector
            _check_size(vector, state, "vector")
        else:
            assert given.text is not None  # noqa: S101 - for types: one of them is there
            vector = (await self._embed(state, [given.text], who, query=True, headers=headers))[0]
        told = {
            "vector": list(vector),
            "filter": self._visible(state, who, given.filter),
            "limit": given.limit,
            "score_threshold": given.threshold,
            "with_payload": True,
            "with_vector": False,
        }
        return [_hit(one) for one in await self.collections.call(state, "POST", "/points/search", told)]

    async def delete(self, model: str, ids: Sequence[str], who: Asker) -> list[str]:
        """Which of them were there and one's own."""
        owners = [_owner(who), *([EVERYBODY] if who.role == "admin" else [])]
        state = await self.collections.ready(model)
        told = {"ids": ids, "with_payload": [OWNER]}
        found = await self.collections.call(state, "POST", "/points", told)
        own = [str(one["id"]) for one in found if (one["payload"] or {}).get(OWNER) in owners]
        if own:
            mine = {"must": [{"has_id": own}, {"key": OWNER, "match": {"any": owners}}]}
            await self.collections.call(state, "POST", "/points/delete?wait=true", {"filter": mine})
        return own

    async def delete_all(self, model: str, who: Asker, *, shared: bool) -> int:
        owner = _owner(who, shared=shared)
        state = await self.collections.ready(model)
        count = await self._count(state, owner)
        await self.collections.call(state, "POST", "/points/delete?wait=true", {"filter": _of(owner)})
        return count

    async def forget(self, user: str) -> int:
        """In all collections; how many points those were. In one of another shape there are none."""
        who = Asker(user)
        gone = 0
        for model, state in self.collections.states.items():
            try:
                gone += await self.delete_all(model, who, shared=False)
            except Problem:
                if not state.refused:
                    raise
        return gone

    async def _count(self, state: State, owner: str) -> int:
        told = {"filter": _of(owner), "exact": True}
        return int((await self.collections.call(state, "POST", "/points/count", told))["count"])

    async def _check_room(self, state: State, owner: str, ids: Sequence[str]) -> None:
        most = self._settings.most_points
        count = await self._count(state, owner)
        if count + len(ids) <= most:
            return
        there = await self.collections.call(state, "POST", "/points", {"ids": ids, "with_payload": False})
        new = len(set(ids)) - len(there)
        if new and count + new > most:
            raise Problem(
                409,
                "too_many_points",
                f"You have {count} points in {state.collection.name} and may have {most}; delete some before you store "
                f"{new} more.",
            )

    async def _all_vectors(self, state: State, points: Sequence[Point], who: Asker) -> list[array[float]]:
        """Those that were given, and those that are made of texts: all of them before any is stored."""
        made = iter(
            await self._embed(state, [point.text for point in points if point.vector is None], who, query=False)
        )
        return [point.vector if point.vector is not None else next(made) for point in points]

    async def _embed(
        self, state: State, texts: Sequence[str], who: Asker, *, query: bool, headers: dict[str, str] | None = None
    ) -> list[array[float]]:
        settings = self._settings.embeddings
        if not texts:
            return []
        if settings is None:
            raise Problem(400, "no_embeddings_model", "No model makes vectors of texts here; send vectors.", "vector")
        prefix = settings.query_prefix if query else settings.document_prefix
        made: list[array[float]] = []
        for first in range(0, len(texts), settings.batch):
            portion = [prefix + text for text in texts[first : first + settings.batch]]
            asked = {"model": settings.model, "input": portion, "encoding_format": "float"}
            async with self._services.ask(who, "/v1/embeddings", orjson.dumps(asked), headers) as answer:
                content = await answer.aread()
            made += _embeddings(answer.status_code, content, len(portion))
        size = state.collection.size
        if any(len(vector) != size for vector in made):
            name = state.collection.name
            raise Problem(
                409,
                "collection_mismatch",
                f"{settings.model} makes vectors of {len(made[0])} numbers and {name} takes {size}: send "
                "vectors of your own, or have the collection made anew with the model's size and its texts copied.",
            )
        return made

    def _visible(self, state: State, who: Asker, wanted: Filter | None) -> dict[str, Any]:
        mine: list[dict[str, Any]] = [{"key": OWNER, "match": {"any": [_owner(who, reading=True), EVERYBODY]}}]
        if state.collection.unowned == "shared":
            mine.append({"is_empty": {"key": OWNER}})
        asked = wanted.model_dump(exclude_none=True)["must"] if wanted is not None else []
        return {"must": [{"should": mine}, *asked]}


def point_id(model: str, owner: str, text: str) -> str:
    """The same text of the same owner is the same point, whoever computes it."""
    return str(uuid.uuid5(_NAMESPACE, orjson.dumps([model, owner, text]).decode()))


def _owner(who: Asker, *, shared: bool = False, reading: bool = False) -> str:
    if not reading and who.role == "reader":
        raise Problem(403, "role_not_allowed", "A key with the role reader may search, and neither store nor delete.")
    if not shared:
        return who.user
    if who.role != "admin":
        raise Problem(403, "role_not_allowed", "What everybody is to find is stored by the role admin.", "shared")
    return EVERYBODY


def _of(owner: str) -> dict[str, Any]:
    return {"must": [{"key": OWNER, "match": {"value": owner}}]}


def _check_size(vector: array[float], state: State, where: str) -> None:
    if len(vector) != state.collection.size:
        raise Problem(
            400,
            "wrong_vector_size",
            f"{where} has {len(vector)} numbers; {state.collection.name} takes {state.collection.size}.",
            where,
        )


def _portions(points: Sequence[Point], size: int) -> Iterator[tuple[int, int]]:
    """As many as Qdrant takes at once; a number takes some 20 bytes."""
    first, total = 0, 0
    for number, point in enumerate(points):
        takes = 20 * size + 6 * len(point.text) + 16 * 1024
        if number > first and total + takes > _UPSERT:
            yield first, number
            first, total = number, 0
        total += takes
    yield first, len(points)


def _hit(found: dict[str, Any]) -> dict[str, Any]:
    payload = found["payload"] or {}
    text, model, timestamp = (payload.get(key) for key in _RESERVED)
    metadata = {key: value for key, value in payload.items() if key not in (*_RESERVED, OWNER)}
    return {
        "id": str(found["id"]),
        "score": found["score"],
        "text": text,
        "model": model,
        "timestamp": timestamp,
        "metadata": metadata,
        "shared": payload.get(OWNER, EVERYBODY) == EVERYBODY,
    }


def _embeddings(status: int, content: bytes, count: int) -> Iterable[array[float]]:
    try:
        told = orjson.loads(content)
        if status == 200:
            made = [_numbers(one["embedding"]) for one in sorted(told["data"], key=lambda one: one["index"])]
            if len(made) == count:
                return made
        else:
            error = told["error"]
            raise Problem(status, str(error["code"]), str(error["message"]))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        pass
    raise Problem(503, "embeddings_failed", "What the embeddings model answered is not understood.")


async def _short(request: Request) -> bytes:
    if int(request.headers.get("content-length", "0")) > _LONGEST_QUESTION:
        raise Problem(413, "body_too_large", f"A body here has at most {_LONGEST_QUESTION} bytes.")
    return await request.body()


def _meaning(kind: type[Meant], content: bytes) -> Meant:
    """What FastAPI would make of it, without its way of reading numbers: there are very many of them."""
    try:
        told = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise Problem(400, "invalid_json", f"The body is not JSON: {error}. NaN and Infinity are none.") from None
    try:
        return kind.model_validate(told)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found]) from None


def routes(vectors: Vectors) -> APIRouter:
    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        vectors.collections.start()
        yield
        await vectors.collections.close()

    router = APIRouter(lifespan=lifespan)
    storing = asyncio.Semaphore(_STORING)

    @router.get("/v1/vectors")
    async def collections(_: Who) -> dict[str, Any]:
        """The collections, and whether they can be used."""
        data = [
            {"model": model, **state.told(), "size": state.collection.size, "distance": state.collection.distance}
            for model, state in vectors.collections.states.items()
        ]
        return {"object": "list", "data": data}

    @router.post("/v1/vectors/{model}")
    async def store(model: str, request: Request, who: Who) -> JSONResponse:
        """Texts, with vectors of them or without; a text that is stored again replaces itself."""
        # whoever waits here has not been read yet, so that few large bodies are in memory
        async with storing:
            given = await asyncio.to_thread(_meaning, Stored, await request.body())
            return JSONResponse(await vectors.store(model, given, who))

    @router.post("/v1/vectors/{model}/search")
    async def search(model: str, request: Request, who: Who) -> JSONResponse:
        """What is nearest to a text or a vector, of one's own and of what is shared."""
        given = _meaning(Search, await _short(request))
        return JSONResponse({"object": "list", "model": model, "data": await vectors.search(model, given, who)})

    @router.post("/v1/vectors/{model}/delete")
    async def delete(model: str, request: Request, who: Who) -> dict[str, Any]:
        given = _meaning(Ids, await _short(request))
        ids = list(dict.fromkeys(map(str, given.ids)))
        gone = await vectors.delete(model, ids, who)
        return {"object": "list", "deleted": gone, "not_found": [one for one in ids if one not in set(gone)]}

    @router.delete("/v1/vectors/{model}")
    async def delete_all(model: str, who: Who, shared: bool = False) -> dict[str, Any]:
        """All that is one's own, or with `shared=true` all that is everybody's."""
        return {"object": "list", "model": model, "deleted": await vectors.delete_all(model, who, shared=shared)}

    @router.delete("/v1/vectors/{model}/{ident}")
    async def delete_one(model: str, ident: str, who: Who) -> dict[str, Any]:
        try:
            known = str(uuid.UUID(ident))
        except ValueError:
            known = ""
        if not known or not await vectors.delete(model, [known], who):
            raise Problem(404, "point_not_found", f"You have no point {ident[:100]!r} here.")
        return {"object": "vector.deleted", "id": known, "deleted": True}

    @router.post("/internal/knowledge", include_in_schema=False)
    async def knowledge(
        given: Retrieval, who: Who, x_citadel_internal: Annotated[Literal["knowledge"] | None, Header()] = None
    ) -> dict[str, Any]:
        """Passages for a prompt; no client can set that header, wherever a route may lead."""
        if x_citadel_internal is None:
            raise Problem(404, "unknown_path", "There is no such path here.")
        if not given.text.strip():
            return {"passages": []}
        wanted = Search(text=given.text[:_LONGEST_TEXT], limit=given.limit, threshold=given.threshold)
        headers = {"x-request-timeout": f"{given.seconds:.3f}"}
        try:
            async with asyncio.timeout(given.seconds):
                found = await vectors.search(given.model, wanted, who, headers)
        except TimeoutError:
            raise Problem(504, "knowledge_late", "What is stored was not found in time.") from None
        return {"passages": [{key: one[key] for key in ("id", "score", "text")} for one in found if one["text"]]}

    return router
