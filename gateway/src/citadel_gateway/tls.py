"""The certificate of the clients' port: TLS 1.3, read from files, and read anew when they change.

What runs keeps the certificate that it began with. Files that cannot be used change nothing: the old pair stays.
"""

from __future__ import annotations

import logging
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from citadel_gateway.config import ConfigError

if TYPE_CHECKING:
    from citadel_gateway.config import Tls

logger = logging.getLogger("citadel_gateway")

_TIMES = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}  # UTCTime, GeneralizedTime


class Certificate:
    def __init__(self, settings: Tls) -> None:
        self._settings = settings
        self._seen = self._stamps()
        self.context, self.expires = opened(settings)
        if self.expires <= time.time():
            logger.warning("%s has expired: clients that check it will not come in", settings.certificate)

    def refresh(self, settings: Tls) -> str | None:
        """Take the files over if they have changed; returns what is wrong with them."""
        self._settings = settings
        stamps = self._stamps()
        if stamps == self._seen:
            return None
        self._seen = stamps
        try:
            check(settings)
            self.context.load_cert_chain(settings.certificate, settings.key)
            self.expires = _expiry(Path(settings.certificate))
        except (ConfigError, ssl.SSLError, OSError) as error:
            return str(error)
        return ""

    def _stamps(self) -> list[tuple[str, int, int]]:
        found = []
        for name in (self._settings.certificate, self._settings.key):
            try:
                stat = Path(name).stat()
                found.append((name, stat.st_mtime_ns, stat.st_ino))
            except OSError:
                found.append((name, 0, 0))
        return found


def opened(settings: Tls) -> tuple[ssl.SSLContext, float]:
    """A context with the pair, and when it ends; raises ConfigError with the sentence to show."""
    expires = _expiry(Path(settings.certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    context.num_tickets = 0  # each costs a tenth of a handshake, and few come back with one
    try:
        # a pass phrase would be asked for on a terminal that is not there
        context.load_cert_chain(settings.certificate, settings.key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = f"is not the key of {settings.certificate}; give the pair that belongs together"
        else:
            reason = f"is not a private key without a pass phrase in PEM ({error.reason or 'unreadable'}); write one"
        raise ConfigError(f"server.tls.key: {settings.key} {reason}") from None
    except OSError as error:
        raise ConfigError(f"server.tls.key: {settings.key} cannot be read: {error.strerror}; name a file") from None
    return context, expires


def check(settings: Tls) -> float:
    """The seconds until it expires; raises ConfigError if it cannot be used, or has expired."""
    _, expires = opened(settings)
    left = expires - time.time()
    if left <= 0:
        day = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%d %H:%M UTC")
        raise ConfigError(f"server.tls.certificate: {settings.certificate} expired on {day}; renew it")
    return left


def _expiry(path: Path) -> float:
    try:
        text = path.read_text(encoding="latin-1")
    except OSError as error:
        raise ConfigError(f"server.tls.certificate: {path} cannot be read: {error.strerror}; name a file") from None
    begin, end = text.find("-----BEGIN CERTIFICATE-----"), text.find("-----END CERTIFICATE-----")
    try:
        der = ssl.PEM_cert_to_DER_cert(text[begin : end + len("-----END CERTIFICATE-----")])
        return _not_after(der)
    except (ValueError, IndexError):
        raise ConfigError(f"server.tls.certificate: {path} is not a certificate in PEM; write one") from None


def _not_after(der: bytes) -> float:
    """The second time of the sequence that holds two of them (RFC 5280, 4.1): the standard library reads no
    certificate that it has not verified."""
    at, end = _content(der, _content(der, 0)[0])  # tbsCertificate
    while at < end:
        inner, after = _content(der, at)
        if der[at] == 0x30 and der[inner] in _TIMES:
            _, first = _content(der, inner)
            begin, last = _content(der, first)
            moment = datetime.strptime(der[begin:last].decode("ascii"), _TIMES[der[first]])
            return moment.replace(tzinfo=UTC).timestamp()
        at = after
    raise ValueError("no validity")


def _content(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at `at` begins and ends."""
    length = der[at + 1]
    begin = at + 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(der[begin : begin + count], "big")
        begin += count
    if begin + length > len(der):
        raise ValueError("cut short")
    return begin, begin + length
