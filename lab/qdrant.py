"""A stand-in for the estate's Qdrant: its engine (qdrant-edge) behind what is used of the REST API of Qdrant 1.8.

    python -m lab.qdrant --folder FOLDER [--port 6333] [--api-key KEY]

What is stored, found, filtered and deleted is the engine's own work, and it is on the disk. What is missing: gRPC,
shards and replicas, snapshots, named vectors, aliases, and every other path of Qdrant.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from qdrant_edge import (
    CountRequest,
    Distance,
    EdgeConfig,
    EdgeShard,
    EdgeVectorParams,
    FieldCondition,
    Filter,
    HasIdCondition,
    IsEmptyCondition,
    MatchAny,
    MatchValue,
    PayloadSchemaType,
    PayloadSelector,
    Point,
    Query,
    RangeFloat,
    SearchRequest,
    UpdateOperation,
)
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

VERSION = "1.8.0"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}").fullmatch
_DISTANCES = {"Cosine": Distance.Cosine, "Dot": Distance.Dot, "Euclid": Distance.Euclid}
_LARGEST = 32 * 1024 * 1024  # Qdrant's own default, service.max_request_size_mb


class Collection:
    def __init__(self, folder: Path, size: int, distance: str) -> None:
        self.size, self.distance = size, distance
        shape = EdgeConfig(vectors=EdgeVectorParams(size, _DISTANCES[distance]))
        data, told = folder / "data", folder / "shape.json"
        if told.exists():
            self.shard = EdgeShard.load(str(data), shape)
        else:
            shutil.rmtree(folder, ignore_errors=True)  # a creation that was cut short
            data.mkdir(parents=True)
            self.shard = EdgeShard.create(str(data), shape)
            told.write_text(json.dumps({"size": size, "distance": distance}))

    def told(self) -> dict[str, Any]:
        count = self.shard.count(CountRequest())
        params = {"vectors": {"size": self.size, "distance": self.distance}, "shard_number": 1, "replication_factor": 1}
        schema = {name: {"data_type": "keyword"} for name in self.shard.info().payload_schema}
        return {"status": "green", "points_count": count, "config": {"params": params}, "payload_schema": schema}


class Face:
    def __init__(self, folder: Path, api_key: str = "") -> None:
        self._folder = folder
        self._api_key = api_key
        self._collections: dict[str, Collection] = {}
        for told in sorted(folder.glob("*/shape.json")):
            shape = json.loads(told.read_text())
            self._collections[told.parent.name] = Collection(told.parent, shape["size"], shape["distance"])

    def application(self) -> Starlette:
        one = "/collections/{name}"
        routes = [
            Route("/", self.hello),  # these are open to whoever has no key, as with Qdrant
            Route("/healthz", self.health),
            Route("/readyz", self.health),
            Route("/collections", self._answer(self.names)),
            Route(one, self._answer(self.info)),
            Route(one, self._answer(self.create), methods=["PUT"]),
            Route(one, self._answer(self.remove), methods=["DELETE"]),
            Route(f"{one}/index", self._answer(self.index), methods=["PUT"]),
            Route(f"{one}/points", self._answer(self.upsert), methods=["PUT"]),
            Route(f"{one}/points", self._answer(self.retrieve), methods=["POST"]),
            Route(f"{one}/points/search", self._answer(self.search), methods=["POST"]),
            Route(f"{one}/points/count", self._answer(self.count), methods=["POST"]),
            Route(f"{one}/points/delete", self._answer(self.delete), methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _refused})

    def close(self) -> None:
        for collection in self._collections.values():
            collection.shard.close()
        self._collections.clear()

    async def hello(self, _: Request) -> Response:
        return JSONResponse({"title": "qdrant - vector search engine", "version": VERSION})

    async def health(self, _: Request) -> Response:
        return PlainTextResponse("healthz check passed")

    def names(self, _: str, __: Any) -> Any:
        return {"collections": [{"name": name} for name in self._collections]}

    def info(self, name: str, _: Any) -> Any:
        return self._named(name).told()

    def create(self, name: str, body: Any) -> Any:
        if not _NAME(name):
            raise _wrong(f"Wrong input: {name!r} cannot name a collection")
        if name in self._collections:
            raise HTTPException(409, f"Wrong input: Collection `{name}` already exists!")
        vectors = body["vectors"]
        if vectors["distance"] not in _DISTANCES or not 0 < vectors["size"] <= 65536:
            raise _wrong("Validation error in JSON body: vectors")
        self._collections[name] = Collection(self._folder / name, vectors["size"], vectors["distance"])
        return True

    def remove(self, name: str, _: Any) -> Any:
        found = self._collections.pop(name, None)
        if found is not None:
            found.shard.close()
            shutil.rmtree(self._folder / name)
        return found is not None

    def index(self, name: str, body: Any) -> Any:
        found = self._named(name)
        if body["field_schema"] != "keyword":
            raise _wrong("Format error in JSON body: this stand-in has indexes of keywords only")
        found.shard.update(UpdateOperation.create_field_index(body["field_name"], PayloadSchemaType.Keyword))
        return _DONE

    def upsert(self, name: str, body: Any) -> Any:
        found = self._named(name)
        points = body["points"]
        for point in points:
            if len(point["vector"]) != found.size:
                given = len(point["vector"])
                raise _wrong(f"Wrong input: Vector dimension error: expected dim: {found.size}, got {given}")
        found.shard.update(
            UpdateOperation.upsert_points([Point(one["id"], one["vector"], one.get("payload")) for one in points])
        )
        return _DONE

    def retrieve(self, name: str, body: Any) -> Any:
        given = body.get("with_payload", True)
        found = self._named(name).shard.retrieve(body["ids"], with_payload=_payload(given), with_vector=False)
        return [{"id": str(one.id), "payload": one.payload} for one in found]

    def search(self, name: str, body: Any) -> Any:
        found = self._named(name)
        if len(body["vector"]) != found.size:
            raise _wrong(f"Wrong input: Vector dimension error: expected dim: {found.size}, got {len(body['vector'])}")
        wanted = SearchRequest(
            Query.Nearest(body["vector"]),
            limit=body["limit"],
            filter=_filter(body.get("filter")),
            with_payload=_payload(body.get("with_payload", False)),
            with_vector=False,
            score_threshold=body.get("score_threshold"),
        )
        return [
            {"id": str(one.id), "version": one.version, "score": one.score, "payload": one.payload, "vector": None}
            for one in found.shard.search(wanted)
        ]

    def count(self, name: str, body: Any) -> Any:
        shard = self._named(name).shard
        return {"count": shard.count(CountRequest(body.get("exact", True), _filter(body.get("filter"))))}

    def delete(self, name: str, body: Any) -> Any:
        shard = self._named(name).shard
        if "points" in body:
            shard.update(UpdateOperation.delete_points(body["points"]))
        else:
            shard.update(UpdateOperation.delete_points_by_filter(_filter(body["filter"]) or Filter()))
        return _DONE

    def _named(self, name: str) -> Collection:
        found = self._collections.get(name)
        if found is None:
            raise HTTPException(404, f"Not found: Collection `{name}` doesn't exist!")
        return found

    def _answer(self, work: Callable[[str, Any], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            started = time.perf_counter()
            if self._api_key and request.headers.get("api-key") != self._api_key:
                raise HTTPException(401, "Must provide an API key or an Authorization bearer token")
            content = await request.body()
            if len(content) > _LARGEST:
                raise HTTPException(413, f"Payload error: JSON payload ({len(content)} bytes) is larger than allowed")
            try:
                body = json.loads(content) if content else {}
                result = work(request.path_params.get("name", ""), body)
            except (KeyError, TypeError, ValueError) as error:
                raise _wrong(f"Format error in JSON body: {error}") from None
            return JSONResponse({"result": result, "status": "ok", "time": time.perf_counter() - started})

        return answer


_DONE = {"operation_id": 0, "status": "completed"}


def _wrong(message: str) -> HTTPException:
    return HTTPException(400, message)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - for types: it is registered for these alone
    return JSONResponse({"status": {"error": error.detail}, "time": 0.0}, error.status_code)


def _payload(given: Any) -> Any:
    return PayloadSelector.Include(given) if isinstance(given, list) else given


def _filter(told: Any) -> Filter | None:
    if told is None:
        return None
    must, should, never = ([_condition(one) for one in told.get(kind, [])] for kind in ("must", "should", "must_not"))
    return Filter(must=must or None, should=should or None, must_not=never or None)


def _condition(told: Any) -> Any:
    if "has_id" in told:
        return HasIdCondition(set(told["has_id"]))
    if "is_empty" in told:
        return IsEmptyCondition(told["is_empty"]["key"])
    if "key" not in told:
        return _filter(told)
    match = told.get("match")
    if match is not None:
        match = MatchAny(match["any"]) if "any" in match else MatchValue(match["value"])
    bounds = told.get("range")
    return FieldCondition(told["key"], match=match, range=RangeFloat(**bounds) if bounds is not None else None)


def main() -> None:
    parser = argparse.ArgumentParser(description="a stand-in for Qdrant: its engine behind a part of its REST API")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=6333)
    parser.add_argument("--api-key", default="")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    face = Face(options.folder, options.api_key)
    try:
        uvicorn.run(face.application(), host=options.host, port=options.port, log_level="warning", access_log=False)
    finally:
        face.close()


if __name__ == "__main__":
    main()
