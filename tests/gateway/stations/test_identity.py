"""Station 1: who is asking, and how often an address may guess."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from citadel_gateway import identity as module
from citadel_gateway.errors import Refusal
from citadel_gateway.identity import NOBODY, Identity, Principal, TrustedProxies, WrongKeys, presented, unmapped
from citadel_gateway.keys import KeyStore
from tests.gateway.stations.parts import Clock, config_of, exchange_of

TIERS = {"default": {"max_priority": "normal"}, "best": {"max_priority": "critical"}, "bulk": {"max_priority": "low"}}
WRONG = {b"authorization": b"Bearer ck_none_wrong"}


def identity_of(folder: Path, *, anonymous: bool = True, most: int = 3) -> Identity:
    config = config_of(
        auth={"anonymous": {"enabled": anonymous, "tier": "bulk"}, "wrong_keys_per_minute": most},
        limits={"tiers": TIERS},
    )
    return Identity(config, KeyStore(folder / "keys.json"))


def shown(secret: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {secret}".encode()}


def refusal_of(identity: Identity, headers: dict[bytes, bytes], address: str = "192.0.2.1") -> Refusal:
    with pytest.raises(Refusal) as caught:
        identity.establish(headers, address)
    return caught.value


class TestAddress:
    TRUSTED = TrustedProxies(["10.0.0.0/8"])

    @pytest.mark.parametrize(
        ("peer", "forwarded", "address"),
        [
            ("192.0.2.1", "198.51.100.1", "192.0.2.1"),  # no proxy of ours: what it says is not believed
            ("10.0.0.1", None, "10.0.0.1"),
            ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
            ("10.0.0.1", "203.0.113.9, 198.51.100.1", "198.51.100.1"),  # the client's own invention stands left
            ("10.0.0.1", "198.51.100.1, 10.0.0.2", "198.51.100.1"),
            ("10.0.0.1", "198.51.100.1, nonsense", "10.0.0.1"),
            ("::ffff:10.0.0.1", "::ffff:198.51.100.1", "198.51.100.1"),
            ("nonsense", "198.51.100.1", "nonsense"),
        ],
    )
    def test_the_nearest_that_no_proxy_of_ours_is(self, peer: str, forwarded: str | None, address: str) -> None:
        headers = {} if forwarded is None else {b"x-forwarded-for": forwarded.encode()}
        assert self.TRUSTED.address(peer, headers) == address
        assert TrustedProxies([]).address(peer, headers) == unmapped(peer)

    def test_an_address_of_ipv4_is_the_same_in_either_writing(self) -> None:
        assert unmapped("::FFFF:192.0.2.1") == "192.0.2.1"
        assert unmapped("::ffff:1") == "::ffff:1"
        assert unmapped("192.0.2.1") == "192.0.2.1"
        assert unmapped("2001:db8::192.0.2.1") == "2001:db8::192.0.2.1"


class TestWrongKeys:
    def test_as_many_as_are_allowed_and_then_none_for_a_minute(self, clock: Clock) -> None:
        wrong = WrongKeys(2)
        wrong.note("a")
        assert wrong.wait("a") == 0.0
        clock.now += 10.0
        wrong.note("a")
        assert (wrong.wait("a"), wrong.wait("b")) == (50.0, 0.0)
        clock.now += 49.0
        assert wrong.wait("a") == 1.0
        clock.now += 1.0
        assert wrong.wait("a") == 0.0
        clock.now += 9.0
        assert wrong.wait("a") == 0.0

    def test_a_minute_later_the_count_begins_anew(self, clock: Clock) -> None:
        for later, wait in ((59.0, 1.0), (60.0, 0.0), (61.0, 0.0)):
            wrong = WrongKeys(2)
            wrong.note("a")
            clock.now += later
            wrong.note("a")
            assert (later, wrong.wait("a")) == (later, wait)
            wrong.note("a")
            assert wrong.wait("a") > 0

    def test_an_address_that_never_guessed_may_under_any_clock(self, clock: Clock) -> None:
        clock.now = 5.0  # a machine that has just booted
        assert WrongKeys(1).wait("a") == 0.0

    def test_what_is_over_is_swept_and_only_that(self, clock: Clock) -> None:
        wrong = WrongKeys(1)
        wrong.note("old")
        clock.now += 60.0
        wrong.sweep()
        assert list(wrong._counts) == ["old"]
        wrong.note("new")
        clock.now += 0.1
        wrong.sweep()
        assert list(wrong._counts) == ["new"]

    def test_many_addresses_do_not_fill_the_memory(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_ADDRESSES", 3)
        wrong = WrongKeys(9)
        for name in ("a", "b", "c"):
            wrong.note(name)
        wrong.note("b")  # counts, and displaces nobody
        assert list(wrong._counts) == ["a", "b", "c"]
        wrong.note("d")
        assert list(wrong._counts) == ["b", "c", "d"]
        assert wrong._counts["b"][1] == 2
        clock.now += 61.0
        wrong.note("e")
        assert list(wrong._counts) == ["e"]


class TestPresented:
    @pytest.mark.parametrize(
        ("headers", "credential"),
        [
            ({}, None),
            ({b"authorization": b"Bearer  x "}, b"x"),
            ({b"authorization": b"bearer x"}, b"x"),
            ({b"authorization": b"x"}, b"x"),
            ({b"x-api-key": b"x"}, b"x"),
            ({b"api-key": b"y"}, b"y"),
            ({b"x-api-key": b"x", b"api-key": b"y"}, b"x"),
            ({b"authorization": b"Bearer z", b"x-api-key": b"x"}, b"z"),
        ],
    )
    def test_wherever_clients_put_it(self, headers: dict[bytes, bytes], credential: bytes | None) -> None:
        assert presented(headers) == credential


class TestAnonymous:
    def test_one_principal_for_each_address(self, tmp_path: Path) -> None:
        identity = identity_of(tmp_path)
        one = identity.establish({b"authorization": b"Bearer sk-anything"}, "192.0.2.1")
        assert one is identity.establish({}, "192.0.2.1")
        assert (one.id, one.anonymous, one.role, one.tier_name, one.priority) == (
            "address:192.0.2.1",
            True,
            "user",
            "bulk",
            0,
        )
        assert identity.establish({}, "192.0.2.2").id == "address:192.0.2.2"

    def test_addresses_do_not_fill_the_memory(self, tmp_path: Path) -> None:
        identity = identity_of(tmp_path)
        for number in range(10_001):
            identity.establish({}, f"{number}")
        assert len(identity._anonymous) == 10_001
        identity.establish({}, "one more")
        assert list(identity._anonymous) == ["one more"]

    def test_where_a_key_is_needed_guesses_are_counted_and_silence_is_not(self, tmp_path: Path) -> None:
        identity = identity_of(tmp_path, anonymous=False, most=2)
        for _ in range(5):
            assert (refusal_of(identity, {}).status, refusal_of(identity, {}).code) == (401, "missing_api_key")
        codes = [refusal_of(identity, {b"authorization": b"Bearer sk-guess"}).code for _ in range(3)]
        assert codes == ["invalid_api_key", "invalid_api_key", "too_many_wrong_keys"]
        assert refusal_of(identity, {b"authorization": b"Bearer "}).code == "missing_api_key"


class TestKeys:
    def made(self, identity: Identity, **options: Any) -> tuple[str, dict[bytes, bytes]]:
        key, secret = identity.keys.create("mine", **options)
        identity.forget()
        return key.id, shown(secret)

    def test_a_principal_is_its_key(self, tmp_path: Path) -> None:
        identity = identity_of(tmp_path, anonymous=False)
        ident, headers = self.made(identity, tier="best", models=("phi",))
        found = identity.establish(headers, "192.0.2.1")
        tier = identity._tiers["best"]
        assert found == Principal(f"key:{ident}", "mine", "user", "best", tier, False, ("phi",), 3)
        assert identity.establish(headers, "192.0.2.9") is found

    def test_priorities_are_the_tiers_and_an_administrator_has_them_all(self, tmp_path: Path) -> None:
        identity = identity_of(tmp_path)
        for options, priority in (({}, 1), ({"tier": "bulk"}, 0), ({"tier": "bulk", "role": "admin"}, 3)):
            _, headers = self.made(identity, **options)
            assert identity.establish(headers, "192.0.2.1").priority == priority
        assert (NOBODY.anonymous, NOBODY.priority) == (True, 1)

    def test_a_tier_that_is_gone_is_the_default(self, tmp_path: Path) -> None:
        identity = identity_of(tmp_path)
        _, headers = self.made(identity, tier="gone")
        assert identity.establish(headers, "192.0.2.1").tier is identity._tiers["default"]

    def test_the_edge_of_expiry(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        identity = identity_of(tmp_path)
        _, headers = self.made(identity, expires=time.time() + 86400.0)
        found = identity.keys.find(headers[b"authorization"].decode().partition(" ")[2])
        assert found is not None
        assert found.expires is not None
        monkeypatch.setattr(time, "time", lambda: found.expires - 0.01)
        identity.establish(headers, "192.0.2.1")
        monkeypatch.setattr(time, "time", lambda: found.expires)
        assert (refusal_of(identity, headers).status, refusal_of(identity, headers).code) == (401, "expired_api_key")

    def test_a_revoked_key(self, tmp_path: Path) -> None:
        identity = identity_of(tmp_path)
        ident, headers = self.made(identity)
        identity.establish(headers, "192.0.2.1")
        identity.keys.revoke(ident)
        identity.forget()
        assert refusal_of(identity, headers).code == "revoked_api_key"

    def test_wrong_keys_of_an_address_shut_out_only_what_is_unknown(self, tmp_path: Path, clock: Clock) -> None:
        identity = identity_of(tmp_path, most=3)
        _, proven = self.made(identity)
        _, unused = self.made(identity)
        identity.establish(proven, "192.0.2.1")
        assert [refusal_of(identity, WRONG).code for _ in range(4)] == ["invalid_api_key"] * 3 + ["too_many_wrong_keys"]
        clock.now += 20.0
        refusal = refusal_of(identity, unused)
        assert (refusal.status, refusal.code, refusal.retry_after) == (429, "too_many_wrong_keys", 40.0)
        identity.establish(proven, "192.0.2.1")
        identity.forget()  # keys have changed: it is asked about anew
        identity.establish(proven, "192.0.2.1")
        identity.establish(unused, "192.0.2.2")
        clock.now += 40.0
        assert refusal_of(identity, WRONG).code == "invalid_api_key"

    def test_only_an_administrator_gets_past(self, tmp_path: Path) -> None:
        identity = identity_of(tmp_path)
        ident, admin = self.made(identity, role="admin")
        _, user = self.made(identity)
        exchange = exchange_of(headers=admin)
        assert identity.administrator(exchange) == exchange.principal.id == f"key:{ident}"
        for headers, status, code in ((user, 403, "role_not_allowed"), ({}, 401, "missing_api_key")):
            with pytest.raises(Refusal) as caught:
                identity.administrator(exchange_of(headers=headers))
            assert (caught.value.status, caught.value.code) == (status, code)
