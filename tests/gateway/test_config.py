"""A configuration is used whole or refused with sentences that name key, value and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from citadel_gateway.cli import main
from citadel_gateway.config import Config, ConfigError, parse

EXAMPLE = Path(__file__).parents[2] / "gateway" / "example.yml"


def complaint(change: str, to: str) -> str:
    text = EXAMPLE.read_text()
    assert change in text
    with pytest.raises(ConfigError) as error:
        parse(text.replace(change, to, 1), "gateway.yml")
    return str(error.value)


def test_the_example_can_be_used_and_shows_every_key() -> None:
    data = yaml.safe_load(EXAMPLE.read_text())
    config = parse(EXAMPLE.read_text())

    def missing(shown: dict[str, object], whole: dict[str, object], where: str) -> list[str]:
        found = []
        for key, value in whole.items():
            if key not in shown:
                found.append(f"{where}{key}")
            elif isinstance(value, dict) and isinstance(shown[key], dict) and where + key not in ("limits.classes",):
                found += missing(shown[key], value, f"{where}{key}.")  # type: ignore[arg-type]
        return found

    figures = {"requests_per_minute", "requests_per_hour", "requests_per_day", "tokens_per_minute", "concurrent"}
    left_out = [key for key in missing(data, config.model_dump(), "") if key.rpartition(".")[2] not in figures]
    assert left_out == []


@pytest.mark.parametrize(
    ("change", "to", "words"),
    [
        ("keep_alive: 65.0", "keep_alve: 65.0", ["server.keep_alve", "did you mean 'keep_alive'?"]),
        ("interval: 30.0", "interval: -1", ["health.interval", "-1", "greater than 0"]),
        ("http://127.0.0.1:11403", "ftp://x", ["models.phi-3-mini.replicas.0.url", "'ftp://x'", "http://HOST:PORT"]),
        ("concurrency: 150", "concurrency: '150'", ["models.phi-3-mini.concurrency", "'150'", "whole number"]),
        ("policy: least_in_flight", "policy: random", ["routing.policy", "'random'", "'least_in_flight'"]),
        ("default_model: phi-3-mini", "default_model: phi", ["routing.default_model", "'phi'", "known are phi-3-mini"]),
        ("limit_class: light", "limit_class: lite", ["models.phi-3-mini.limit_class", "'lite'", "heavy, light"]),
        ("fallback: []", "fallback: [x]", ["models.phi-3-mini.fallback", "'x'"]),
        ("    cost: 1.0", "    cost: 100.0", ["models.phi-3-mini.cost", "100", "raise the budget"]),
        ("profile: development", "profile: production", ["auth.anonymous.enabled", "set it to false"]),
        ("api: 127.0.0.1:8000", "api: localhost", ["listen.api", "HOST:PORT"]),
        ("keys_file: ./gateway-keys.json", "", ["auth.keys_file", "missing"]),
        ("temperature: 0.7", "temperature: 3.5", ["defaults.temperature", "3.5", "move it inside"]),
        ("trusted_proxies: []", "trusted_proxies: [10.0.0.1/8]", ["trusted_proxies", "is not a network"]),
        ("profile: development", "profile: [", ["is not YAML"]),
        ("shared: false", "shared: true", ["limits.shared", "add redis.address"]),
        ("redis: null", "redis: {address: here}", ["redis.address", "'here'", "unix socket"]),
        ("redis: null", "redis: {address: 'x:1', user: me}", ["redis.user", "'me'", "redis.password_file"]),
        ("redis: null", "redis: {address: /x, tls: {}}", ["redis.tls", "/x", "remove redis.tls"]),
    ],
)
def test_what_is_wrong_is_named(change: str, to: str, words: list[str]) -> None:
    message = complaint(change, to)
    assert all(word in message for word in words), message


def test_all_that_is_wrong_is_said_at_once() -> None:
    text = EXAMPLE.read_text().replace("interval: 30.0", "interval: 0").replace("concurrency: 150", "concurrency: 0")
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert len(str(error.value).splitlines()) == 2


def test_two_replicas_of_one_name() -> None:
    data = yaml.safe_load(EXAMPLE.read_text())
    data["models"]["other"] = {**data["models"]["phi-3-mini"], "aliases": []}
    with pytest.raises(ConfigError, match="'phi-3-mini' is a replica of other already"):
        parse(yaml.safe_dump(data))


def test_check_config(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check-config", str(EXAMPLE)]) == 0
    assert "usable; profile development, 1 models, 1 replicas" in capsys.readouterr().out
    broken = tmp_path / "broken.yml"
    broken.write_text("models: {}")
    assert main(["check-config", str(broken)]) == 2
    assert "models" in capsys.readouterr().err
    assert main(["check-config", str(tmp_path / "absent.yml")]) == 2
    assert "cannot be read: No such file" in capsys.readouterr().err


def test_a_wrong_bind_is_refused_before_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--config", str(EXAMPLE), "--bind", "metrics=127.0.0.1:1"]) == 2
    assert "'metrics' is not one of api, management, health" in capsys.readouterr().err


def test_values_are_those_of_the_requirements() -> None:
    config: Config = parse(EXAMPLE.read_text())
    tiers = config.limits.tiers
    figures = {name: (t.requests_per_minute, t.requests_per_hour, t.requests_per_day) for name, t in tiers.items()}
    assert figures == {
        "basic": (50, 500, 5000),
        "premium": (200, 2000, 20000),
        "enterprise": (1000, 10000, 100000),
        "default": (100, 1000, 10000),
    }
