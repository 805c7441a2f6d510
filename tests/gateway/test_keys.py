"""Keys: shown once, kept as hashes, ended at once; and who gets in with what."""

from __future__ import annotations

import json
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from citadel_gateway.cli import main
from citadel_gateway.identity import TrustedProxies
from citadel_gateway.keys import KeyFileError, KeyStore
from tests.gateway.harness import Lab, code_of, running
from tests.gateway.simulator import eventually


def test_only_hashes_are_kept_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    key, secret = store.create("me", role="admin", tier="premium")
    assert secret not in store.path.read_text()
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    found = KeyStore(store.path).find(secret)
    assert found == key
    assert store.find(secret + "x") is None


def test_rotation_with_and_without_overlap(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    first, _ = store.create("me", tier="premium", models=("phi",))
    second, _ = store.rotate(first.id, overlap=60)
    third, _ = store.rotate(second.id)
    usable = {key.id: key.usable(time.time()) for key in store.all()}
    assert usable == {first.id: True, second.id: False, third.id: True}
    assert (third.tier, third.models, third.name) == ("premium", ("phi",), "me")
    with pytest.raises(KeyFileError, match="revoked or expired"):
        store.rotate(second.id)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of somebody else")
def test_what_root_makes_belongs_to_the_service(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    KeyStore(folder / "keys.json").create("made by root")
    assert {file.name: file.stat().st_uid for file in folder.iterdir()} == {"keys.json": 65534, "keys.lock": 65534}


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: KeyStore(path).create(str(number)), range(40)))
    assert len(KeyStore(path).all()) == 40


def test_a_file_that_is_not_a_key_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text("[]")
    with pytest.raises(KeyFileError, match="is not a key file"):
        KeyStore(path)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ["--file", str(tmp_path / "keys.json")]
    assert main(["keys", "create", "ops", "--role", "admin", *file]) == 0
    secret = capsys.readouterr().out.strip()
    assert secret.startswith("ck_")
    (key,) = KeyStore(tmp_path / "keys.json").all()
    assert main(["keys", "list", *file]) == 0
    assert "ops" in capsys.readouterr().out
    assert main(["keys", "list", "--json", *file]) == 0
    assert "hash" not in json.loads(capsys.readouterr().out)[0]
    assert main(["keys", "rotate", key.id, *file]) == 0
    assert main(["keys", "revoke", "nope", *file]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("9.9.9.9", "1.1.1.1", "9.9.9.9"),
        ("10.0.0.1", "1.1.1.1", "1.1.1.1"),
        ("10.0.0.1", "6.6.6.6, 1.1.1.1, 10.0.0.2", "1.1.1.1"),
        ("10.0.0.1", "rubbish", "10.0.0.1"),
        ("10.0.0.1", "6.6.6.6, rubbish, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("::ffff:10.0.0.1", "1.1.1.1", "1.1.1.1"),
        ("::ffff:10.0.0.1", "1.1.1.1, ::ffff:10.0.0.2", "1.1.1.1"),
        ("::ffff:5.5.5.5", None, "5.5.5.5"),
        ("2001:db8::1", None, "2001:db8::1"),
        ("10.0.0.1", None, "10.0.0.1"),
    ],
)
def test_forwarded_addresses_are_believed_of_trusted_proxies_only(
    peer: str, forwarded: str | None, address: str
) -> None:
    headers = {} if forwarded is None else {b"x-forwarded-for": forwarded.encode()}
    assert TrustedProxies(["10.0.0.0/8"]).address(peer, headers) == address


@pytest.mark.anyio
class TestWhoGetsIn:
    async def test_a_key_of_ours_must_be_valid_even_where_nobody_needs_one(self, lab: Lab) -> None:
        answer = await lab.chat(headers={"authorization": "Bearer ck_12345678_made-up"})
        assert (answer.status_code, code_of(answer)) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        # what the SDKs send when they have none
        assert (await lab.chat(headers={"authorization": "Bearer EMPTY"})).status_code == 200
        assert any(record["event"] == "authentication" for record in lab.records("audit"))

    async def test_in_production_everybody_needs_one(self) -> None:
        async with running({"profile": "production", "auth": {"anonymous": {"enabled": False}}}) as lab:
            assert code_of(await lab.chat()) == "missing_api_key"
            assert code_of(await lab.chat(headers={"authorization": "Bearer EMPTY"})) == "invalid_api_key"
            assert (await lab.client.get("/v1/models")).status_code == 401
            assert (await lab.client.get("/health")).status_code == 200
            assert (await lab.client.get("/metrics")).status_code == 401
            _, headers = lab.key()
            assert (await lab.chat(headers=headers)).status_code == 200
            assert (await lab.client.get("/metrics", headers=headers)).status_code == 403
            secret = headers["authorization"].removeprefix("Bearer ")
            assert (await lab.chat(headers={"x-api-key": secret})).status_code == 200

    async def test_a_key_for_some_models(self) -> None:
        async with running(models={"phi": {}, "hermes": {}}) as lab:
            _, headers = lab.key(models=("hermes",))
            answer = await lab.chat(headers=headers, model="phi")
            assert (answer.status_code, code_of(answer)) == (403, "model_not_allowed")
            assert (await lab.chat(headers=headers)).headers["x-citadel-model"] == "hermes"
            listed = (await lab.client.get("/v1/models", headers=headers)).json()["data"]
            assert [model["id"] for model in listed] == ["hermes"]

    async def test_a_reader_may_look_but_not_ask(self, lab: Lab) -> None:
        _, headers = lab.key(role="reader")
        assert (await lab.client.get("/v1/models", headers=headers)).status_code == 200
        assert code_of(await lab.chat(headers=headers)) == "role_not_allowed"

    async def test_a_key_made_by_the_command_line_works_within_a_second(self) -> None:
        # asked for a hundred times a second, which nobody may who tries keys
        async with running({"auth": {"wrong_keys_per_minute": 1000}}) as lab:
            _, secret = KeyStore(lab.gateway.keys.path).create("other process")

            async def known() -> bool:
                return (await lab.chat(headers={"authorization": f"Bearer {secret}"})).status_code == 200

            await eventually(known, 2.0)
