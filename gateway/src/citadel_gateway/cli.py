"""`citadel-gateway`: serve, check-config, keys."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from citadel_gateway import __version__
from citadel_gateway.config import Config, ConfigError, load
from citadel_gateway.keys import ROLES, Key, KeyFileError, KeyStore
from citadel_gateway.logs import AuditLog
from citadel_gateway.sockets import ListenError, parse_bind


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (ConfigError, KeyFileError, ListenError) as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="citadel-gateway", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    serve = verbs.add_parser("serve", help="run the gateway")
    serve.add_argument("--config", type=Path, required=True, metavar="FILE")
    serve.add_argument(
        "--bind",
        action="append",
        default=[],
        metavar="[NAME=]ADDR:PORT",
        help="listen here and nowhere else, whatever systemd and the file say; NAME is api, management, health or "
        "management_socket",
    )
    serve.set_defaults(run=_serve)

    check = verbs.add_parser("check-config", help="tell whether a configuration can be used")
    check.add_argument("file", type=Path, metavar="FILE")
    check.set_defaults(run=_check)

    keys = verbs.add_parser("keys", help="create, list, revoke and rotate API keys")
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    where = argparse.ArgumentParser(add_help=False)
    place = where.add_mutually_exclusive_group(required=True)
    place.add_argument("--config", type=Path, metavar="FILE", help="the gateway's; it names the key file")
    place.add_argument("--file", type=Path, metavar="FILE", help="the key file itself")

    create = actions.add_parser("create", parents=[where], help="make a key; its secret is printed once")
    create.add_argument("name", help="whom it is for")
    create.add_argument("--role", choices=ROLES, default="user")
    create.add_argument("--tier", default="default")
    create.add_argument("--days", type=float, help="valid for so long (default: for ever)")
    create.add_argument("--model", action="append", default=[], help="may be repeated (default: all models)")
    create.set_defaults(run=_create)

    shown = actions.add_parser("list", parents=[where], help="show all keys, without secrets")
    shown.add_argument("--json", action="store_true")
    shown.set_defaults(run=_list)

    revoke = actions.add_parser("revoke", parents=[where], help="end a key and what runs with it")
    revoke.add_argument("id")
    revoke.set_defaults(run=_revoke)

    rotate = actions.add_parser("rotate", parents=[where], help="a new secret in place of the old one")
    rotate.add_argument("id")
    rotate.add_argument("--overlap", type=float, default=0.0, metavar="SECONDS", help="the old one works so long")
    rotate.set_defaults(run=_rotate)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    bind = parse_bind(arguments.bind)
    config = load(arguments.config)
    from citadel_gateway.server import serve  # noqa: PLC0415 - the other verbs need none of it

    serve(config, arguments.config, bind)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    config = load(arguments.file)
    store = KeyStore(Path(config.auth.keys_file))
    if config.server.tls is not None:
        from citadel_gateway import tls  # noqa: PLC0415 - the other verbs need none of it

        tls.check(config.server.tls)
    _warn_of_tiers(config, store)
    replicas = sum(len(model.replicas) for model in config.models.values())
    print(f"{arguments.file}: usable; profile {config.profile}, {len(config.models)} models, {replicas} replicas")
    return 0


def _warn_of_tiers(config: Config, store: KeyStore) -> None:
    for key in store.all():
        if key.tier not in config.limits.tiers and key.usable(time.time()):
            print(
                f"key {key.id} ({key.name}): tier {key.tier!r} is not in limits.tiers; it gets 'default'",
                file=sys.stderr,
            )


def _audited(arguments: argparse.Namespace, config: Config | None, event: str, change: Callable[[], Key]) -> Key:
    """Change a key, and leave a line in the gateway's audit log whether it worked or not."""
    audit = _audit_log(config)
    actor = f"cli:{os.environ.get('SUDO_USER') or getpass.getuser()}"
    try:
        key = change()
    except KeyFileError as error:
        audit.event(event, outcome="failed", actor=actor, key=getattr(arguments, "id", None), error=str(error))
        raise
    else:
        audit.event(event, actor=actor, key=key.id, name=key.name, role=key.role, tier=key.tier)
        return key
    finally:
        audit.close()


def _audit_log(config: Config | None) -> AuditLog:
    path = Path(config.logs.audit) if config is not None and config.logs.audit != "-" else Path("/dev/null")
    if os.geteuid() == 0 and path.parent.is_dir() and not path.exists():
        # made by root it would shut out the gateway
        owner = path.parent.stat()
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o640))
        os.chown(path, owner.st_uid, owner.st_gid)
    return AuditLog(str(path), lambda _: None)


def _store(arguments: argparse.Namespace) -> tuple[KeyStore, Config | None]:
    if arguments.file is not None:
        return KeyStore(arguments.file), None
    config = load(arguments.config)
    return KeyStore(Path(config.auth.keys_file)), config


def _create(arguments: argparse.Namespace) -> int:
    store, config = _store(arguments)
    secret = ""

    def create() -> Key:
        nonlocal secret
        if config is not None and arguments.tier not in config.limits.tiers:
            raise KeyFileError(f"--tier {arguments.tier}: there are only {', '.join(config.limits.tiers)}")
        expires = time.time() + arguments.days * 86400 if arguments.days else None
        key, secret = store.create(
            arguments.name,
            role=arguments.role,
            tier=arguments.tier,
            expires=expires,
            models=tuple(arguments.model),
        )
        return key

    key = _audited(arguments, config, "key_create", create)
    print(
        f"key {key.id} for {key.name}, role {key.role}, tier {key.tier}; it is shown only now:",
        file=sys.stderr,
    )
    print(secret)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    store, _ = _store(arguments)
    if arguments.json:
        print(json.dumps(store.described(), indent=1))
        return 0
    uses = store.uses()
    for key in store.all():
        use = uses.get(key.id)
        used = f"used {use['count']:.0f} times, last {_day(use['last'])}" if use else "never used"
        print(f"{key.id}  {key.role:6}  {key.tier:10}  {_state(key):26}  {used:40}  {key.name}")
    return 0


def _state(key: Key) -> str:
    if key.revoked is not None:
        return f"revoked {_day(key.revoked)}"
    if key.expires is None:
        return f"since {_day(key.created)}"
    return f"{'until' if key.usable(time.time()) else 'expired'} {_day(key.expires)}"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _revoke(arguments: argparse.Namespace) -> int:
    store, config = _store(arguments)
    key = _audited(arguments, config, "key_revoke", lambda: store.revoke(arguments.id))
    print(f"key {key.id} ({key.name}) is revoked")
    return 0


def _rotate(arguments: argparse.Namespace) -> int:
    store, config = _store(arguments)
    secret = ""

    def rotate() -> Key:
        nonlocal secret
        key, secret = store.rotate(arguments.id, arguments.overlap)
        return key

    key = _audited(arguments, config, "key_rotate", rotate)
    print(
        f"key {key.id} for {key.name} takes the place of {arguments.id}; it is shown only now:",
        file=sys.stderr,
    )
    print(secret)
    return 0
