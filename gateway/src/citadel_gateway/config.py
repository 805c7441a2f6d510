"""The configuration file: its shape, its checks, and messages that say what to change.

The shape is written once, as the classes below; an unknown key, a wrong type or a value out of range refuses
the whole file. What one section says about another is checked in `Config.cross_check`.
"""

from __future__ import annotations

import difflib
import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from citadel_gateway.endpoints import ENDPOINTS

Priority = Literal["low", "normal", "high", "critical"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
CachePolicy = Literal["never", "on_request", "always"]
Policy = Literal["weighted_round_robin", "least_in_flight", "response_time", "resource"]


class ConfigError(Exception):
    """The file cannot be used; the message lists everything that is wrong with it."""


def split_address(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("is not an address; write it as HOST:PORT, such as 127.0.0.1:8000")
    return host.strip("[]"), int(port)


def _address(text: str) -> str:
    split_address(text)
    return text


def _upstream_url(text: str) -> str:
    if not text.startswith("http://") or "/" in text[7:].rstrip("/"):
        raise ValueError("is not the base of a model server; write it as http://HOST:PORT, without a path")
    split_address(text[7:].rstrip("/"))
    return text.rstrip("/")


def _collector_url(text: str) -> str:
    address, _, path = text.removeprefix("http://").partition("/")
    if not text.startswith("http://") or not path:
        raise ValueError("is not where a collector takes spans; write it as http://HOST:4318/v1/traces")
    split_address(address)
    return text


def _redis_address(text: str) -> str:
    if text.startswith("/"):
        return text
    try:
        return _address(text)
    except ValueError:
        raise ValueError("is not where a Redis is; write it as HOST:PORT, or as the path of its unix socket") from None


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise ValueError("is not a network; write it as 10.0.0.0/8 or 127.0.0.1/32") from None
    return text


def _route(text: str) -> str:
    if not text.startswith("/") or "*" in text.removesuffix("/*"):
        raise ValueError("is not a route; write it as /v1/files, or /v1/files/* for all that is below it")
    return text


def _endpoint(name: str) -> str:
    if name not in ENDPOINTS:
        raise ValueError(f"is not an endpoint; known are {', '.join(ENDPOINTS)}")
    return name


Endpoint = Annotated[str, AfterValidator(_endpoint)]
Address = Annotated[str, AfterValidator(_address)]
Network = Annotated[str, AfterValidator(_network)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Ratio = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Listen(Section):
    api: Address | None = "127.0.0.1:8000"
    management: Address | None = "127.0.0.1:8002"
    health: Address | None = None
    export: Address | None = None
    management_socket: str | None = None
    inner: str | None = None


class Cors(Section):
    origins: list[str] = []
    max_age: Positive = 600


class Tls(Section):
    certificate: str
    key: str


class Server(Section):
    connections: Positive = 1000
    connections_per_address: Positive | None = None
    side_connections: Positive = 100
    max_body_bytes: Positive = 10 * 1024 * 1024
    max_held_bytes: Positive = 256 * 1024 * 1024
    max_header_bytes: Positive = 64 * 1024
    max_response_bytes: Positive = 64 * 1024 * 1024
    connect_timeout: Seconds = 10.0
    client_timeout: Seconds = 300.0
    keep_alive: Seconds = 65.0
    header_timeout: Seconds = 10.0
    body_timeout: Seconds = 30.0
    write_timeout: Seconds = 30.0
    drain: Seconds = 60.0
    gzip_from_bytes: Positive = 4096
    trusted_proxies: list[Network] = []
    cors: Cors = Cors()
    tls: Tls | None = None


class Anonymous(Section):
    enabled: bool
    tier: str = "basic"


class Auth(Section):
    keys_file: str
    anonymous: Anonymous
    wrong_keys_per_minute: Positive = 20


class Logs(Section):
    access: str = "-"
    audit: str = "-"
    prompts: bool = False


class Rates(Section):
    """Absent means without a bound."""

    requests_per_minute: Positive | None = None
    requests_per_hour: Positive | None = None
    requests_per_day: Positive | None = None
    tokens_per_minute: Positive | None = None
    concurrent: Positive | None = None


class Tier(Rates):
    max_priority: Priority = "normal"
    class_factor: Annotated[float, Field(ge=1)] = 1.0


class GlobalRate(Section):
    requests_per_minute: Positive = 1000
    burst: Positive = 100


class Limits(Section):
    overall: GlobalRate | None = GlobalRate()
    address: Rates = Rates(requests_per_minute=60, concurrent=5)
    classes: dict[str, Rates] = {}
    tiers: dict[str, Tier]
    shared: bool = False


class Admission(Section):
    budget: Annotated[float, Field(gt=0)] | None = None
    reserved: Annotated[float, Field(ge=0, le=1)] = 0.5
    ageing: Seconds = 10.0


class Routing(Section):
    policy: Policy = "least_in_flight"
    default_model: str | None = None
    fallback: Literal["never", "on_request", "always"] = "on_request"


class Health(Section):
    interval: Seconds = 30.0
    awaited_interval: Seconds = 0.2
    down_interval: Seconds = 2.0
    timeout: Seconds = 5.0
    out_after: Positive = 3
    back_after: Positive = 2
    stalled_after: Seconds = 120.0
    load_times: str | None = None  # {"<replica>": seconds of its last start}, in JSON


class Breaker(Section):
    window: Seconds = 30.0
    minimum: Positive = 10
    clients: Positive = 2
    failure_ratio: Ratio = 0.5
    recovery: Seconds = 60.0
    half_open_calls: Positive = 10


class Retry(Section):
    attempts: Positive = 3
    backoff: Seconds = 0.05
    max_backoff: Seconds = 1.0


class Replica(Section):
    name: str
    url: Annotated[str, AfterValidator(_upstream_url)]
    weight: Positive = 1
    unit: str | None = None


class Defaults(Section):
    max_tokens: Positive | None = 1024
    temperature: float | None = 0.7
    top_p: float | None = None


class Guided(Section):
    """Schemas, patterns and grammars that an answer has to follow: what compiling one may cost."""

    schema_bytes: Positive = 32 * 1024
    depth: Positive = 32
    pattern: Positive = 2048  # characters
    grammar: Positive = 16 * 1024  # characters
    choices: Positive = 512
    repeats: Positive = 1000


class Bounds(Section):
    """What a request may ask; the defaults are safe for any model."""

    temperature: tuple[float, float] = Field(default=(0.0, 2.0), strict=False)
    top_p: tuple[float, float] = Field(default=(0.0, 1.0), strict=False)
    penalties: tuple[float, float] = Field(default=(-2.0, 2.0), strict=False)
    repetition_penalty: tuple[float, float] = Field(default=(0.01, 10.0), strict=False)
    max_tokens: Positive | None = None
    n: Positive = 8
    prompts: Positive = 32
    inputs: Positive = 256
    logprobs: Annotated[int, Field(ge=0)] = 20
    prompt_logprobs: Annotated[int, Field(ge=0)] = 0
    beam_search: bool = False
    stop: Positive = 16
    bad_words: Positive = 64
    logit_bias: Positive = 300
    token_ids: Positive = 1024
    tools: Positive = 128
    guided: Guided = Guided()


class Model(Section):
    replicas: Annotated[list[Replica], Field(min_length=1)]
    context: Positive
    endpoints: Annotated[list[Endpoint], Field(min_length=1)] = ["chat", "completions"]
    served_name: str | None = None
    aliases: list[str] = []
    description: str = ""
    capabilities: list[str] = []
    specialisation: list[str] = []
    vector_size: Positive | None = None
    defaults: Defaults = Defaults()
    bounds: Bounds = Bounds()
    timeout: Seconds = 300.0
    concurrency: Positive = 16
    queue: Annotated[int, Field(ge=0)] = 64
    cost: Annotated[float, Field(gt=0)] = 1.0
    share: Annotated[float, Field(gt=0)] = 1.0
    limit_class: str | None = None
    fallback: list[str] = []
    load_seconds: Seconds = 120.0
    hold: Seconds | None = None
    cache: CachePolicy | None = None
    revision: str | None = None


class Companion(Section):
    socket: str
    routes: Annotated[list[Annotated[str, AfterValidator(_route)]], Field(min_length=1)]
    timeout: Seconds = 60.0
    # of one principal on its paths, times its tier's class_factor
    rates: Rates = Rates(requests_per_minute=300, concurrent=8)


class Knowledge(Section):
    """Passages that a request asks to have put into its context."""

    deadline: Seconds = 1.0
    passages: Positive = 5
    most_passages: Positive = 20
    most_bytes: Positive = 8192
    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.7


class Usage(Section):
    folder: str
    sync: Seconds = 1.0
    most_bytes: Positive = 8 * 1024**3


class Ttl(Section):
    """How long answers are good for, in seconds."""

    chat: Seconds = 3600.0
    completions: Seconds = 3600.0
    embeddings: Seconds = 86400.0


class Cache(Section):
    policy: CachePolicy = "on_request"
    memory_bytes: Positive = 128 * 1024 * 1024
    answer_bytes: Positive = 1024 * 1024
    database: Annotated[int, Field(ge=0)] | None = 1  # of the section redis
    ttl: Ttl = Ttl()


class Tracing(Section):
    endpoint: Annotated[str, AfterValidator(_collector_url)]
    sample: Annotated[float, Field(ge=0, le=1)] = 0.01
    traces_per_second: Positive = 100


class RedisTls(Section):
    authorities: str | None = None  # absent: those of the system


class Redis(Section):
    address: Annotated[str, AfterValidator(_redis_address)]
    database: Annotated[int, Field(ge=0)] = 0
    user: str | None = None
    password_file: str | None = None
    tls: RedisTls | None = None
    timeout_ms: Annotated[float, Field(gt=0)] = 50.0


class Config(Section):
    profile: Literal["development", "production"] = "development"
    listen: Listen = Listen()
    server: Server = Server()
    auth: Auth
    logs: Logs = Logs()
    limits: Limits
    admission: Admission = Admission()
    routing: Routing = Routing()
    health: Health = Health()
    breaker: Breaker = Breaker()
    retry: Retry = Retry()
    cache: Cache | None = None
    companion: Companion | None = None
    knowledge: Knowledge | None = None
    tracing: Tracing | None = None
    usage: Usage | None = None
    redis: Redis | None = None
    models: Annotated[dict[str, Model], Field(min_length=1)]

    @model_validator(mode="after")
    def cross_check(self) -> Self:
        wrong = [*self._wrong_names(), *self._wrong_models()]
        if self.profile == "production" and self.auth.anonymous.enabled:
            wrong.append("auth.anonymous.enabled: true is for development; set it to false or profile to development")
        if self.knowledge is not None and self.companion is None:
            wrong.append("knowledge: the companion finds it, and there is none; add companion or take this out")
        redis = self.redis
        if self.limits.shared and redis is None:
            wrong.append(
                "limits.shared: true needs a Redis that all gateways reach; add redis.address or set it to false"
            )
        if redis is not None and redis.user is not None and redis.password_file is None:
            wrong.append(f"redis.user: {redis.user!r} is of no use without a password; add redis.password_file")
        if redis is not None and redis.tls is not None and redis.address.startswith("/"):
            wrong.append(f"redis.tls: {redis.address} is a unix socket, which needs none; remove redis.tls")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def _wrong_names(self) -> list[str]:
        """References from one section to a name of another."""
        wrong = []

        def refer(where: str, name: str | None, known: Any, kind: str) -> None:
            if name is not None and name not in known:
                wrong.append(f"{where}: {name!r} is not a {kind}; known are {', '.join(known) or 'none'}")

        if self.auth.anonymous.enabled:
            refer("auth.anonymous.tier", self.auth.anonymous.tier, self.limits.tiers, "tier of limits.tiers")
        refer("limits.tiers", "default", self.limits.tiers, "tier, and keys without a tier need it")
        refer("routing.default_model", self.routing.default_model, self.models, "model")
        for name, model in self.models.items():
            where = f"models.{name}"
            refer(f"{where}.limit_class", model.limit_class, self.limits.classes, "class of limits.classes")
            for other in model.fallback:
                refer(f"{where}.fallback", other, self.models, "model")
        return wrong

    def _wrong_models(self) -> list[str]:
        wrong = []
        owners: dict[str, str] = dict.fromkeys(self.models, "")
        instances: dict[str, str] = {}
        budget = self.admission.budget
        for name, model in self.models.items():
            where = f"models.{name}"
            for replica in model.replicas:
                if replica.name in instances:
                    wrong.append(
                        f"{where}.replicas: {replica.name!r} is a replica of {instances[replica.name]} already; "
                        "give each its own name"
                    )
                instances[replica.name] = name
            for alias in model.aliases:
                if alias in owners:
                    wrong.append(f"{where}.aliases: {alias!r} already names {owners[alias] or alias}; drop it")
                owners[alias] = name
            if budget is not None and model.cost > budget:
                wrong.append(
                    f"{where}.cost: {model.cost:g} is more than admission.budget {budget:g}, so that no request "
                    "could start; lower the cost or raise the budget"
                )
            low, high = model.bounds.temperature
            if model.defaults.temperature is not None and not low <= model.defaults.temperature <= high:
                wrong.append(
                    f"{where}.defaults.temperature: {model.defaults.temperature:g} is outside "
                    f"bounds.temperature [{low:g}, {high:g}]; move it inside"
                )
        return wrong


_REMEDIES = {
    "int_type": "write a whole number",
    "float_type": "write a number",
    "string_type": "write a text, in quotes if it looks like a number",
    "bool_type": "write true or false",
    "list_type": "write a list",
    "dict_type": "write keys and values under it",
    "model_type": "write keys and values under it",
    "missing": "add it",
}


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section that `location` leads to; names chosen by the user are skipped over."""
    shape: Any = Config
    for part in location:
        if isinstance(shape, type) and issubclass(shape, BaseModel) and part in shape.model_fields:
            shape = shape.model_fields[str(part)].annotation
        for candidate in [shape, *get_args(shape)]:
            inner = [candidate, *get_args(candidate)]
            found = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
            if found:
                shape = found[0]
                break
    return list(shape.model_fields) if isinstance(shape, type) and issubclass(shape, BaseModel) else []


def _sentence(error: ErrorDetails) -> str:
    kind, location, value = error["type"], error["loc"], error["input"]
    where = ".".join(str(part) for part in location) or "the file"
    if kind == "value_error":
        reason = str(error["ctx"]["error"])
        return reason if not location else f"{where}: {value!r} {reason}"
    if kind == "missing":
        return f"{where}: is missing; add it"
    if kind == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"{where}: is not a key that the gateway knows; remove it ({advice})"
    message = error["msg"][0].lower() + error["msg"][1:]
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    return f"{where}: {shown} cannot be used: {message}; {_REMEDIES.get(kind, 'change it')}"


class _Loader(yaml.SafeLoader):
    """YAML lets the later of two equal keys win without a word; here the second one is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise ConfigError(f"line {line}: {key.value!r} stands twice in this section; keep one of them")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse(text: str, source: str = "configuration") -> Config:
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: is not YAML: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: is empty or not a mapping; start from gateway/example.yml")
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        lines = [line for detail in error.errors() for line in _sentence(detail).splitlines()]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


def load(path: Path) -> Config:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}; give the path of a configuration file") from None
    return parse(text, str(path))
