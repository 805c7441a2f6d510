"""The companion's configuration: one file, checked before anything is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
    responses: Responses = Responses()


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
