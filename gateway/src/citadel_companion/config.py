"""The companion's configuration: one file, checked before anything is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
SCHEMA = r"[a-z_][a-z0-9_]{0,62}"


class ConfigError(ValueError):
    """One sentence for each thing that is wrong."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Database(Section):
    """PostgreSQL, as a rule through Pgpool-II. Without it everything is kept in a file of SQLite."""

    host: str
    port: Positive = 5433
    name: str = "citadel_ai"
    user: str = "citadel_admin"
    password_file: str | None = None
    tls: Literal["disable", "prefer", "require", "verify-full"] = "prefer"
    tls_authorities: str | None = None
    connections: Positive = 5
    connect_timeout: Positive = 30
    statement_timeout: Seconds = 30.0


class Retention(Section):
    """In days, by class."""

    requests: Positive = 30
    aggregates: Positive = 365
    reports: Positive = 5 * 365


class Collection(Section):
    """Of Qdrant, for one model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,200}$")]
    size: Annotated[int, Field(gt=0, le=65536)]
    distance: Literal["Cosine", "Dot"] = "Cosine"
    unowned: Literal["hidden", "shared"] = "hidden"  # points that somebody else than the companion has stored


class Embeddings(Section):
    """The model that makes vectors of texts, and what it wants to stand before them."""

    model: str
    batch: Positive = 64  # texts in a request, at most what the gateway lets through (bounds.inputs)
    document_prefix: str = ""
    query_prefix: str = ""


class Vectors(Section):
    """Qdrant, by its REST API."""

    url: Annotated[str, Field(pattern=r"^https?://[^/?#@]+$")]
    api_key_file: str | None = None
    timeout: Seconds = 10.0
    embeddings: Embeddings | None = None
    most_points: Positive = 100_000  # of one owner in one collection
    collections: Annotated[dict[str, Collection], Field(min_length=1)]  # by model

    @model_validator(mode="after")
    def one_each(self) -> Self:
        owners: dict[str, str] = {}
        for model, collection in self.collections.items():
            if collection.name in owners:
                raise ValueError(
                    f"{collection.name} is the collection of {owners[collection.name]} already; give {model} its own"
                )
            owners[collection.name] = model
        return self


class Files(Section):
    """What clients upload, and what batches give: bounds, and the days that each is kept."""

    most_bytes: Positive = 100 * 1024**2
    of_user: Positive = 500
    of_user_bytes: Positive = 1024**3
    in_all: Positive = 10_000
    in_all_bytes: Positive = 8 * 1024**3
    days: Positive = 30


class Batches(Section):
    at_once: Positive = 2  # requests, of all batches
    most_lines: Positive = 50_000
    most_line_bytes: Positive = 10 * 1024**2
    most_answer_bytes: Positive = 16 * 1024**2
    most_output_bytes: Positive = 256 * 1024**2
    open_of_user: Positive = 10
    open_in_all: Positive = 100
    kept_of_user: Positive = 1000
    attempts: Positive = 5  # of a request that a model fails on
    longest_wait: Seconds = 300.0  # between two attempts
    days: Positive = 30


class Responses(Section):
    days: Positive = 30  # that a response is kept
    store: bool = True  # whether one is kept whose request does not say
    truncation: Literal["auto", "disabled"] = "auto"  # where a request does not say it
    largest: Positive = 512 * 1024  # bytes of the request for one that is kept
    # kept of one client; the oldest go first
    most: Positive = 10_000
    most_bytes: Positive = 1024**3


class Config(Section):
    socket: str
    gateway: str | None = None  # its socket for what is asked of models in the name of a client
    state: str  # folder of the embedded database and of what is half done
    spool: str
    release: str | None = None  # the link to the live one, whose settings are kept with their history
    database: Database | None = None
    # model -> the schema that has its table
    schemas: dict[str, Annotated[str, Field(pattern=f"^{SCHEMA}$")]] = {}
    retention: Retention = Retention()
    files: Files = Files()
    batches: Batches = Batches()
    responses: Responses = Responses()
    vectors: Vectors | None = None


def load(path: Path) -> Config:
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Config.model_validate(data)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from None
    except ValidationError as error:
        told = [f"{'.'.join(map(str, one['loc']))}: {one['msg'][0].lower()}{one['msg'][1:]}" for one in error.errors()]
        raise ConfigError(f"{path}: {'; '.join(told)}") from None


def schema_of(model: str, schemas: dict[str, str]) -> str:
    """A model that nobody gave a schema has one by its name."""
    found = schemas.get(model)
    if found is not None:
        return found
    name = "".join(letter if letter.isalnum() else "_" for letter in model.lower())[:50]
    return name if name[:1].isalpha() else f"model_{name}"
