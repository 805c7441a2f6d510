"""Station 1: who is asking.

A key of ours must be valid. Anything else in the authorization header (the SDKs insist on sending something) is
as good as nothing: anonymous by address where the configuration allows it, refused where it does not.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from citadel_gateway.config import PRIORITIES, Tier
from citadel_gateway.errors import Refusal
from citadel_gateway.keys import PREFIX, Key, KeyStore

if TYPE_CHECKING:
    from citadel_gateway.config import Config
    from citadel_gateway.exchange import Exchange

_PREFIX = PREFIX.encode()
_MINUTE = 60.0
_ADDRESSES = 10_000


@dataclass(frozen=True, slots=True)
class Principal:
    id: str
    name: str
    role: str
    tier_name: str
    tier: Tier
    anonymous: bool
    models: tuple[str, ...] = ()  # empty: all of them
    priority: int = 1  # the highest that it may ask for


NOBODY = Principal("nobody", "nobody", "user", "none", Tier(), anonymous=True)


class TrustedProxies:
    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def address(self, peer: str, headers: dict[bytes, bytes]) -> str:
        """The client's address: the peer's, or the nearest untrusted one that trusted proxies report.

        Each proxy adds whom it has seen at the right end of X-Forwarded-For, so that what a client writes there
        itself stands left of everything that can be believed.
        """
        nearest = unmapped(peer)
        if not self._networks or not self.trusts(nearest):
            return nearest
        reported = headers.get(b"x-forwarded-for")
        if reported is None:
            return nearest
        for hop in reversed(reported.decode("latin-1").split(",")):
            text = unmapped(hop.strip())
            try:
                ipaddress.ip_address(text)
            except ValueError:
                return nearest
            nearest = text
            if not self.trusts(text):
                break
        return nearest

    def trusts(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


def unmapped(address: str) -> str:
    """An IPv4 client of a socket that listens for both: without the prefix that only such a socket gives it."""
    if address[:7].lower() == "::ffff:" and "." in address:
        return address[7:]
    return address


class WrongKeys:
    """How often an address has shown keys that do not exist. Beyond the bound its unknown keys are not looked at until
    the minute is over; keys that have worked before go on working from there."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._counts: dict[str, tuple[float, int]] = {}

    def wait(self, address: str) -> float:
        """Seconds until this address may try another one."""
        found = self._counts.get(address)
        if found is None or found[1] < self.most:
            return 0.0
        return max(0.0, found[0] + _MINUTE - time.monotonic())

    def note(self, address: str) -> None:
        now = time.monotonic()
        since, count = self._counts.get(address, (now, 0))
        if now - since >= _MINUTE:
            since, count = now, 0
        if not count and len(self._counts) >= _ADDRESSES:
            self.sweep()
            while len(self._counts) >= _ADDRESSES:
                del self._counts[next(iter(self._counts))]
        self._counts[address] = since, count + 1

    def sweep(self) -> None:
        oldest = time.monotonic() - _MINUTE
        for address in [address for address, (since, _) in self._counts.items() if since < oldest]:
            del self._counts[address]


def presented(headers: dict[bytes, bytes]) -> bytes | None:
    """The credential of a request, from the headers that OpenAI and Azure clients use."""
    value = headers.get(b"authorization")
    if value is not None:
        scheme, _, credential = value.partition(b" ")
        return credential.strip() if scheme.lower() == b"bearer" else value
    return headers.get(b"x-api-key") or headers.get(b"api-key")


class Identity:
    def __init__(self, config: Config, keys: KeyStore) -> None:
        self.keys = keys
        self._principals: dict[bytes, tuple[Key, Principal]] = {}
        self._anonymous: dict[str, Principal] = {}
        self._proven: set[bytes] = set()  # they have worked, and are asked about whoever shows them
        self.wrong = WrongKeys(config.auth.wrong_keys_per_minute)
        self.apply(config)

    def apply(self, config: Config) -> None:
        self._tiers = config.limits.tiers
        self._open = config.auth.anonymous
        self.wrong.most = config.auth.wrong_keys_per_minute
        self.forget()

    def forget(self) -> None:
        """Keys have changed: look everyone up anew."""
        self._principals.clear()
        self._anonymous.clear()

    def establish(self, headers: dict[bytes, bytes], address: str) -> Principal:
        credential = presented(headers)
        if credential is not None and credential.startswith(_PREFIX):
            return self._keyed(credential, address)
        if not self._open.enabled:
            if credential:
                self._refuse_guesses(address)
                self.wrong.note(address)
                raise Refusal(401, "invalid_api_key", "This is not an API key of this gateway.")
            raise Refusal(
                401,
                "missing_api_key",
                "An API key is required: send it as 'Authorization: Bearer ck_...'.",
            )
        principal = self._anonymous.get(address)
        if principal is None:
            if len(self._anonymous) > 10_000:
                self._anonymous.clear()
            principal = self._principal(f"address:{address}", "anonymous", "user", self._open.tier, anonymous=True)
            self._anonymous[address] = principal
        return principal

    def of(self, exchange: Exchange) -> Principal:
        if exchange.client.vouched:
            return self._vouched(exchange)
        return self.establish(exchange.headers, exchange.address)

    def administrator(self, exchange: Exchange) -> str:
        """Who asks for what is an administrator's only; nobody else gets past here."""
        principal = exchange.principal = self.establish(exchange.headers, exchange.address)
        if principal.anonymous:
            raise Refusal(401, "missing_api_key", "This needs an API key with the role admin.")
        if principal.role != "admin":
            raise Refusal(403, "role_not_allowed", "This needs an API key with the role admin.")
        return principal.id

    def _refuse_guesses(self, address: str) -> None:
        wait = self.wrong.wait(address)
        if wait > 0:
            raise Refusal(
                429,
                "too_many_wrong_keys",
                f"This address has shown {self.wrong.most} keys that do not exist within a minute; "
                f"try again in {wait:.0f} s.",
                retry_after=wait,
            )

    def _keyed(self, credential: bytes, address: str) -> Principal:
        known = self._principals.get(credential)
        if known is None:
            if credential not in self._proven:
                self._refuse_guesses(address)
            key = self.keys.find(credential.decode("latin-1"))
            if key is None:
                self.wrong.note(address)
                raise Refusal(401, "invalid_api_key", "This API key does not exist.")
            known = key, self._of_key(key)
            self._principals[credential] = known
            self._proven.add(credential)
        key, principal = known
        _check_usable(key)
        self.keys.used(key.id)
        return principal

    def _vouched(self, exchange: Exchange) -> Principal:
        """Whom the companion was told, a moment or days ago: a key may have been revoked meanwhile."""
        headers = exchange.headers
        exchange.address = headers.get(b"x-citadel-address", b"").decode("latin-1")
        sort, _, name = headers.get(b"x-citadel-principal", b"").decode("latin-1").partition(":")
        if sort != "key":
            return self.establish({}, name)
        key = self.keys.get(name)
        if key is None:
            raise Refusal(401, "invalid_api_key", "This API key does not exist any more.")
        _check_usable(key)
        return self._of_key(key)

    def _of_key(self, key: Key) -> Principal:
        return self._principal(f"key:{key.id}", key.name, key.role, key.tier, models=key.models)

    def _principal(
        self, ident: str, name: str, role: str, tier_name: str, *, anonymous: bool = False, models: tuple[str, ...] = ()
    ) -> Principal:
        # a tier that a reload removed leaves its keys with the default one
        tier = self._tiers.get(tier_name) or self._tiers["default"]
        highest = PRIORITIES.index("critical" if role == "admin" else tier.max_priority)
        return Principal(ident, name, role, tier_name, tier, anonymous, models, highest)


def _check_usable(key: Key) -> None:
    if key.revoked is not None:
        raise Refusal(401, "revoked_api_key", "This API key has been revoked.")
    if key.expires is not None and time.time() >= key.expires:
        raise Refusal(401, "expired_api_key", "This API key has expired.")
