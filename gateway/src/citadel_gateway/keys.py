"""API keys: made once, shown once, kept as hashes.

A key is `ck_<id>_<secret>` with 256 random bits, so that a plain SHA-256 is enough to keep it. The file is
written whole and renamed into place; a running gateway sees the change within a second.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

Role = Literal["user", "reader", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
PREFIX = "ck_"


class KeyFileError(Exception):
    """The key file cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Key:
    id: str
    name: str
    hash: str
    role: Role
    tier: str
    created: float
    expires: float | None = None
    revoked: float | None = None
    models: tuple[str, ...] = ()  # empty: all of them

    def usable(self, now: float) -> bool:
        return self.revoked is None and (self.expires is None or now < self.expires)

    def public(self) -> dict[str, object]:
        shown = asdict(self)
        del shown["hash"]
        return shown


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


class KeyStore:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._by_hash: dict[str, Key] = {}
        self._seen: tuple[int, int] | None = None
        self._fresh: dict[str, tuple[int, float]] = {}  # uses since they were last written down
        self.refresh()

    def adopt(self, other: KeyStore) -> bool:
        """Become another store, which has been read already; true if the keys differ."""
        changed = self._by_hash != other._by_hash
        self.path, self._by_hash, self._seen = other.path, other._by_hash, other._seen
        return changed

    def used(self, key_id: str) -> None:
        self._fresh[key_id] = self._fresh.get(key_id, (0, 0.0))[0] + 1, time.time()

    def uses(self) -> dict[str, dict[str, float]]:
        """How often and when each key was used last, what is not yet written down included."""
        found = self._written_uses()
        for key_id, (count, last) in self._fresh.items():
            before = found.get(key_id, {"count": 0, "last": 0.0})
            found[key_id] = {"count": before["count"] + count, "last": max(last, before["last"])}
        return found

    def write_uses(self) -> None:
        """Once in a while: a file of its own, since it may be lost and the keys may not."""
        if not self._fresh:
            return
        with contextlib.suppress(OSError), self._locked():
            known = {key.id for key in self._by_hash.values()}
            kept = {key_id: use for key_id, use in self.uses().items() if key_id in known}
            self._replace(self.path.with_suffix(".uses"), json.dumps(kept))
            self._fresh.clear()

    def _written_uses(self) -> dict[str, dict[str, float]]:
        try:
            data = json.loads(self.path.with_suffix(".uses").read_bytes())
            return {key_id: {"count": int(use["count"]), "last": float(use["last"])} for key_id, use in data.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def described(self) -> list[dict[str, object]]:
        """All keys without their secrets, with their uses."""
        uses = self.uses()
        unused: dict[str, float | None] = {"count": 0, "last": None}
        return [
            {**key.public(), "uses": use["count"], "last_used": use["last"]}
            for key in self.all()
            for use in [uses.get(key.id, unused)]
        ]

    def find(self, secret: str) -> Key | None:
        """The key, whether it is still usable or not."""
        return self._by_hash.get(digest(secret))

    def all(self) -> list[Key]:
        return sorted(self._by_hash.values(), key=lambda key: key.created)

    def get(self, key_id: str) -> Key | None:
        return next((key for key in self._by_hash.values() if key.id == key_id), None)

    def refresh(self) -> bool:
        """Read the file again if it changed; true if it did. A missing file holds no keys."""
        try:
            stat = self.path.stat()
            seen = (stat.st_mtime_ns, stat.st_ino)
        except FileNotFoundError:
            seen = None
        except OSError as error:
            raise KeyFileError(f"{self.path}: cannot be read: {error.strerror}") from None
        if seen == self._seen:
            return False
        self._by_hash = {key.hash: key for key in self._read()} if seen else {}
        self._seen = seen
        return True

    def create(
        self,
        name: str,
        *,
        role: Role = "user",
        tier: str = "default",
        expires: float | None = None,
        models: tuple[str, ...] = (),
    ) -> tuple[Key, str]:
        """A new key, and its secret, which is never seen again."""
        key_id = secrets.token_hex(4)
        secret = f"{PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
        key = Key(key_id, name, digest(secret), role, tier, time.time(), expires, None, models)
        with self._changing() as keys:
            keys.append(key)
        return key, secret

    def revoke(self, key_id: str) -> Key:
        with self._changing() as keys:
            index = self._index(keys, key_id)
            keys[index] = replace(keys[index], revoked=keys[index].revoked or time.time())
            return keys[index]

    def rotate(self, key_id: str, overlap: float = 0.0) -> tuple[Key, str]:
        """A new secret for the same purpose; the old one ends now or after `overlap` seconds."""
        with self._changing() as keys:
            index = self._index(keys, key_id)
            old = keys[index]
            if not old.usable(time.time()):
                raise KeyFileError(f"key {key_id}: is revoked or expired; create a new one")
            new_id = secrets.token_hex(4)
            secret = f"{PREFIX}{new_id}_{secrets.token_urlsafe(32)}"
            new = replace(old, id=new_id, hash=digest(secret), created=time.time())
            now = time.time()
            keys[index] = replace(old, expires=now + overlap) if overlap > 0 else replace(old, revoked=now)
            keys.append(new)
            return new, secret

    @staticmethod
    def _index(keys: list[Key], key_id: str) -> int:
        for index, key in enumerate(keys):
            if key.id == key_id:
                return index
        raise KeyFileError(f"key {key_id}: does not exist; `keys list` shows the ids")

    def _read(self) -> list[Key]:
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            return [Key(**{**item, "models": tuple(item.get("models", ()))}) for item in data["keys"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise KeyFileError(
                f"{self.path}: is not a key file ({error}); restore it from the backup or remove it"
            ) from None

    def _hand_over(self, file: Path) -> None:
        """root may run the command line on files that belong to the service's user."""
        if os.geteuid() == 0:
            owner = self.path.parent.stat()
            os.chown(file, owner.st_uid, owner.st_gid)

    @contextmanager
    def _changing(self) -> Iterator[list[Key]]:
        """The keys under a lock that the command line and the gateway share; written back whole."""
        try:
            with self._locked():
                keys = self._read()
                yield keys
                self._replace(
                    self.path, json.dumps({"version": 1, "keys": [asdict(key) for key in keys]}, indent=1) + "\n"
                )
        except OSError as error:
            raise KeyFileError(f"{self.path}: cannot be written: {error.strerror}") from None
        self.refresh()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            self._hand_over(self.path.with_suffix(".lock"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _replace(self, path: Path, content: str) -> None:
        fresh = path.with_name(f"{path.name}.new")
        with os.fdopen(os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._hand_over(fresh)
        fresh.replace(path)
