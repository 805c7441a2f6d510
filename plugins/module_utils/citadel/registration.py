"""What this product puts on a metrics server that is there already: looked at, checked on a copy, put there, proven.

Ours are files that begin with our mark, dashboards that a list beside them names, and marked lines in files of others.
All of it is one step: a refusal, a check or a reload that fails leaves the server as it was, byte for byte.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from . import blocks
from .contract import JOBS
from .release.files import flush_folder

MARK = "# of citadel-llm"
OF_US = re.compile(r"\bof citadel-llm\b")  # an older release had a line before it
LIST = ".citadel-llm"  # in a folder that is ours, or where dashboards of ours are
MADE = f"{MARK}, which made this folder"
JOB = "citadel-llm"  # the scrape job that reads our files of targets
NAMED = re.compile(
    r"""^[ -]*(?P<key>alert|name|job_name):\s*["']?(?P<name>[^"'#\n]*?)["']?\s*(?:#.*)?$""", re.MULTILINE
)

PATIENCE = 60.0  # until Prometheus has forgotten targets whose file is gone
TAKEN = 20.0  # until a program has read its configuration again
PAUSE = 0.3
ANSWER = 10.0
LONGEST = 600  # characters of what a program complains of


class RegistrationError(Exception):
    """Why the server stays as it is, in one sentence."""


@dataclass(frozen=True)
class Program:
    """Prometheus or Alertmanager, as this server has it."""

    name: str
    config: Path
    unit: str
    check: tuple[str, ...]
    url: str

    @property
    def folder(self) -> Path:
        return self.config.parent

    @property
    def figures(self) -> str:
        return f"{self.name.lower()}_config_last_reload_success"


@dataclass(frozen=True)
class Wanted:
    """All that shall be there; without texts, nothing of ours."""

    prometheus: Program
    alertmanager: Program
    targets: Path
    rules: Path
    provider: Path
    dashboards: Path
    grafana: str  # its unit
    files: Mapping[Path, str] = field(default_factory=dict)
    edit: bool = False
    routing: Mapping[str, str] = field(
        default_factory=dict
    )  # entries of receivers, inhibit_rules and of the root's routes

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Wanted:
        prometheus, alertmanager, grafana = given["prometheus"], given["alertmanager"], given["grafana"]
        targets, rules = Path(given["targets_directory"]), Path(given["rules_directory"]) / "citadel-llm.yml"
        provider, dashboards = Path(grafana["provisioning"]) / "citadel-llm.yml", Path(grafana["dashboards_directory"])
        places = (
            program("Prometheus", prometheus, "promtool", "config"),
            program("Alertmanager", alertmanager, "amtool", "check-config"),
            *(targets, rules, provider, dashboards, grafana["unit"]),
        )
        if given["state"] == "absent":
            return cls(*places)
        files = {targets / f"citadel-{host}.yml": text for host, text in given["targets"].items()}
        files[rules] = given["rules"]
        # etc/grafana, two levels above the folder of providers
        if grafana["mode"] == "files" or (grafana["mode"] == "auto" and provider.parents[2].is_dir()):
            files[provider] = grafana["provider"]
            files |= {dashboards / name: text for name, text in grafana["dashboards"].items()}
        return cls(*places, files, bool(prometheus["edit"]), given["routing"])


def program(name: str, given: Mapping[str, Any], checker: str, check: str) -> Program:
    verbs = ("check", "config") if check == "config" else (check,)
    # a link is followed, for a rename would replace it
    return Program(
        name, Path(given["config"]).resolve(), given["unit"], (given[checker], *verbs), given["url"].rstrip("/")
    )


@dataclass(frozen=True)
class Change:
    path: Path
    before: bytes | None
    after: bytes | None

    @property
    def kind(self) -> str:
        return "new" if self.before is None else "removed" if self.after is None else "changed"


@dataclass
class Result:
    changes: list[Change] = field(default_factory=list)
    reloads: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    snippet: str = ""
    read: bool = True  # whether Prometheus reads our files of targets

    @property
    def changed(self) -> bool:
        return bool(self.changes or self.reloads)

    @property
    def told(self) -> list[str]:
        """For people."""
        kinds = ("new", "changed", "removed")
        found = {kind: [short(one.path) for one in self.changes if one.kind == kind] for kind in kinds}
        said = [f"{kind}: {', '.join(filter(None, paths))}" for kind, paths in found.items() if any(paths)]
        reloaded = [f"reloaded: {', '.join(self.reloads)}"] if self.reloads else []
        return [*said, *reloaded, *self.notes]

    @property
    def diff(self) -> list[dict[str, str]]:
        """Of files of others only our lines: the others may be secret."""
        return [
            {
                "before_header": str(one.path),
                "after_header": str(one.path),
                "before": shown(one.path, one.before),
                "after": shown(one.path, one.after),
            }
            for one in self.changes
        ]


def short(path: Path) -> str:
    return "" if path.name == LIST else f"{path.parent.name}/{path.name}"


def shown(path: Path, content: bytes | None) -> str:
    if content is None or path.name == LIST:
        return ""
    text = decoded(content)
    if path.suffix == ".json":
        return f"a dashboard of {text.count(chr(10))} lines\n"
    return text if is_ours(text) else blocks.ours(text)


def decoded(content: bytes) -> str:
    return content.decode(errors="surrogateescape")


def encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def content_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def text_of(path: Path) -> str:
    return decoded(content_of(path) or b"")


def is_ours(text: str) -> bool:
    """Our mark is among the comments that the file begins with."""
    for line in text.splitlines():
        if not line.startswith("#"):
            return False
        if OF_US.search(line):
            return True
    return False


def bring_about(wanted: Wanted, act: bool, patience: float = PATIENCE) -> Result:
    """Everything as wanted, or everything as it was and the reason. Without `act` it is only told."""
    theirs = {one.config: blockless(one) for one in (wanted.prometheus, wanted.alertmanager)}
    if wanted.files:
        refuse_missing(wanted)
        refuse_foreign(wanted, theirs[wanted.prometheus.config])
    result = Result()
    after = desired(wanted, theirs, result)
    result.changes = [
        Change(path, before, text) for path, text in after.items() if (before := content_of(path)) != text
    ]
    stale = [one for one in (wanted.prometheus, wanted.alertmanager) if reads_anew(wanted, one, result.changes)]
    result.reloads = [one.name for one in stale]
    if not result.changed:
        return result
    check_all(wanted, result.changes)
    if act:
        put(wanted, result, stale, patience)
    return result


def blockless(one: Program) -> str:
    try:
        return blocks.without(text_of(one.config))
    except blocks.BlockError as error:
        raise RegistrationError(f"{one.config}: {error}") from None


def refuse_missing(wanted: Wanted) -> None:
    needed = [wanted.prometheus, *([wanted.alertmanager] if wanted.routing else [])]
    for one in needed:
        if not one.config.is_file():
            raise RegistrationError(
                f"there is no {one.config}: name the configuration of {one.name} in monitoring_{one.name.lower()}"
            )


def refuse_foreign(wanted: Wanted, config: str) -> None:
    """What stands under our names and is not ours."""
    own = manifest(wanted.dashboards)
    for path in wanted.files:
        mine = path.name in own if path.parent == wanted.dashboards else is_ours(text_of(path))
        if path.exists() and not mine:
            raise RegistrationError(f"{path} is somebody else's, for it has no mark of citadel-llm: move it away")
    # the snippet that somebody pasted is one that reads our files
    taken = set(JOBS) if is_read(config, "files", wanted.prometheus, of_targets(wanted)) else {*JOBS, JOB}
    for name in named(config, "job_name"):
        if name in taken:
            raise RegistrationError(f"{wanted.prometheus.config} has a job {name} of somebody else's: rename it there")
    refuse_rules(wanted, config)


def refuse_rules(wanted: Wanted, config: str) -> None:
    """Two alerts of one name would be told twice, and silenced together."""
    text = wanted.files[wanted.rules]
    own = {(key, name) for key in ("alert", "name") for name in named(text, key)}
    for path in files_of_rules(config, wanted.prometheus):
        if path == wanted.rules:
            continue
        found = text_of(path)
        double = [(key, name) for key in ("alert", "name") for name in named(found, key) if (key, name) in own]
        if double:
            what = {"alert": "an alert", "name": "a group"}
            said = ", ".join(f"{what[key]} {name}" for key, name in double)
            raise RegistrationError(
                f"{path} has {said} of somebody else's, and so have our rules: rename it there, or switch the alert "
                "off in citadel_alerts"
            )


def named(text: str, key: str) -> list[str]:
    return [found["name"] for found in NAMED.finditer(text) if found["key"] == key]


def files_of_rules(config: str, prometheus: Program) -> Iterator[Path]:
    for pattern in blocks.listed(config, "rule_files"):
        whole = prometheus.folder / pattern
        with contextlib.suppress(ValueError, NotImplementedError):
            yield from sorted(Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))))


def of_targets(wanted: Wanted) -> Path:
    return wanted.targets / "citadel-.yml"


def is_read(config: str, key: str, prometheus: Program, path: Path) -> bool:
    patterns = [str(prometheus.folder / pattern) for pattern in blocks.listed(config, key)]
    return any(PurePath(path).match(pattern) for pattern in patterns)


def entries(wanted: Wanted, config: str) -> dict[str, str]:
    """What prometheus.yml lacks to read our files."""
    lacking = {}
    if not is_read(config, "files", wanted.prometheus, of_targets(wanted)):
        files = f"[{wanted.targets}/citadel-*.yml]"
        lacking["scrape_configs"] = f"- job_name: {JOB}\n  file_sd_configs:\n    - files: {files}\n"
    if not is_read(config, "rule_files", wanted.prometheus, wanted.rules):
        lacking["rule_files"] = f"- {wanted.rules.parent}/citadel-*.yml\n"
    return lacking


def desired(wanted: Wanted, theirs: Mapping[Path, str], result: Result) -> dict[Path, bytes | None]:
    """Every file that we have or shall have, in the order in which they are put there."""
    after: dict[Path, bytes | None] = dict.fromkeys(left_over(wanted))
    after |= folders(wanted)
    after |= {path: encoded(text) for path, text in wanted.files.items()}
    for one, wanting in ((wanted.prometheus, in_prometheus), (wanted.alertmanager, in_alertmanager)):
        if one.config.is_file():
            text = theirs[one.config]
            try:
                after[one.config] = encoded(wanting(wanted, text, result))
            except blocks.BlockError as error:
                raise RegistrationError(f"{one.config}: {error}") from None
    return after


def in_prometheus(wanted: Wanted, text: str, result: Result) -> str:
    if not wanted.files:
        result.read = False
        return text
    lacking = entries(wanted, text)
    if lacking and not wanted.edit:
        result.snippet = "".join(f"{key}:\n{indented(entry)}" for key, entry in lacking.items())
        result.read = "scrape_configs" not in lacking
        return text
    for key, entry in lacking.items():
        text = blocks.first_of(text, [key], entry)
    return text


def in_alertmanager(wanted: Wanted, text: str, result: Result) -> str:
    places = {"routes": ["route", "routes"], "receivers": ["receivers"], "inhibit_rules": ["inhibit_rules"]}
    for key, entry in wanted.routing.items():
        text = blocks.first_of(text, places[key], entry)
    return text


def indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


def left_over(wanted: Wanted) -> list[Path]:
    """Files of ours that are not wanted any more; targets first, which Prometheus has to forget before it reloads."""
    found = [*sorted(wanted.targets.glob("citadel-*.yml")), wanted.rules, wanted.provider]
    ours = [path for path in found if path.is_file() and is_ours(text_of(path))]
    ours += [wanted.dashboards / name for name in sorted(manifest(wanted.dashboards))]
    return [path for path in ours if path not in wanted.files and path.exists()]


def manifest(folder: Path) -> set[str]:
    """The files in this folder that a list there calls ours."""
    return {line for line in text_of(folder / LIST).splitlines() if line and not line.startswith("#")}


def folders(wanted: Wanted) -> dict[Path, bytes | None]:
    """The list of each folder that we make, or where dashboards of ours are."""
    lists: dict[Path, bytes | None] = {}
    used = {path.parent for path in wanted.files}
    for folder in [wanted.targets, wanted.rules.parent, wanted.provider.parent, wanted.dashboards]:
        names = sorted(path.name for path in wanted.files if path.parent == folder == wanted.dashboards)
        for place in (folder, *folder.parents):
            there = place.is_dir()
            made = not there or text_of(place / LIST).startswith(MADE)
            if (place / LIST).is_file() or not there or names:
                lines = [MADE if made else MARK, *(names if place == folder else [])]
                kept = folder in used and (made or names)
                text = encoded("".join(f"{line}\n" for line in lines)) if kept else None
                lists[place / LIST] = lists.get(place / LIST) or text
            if there and not made:
                break
    return {path: text for path, text in lists.items() if text is not None or path.exists()}


def reads_anew(wanted: Wanted, one: Program, changes: Sequence[Change]) -> bool:
    """Whether the program has to read its configuration again: it changes, or has changed and was never read."""
    own = {one.config, wanted.rules} if one is wanted.prometheus else {one.config}
    if any(change.path in own for change in changes):
        return True
    if one is wanted.alertmanager:
        looked_at = [one.config] if wanted.routing else []
    else:
        # a removal leaves its trace in the folder
        looked_at = [wanted.rules if wanted.files else wanted.rules.parent, *([one.config] if wanted.edit else [])]
    newest = max((path.stat().st_mtime for path in looked_at if path.exists()), default=0.0)
    read = last_reload(one) if newest else None
    return read is not None and read[1] < newest


def check_all(wanted: Wanted, changes: Sequence[Change]) -> None:
    """Each configuration as it would be without us and as it shall be, in a copy: who broke it is told apart."""
    files = {change.path: change.after for change in changes}
    if wanted.rules in wanted.files:
        check_rules(wanted)
    for one in (wanted.prometheus, wanted.alertmanager):
        beside = [path for path in [*files, wanted.rules] if path.is_relative_to(one.folder)]
        if not one.config.is_file() or (one is wanted.alertmanager and one.config not in files):
            continue
        bare: dict[Path, bytes | None] = {path: empty(wanted, path) for path in beside if path != one.config}
        config = encoded(blockless(one))
        if said := complaint(one, bare, config):
            raise RegistrationError(f"{one.config} was broken before we came, so nothing was changed: {said}")
        if said := complaint(one, files, files.get(one.config) or content_of(one.config) or b""):
            raise RegistrationError(f"{one.name} would not take it, so nothing was changed: {said}")


def empty(wanted: Wanted, path: Path) -> bytes | None:
    """A file in place of ours that says nothing, since one that is named in a configuration has to be there."""
    return b"groups: []\n" if path == wanted.rules else b"[]\n" if path.parent == wanted.targets else None


def check_rules(wanted: Wanted) -> None:
    with tempfile.TemporaryDirectory(prefix="citadel-") as aside:
        copy = Path(aside, wanted.rules.name)
        copy.write_text(wanted.files[wanted.rules])
        if said := refused([wanted.prometheus.check[0], "check", "rules", str(copy)]):
            raise RegistrationError(f"Prometheus would not take our rules, so nothing was changed: {said}")


def complaint(one: Program, files: Mapping[Path, bytes | None], config: bytes) -> str:
    """What the program says of its configuration in a copy of its folder, where these files are other than they are."""
    with tempfile.TemporaryDirectory(prefix="citadel-") as aside:
        copy = Path(aside, one.folder.name)
        named = config.replace(encoded(f"{one.folder}/"), encoded(f"{copy}/"))
        mirror(one.folder, copy, {**files, one.config: named})
        return refused([*one.check, str(copy / one.config.name)]).replace(str(copy), str(one.folder))


def mirror(folder: Path, copy: Path, files: Mapping[Path, bytes | None]) -> None:
    """Links to all that is there, which may be much, and these files as they shall be."""
    copy.mkdir()
    below = {path for path in files if path.is_relative_to(folder)}
    inner = {path.relative_to(folder).parts[0] for path in below if path.parent != folder}
    if folder.is_dir():
        for entry in folder.iterdir():
            if entry not in below and entry.name not in inner:
                (copy / entry.name).symlink_to(entry)
    for name in inner:
        mirror(folder / name, copy / name, files)
    for path in below:
        content = files[path]
        if path.parent == folder and content is not None:
            (copy / path.name).write_bytes(content)


def refused(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    except OSError as error:
        raise RegistrationError(
            f"{command[0]} is not there to check what we bring ({error.strerror}): install it, or say where it is"
        ) from None
    if done.returncode == 0:
        return ""
    said = " ".join((done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").split())
    return said if len(said) <= LONGEST else f"{said[:LONGEST]}…"


def put(wanted: Wanted, result: Result, stale: Sequence[Program], patience: float) -> None:
    """Put everything there and have it read; whatever goes wrong, put everything back."""
    undo: list[Callable[[], None]] = []
    reloaded: list[Program] = []
    try:
        gone = [change for change in result.changes if change.after is None and change.path.parent == wanted.targets]
        for change in gone:
            place(change, undo)
        if gone:
            result.notes += forgotten(wanted.prometheus, [host_of(change.path) for change in gone], patience)
        for change in result.changes:
            if change not in gone:
                place(change, undo)
        for one in stale:
            reloaded.append(one)
            result.notes += reload(one)
        if any(change.path == wanted.provider for change in result.changes):
            result.notes += restart(wanted.grafana)
    except (OSError, RegistrationError) as error:
        failed = put_back(undo, reloaded)
        raise RegistrationError(f"{error}; {failed or 'everything is as it was'}") from error


def host_of(path: Path) -> str:
    return path.stem.removeprefix("citadel-")


def place(change: Change, undo: list[Callable[[], None]]) -> None:
    """By rename, so that nobody reads half of a file; its owner and mode stay."""
    path = change.path
    if change.after is None:
        stat = path.stat()
        path.unlink()
        undo.append(lambda: write(path, change.before or b"", stat))
        if path.name == LIST and (change.before or b"").startswith(MADE.encode()) and not any(path.parent.iterdir()):
            mode = path.parent.stat().st_mode
            path.parent.rmdir()
            undo.append(lambda: path.parent.mkdir(mode & 0o777))
        return
    for folder in reversed([path.parent, *path.parent.parents]):
        if not folder.is_dir():
            folder.mkdir(0o755)
            undo.append(folder.rmdir)
    stat_before = path.stat() if path.exists() else None
    write(path, change.after, stat_before, new=True)
    if stat_before is None:
        undo.append(path.unlink)
    else:
        undo.append(lambda: write(path, change.before or b"", stat_before))


def write(path: Path, content: bytes, like: os.stat_result | None, new: bool = False) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    aside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        aside.chmod(like.st_mode & 0o7777 if like else 0o644)
        if like:
            shutil.chown(aside, like.st_uid, like.st_gid)
            if not new:
                os.utime(aside, ns=(like.st_atime_ns, like.st_mtime_ns))
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def put_back(undo: list[Callable[[], None]], reloaded: Sequence[Program]) -> str:
    """What could not be put back, if anything."""
    failed = []
    for step in reversed(undo):
        try:
            step()
        except OSError as error:
            failed.append(str(error))
    for one in reloaded:
        # one that is down reads its files when it comes up
        with contextlib.suppress(RegistrationError):
            systemctl("reload", one.unit)
    return f"and this could not be put back: {'; '.join(failed)}" if failed else ""


def systemctl(verb: str, unit: str) -> None:
    if said := refused(["systemctl", verb, unit]):
        raise RegistrationError(f"`systemctl {verb} {unit}` said: {said}")


def restart(grafana: str) -> list[str]:
    """It reads at its start alone which folders have dashboards. Where it is no unit, somebody else restarts it."""
    try:
        systemctl("try-restart", grafana)
    except RegistrationError as error:
        return [f"{error}: Grafana shows the dashboards when it has been restarted"]
    return []


def reload(one: Program, patience: float = TAKEN) -> list[str]:
    """systemctl only says that it asked; the program's own figures say whether it took what it read."""
    before = last_reload(one)
    systemctl("reload", one.unit)
    if before is None:
        return [f"{one.name} at {one.url} cannot be asked whether it took it"]
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        now = last_reload(one)
        if now and now[0] and now[1] != before[1]:
            return []
        if now and before[0] and not now[0]:
            raise RegistrationError(f"{one.name} did not take what it read: `journalctl -u {one.unit}` tells why")
        time.sleep(PAUSE)
    raise RegistrationError(f"{one.name} has not read its configuration {patience:.0f} s after it was asked to")


def last_reload(one: Program) -> tuple[bool, float] | None:
    """Whether the last one succeeded, and when one did last; None where nobody answers."""
    try:
        figures = dict(
            line.rsplit(" ", 1) for line in get(f"{one.url}/metrics").splitlines() if one.figures in line[:60]
        )
        return figures[f"{one.figures}ful"] == "1", float(figures[f"{one.figures}_timestamp_seconds"])
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        return None


def forgotten(prometheus: Program, hosts: Collection[str], patience: float) -> list[str]:
    """Targets whose file is gone are dropped before anything reloads: Prometheus 2.42 keeps them for ever otherwise."""
    deadline = time.monotonic() + patience
    while True:
        try:
            active = json.loads(get(f"{prometheus.url}/api/v1/targets?state=active"))["data"]["activeTargets"]
            left = sorted({one["labels"].get("citadel_host", "") for one in active} & set(hosts))
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
            return [f"Prometheus at {prometheus.url} cannot be asked whether it has forgotten {', '.join(hosts)}"]
        if not left:
            return []
        if time.monotonic() > deadline:
            return [f"Prometheus has not forgotten {', '.join(left)} after {patience:.0f} s: restart it once"]
        time.sleep(PAUSE)


def get(url: str) -> str:
    # the server itself is asked directly, whatever proxy the environment names
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=ANSWER) as answer:
        return str(answer.read().decode(errors="replace"))


def failures(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the modules could not do; one that was not asked did nothing wrong."""
    return [
        f"it stays as it was: {str(one.get('msg') or 'no reason was given').strip()}"
        for one in answers
        if "told" not in one and not one.get("skipped")
    ]


def sentences(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """For people: what changed, what went wrong, and what they have to do themselves."""
    said = [line for one in answers for line in one.get("told", [])]
    said += [f"{line}; mend that and say `make register`" for line in failures(answers)]
    for snippet in [one["snippet"] for one in answers if one.get("snippet")]:
        said.append("Prometheus does not read our files yet: put this into its configuration and reload it, or say")
        said.append("`monitoring_edit_prometheus: true` in the inventory")
        said += [f"  {line}" for line in snippet.splitlines()]
    return said or ["nothing has to be changed"]
