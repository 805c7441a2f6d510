"""Dashboards by Grafana's HTTP API: a folder and what is in it, by uid; told apart from those of others by our tag."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TAG = "citadel-llm"
FOLDER_UID = "citadel-ai-infrastructure"
ANSWER = 20.0
# what Grafana adds to a dashboard when it keeps it
ADDED = ("id", "version")


class GrafanaError(Exception):
    """What was asked of Grafana and what it said, in one sentence; never the token."""


@dataclass(frozen=True)
class Grafana:
    url: str
    token: str = field(repr=False)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Its answer; None where there is no such thing."""
        call = urllib.request.Request(  # noqa: S310 - the address is the inventory's
            f"{self.url}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
            method=method,
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(call, timeout=ANSWER) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            if error.code == 404 and method in {"GET", "DELETE"}:
                return None
            raise GrafanaError(
                f"Grafana at {self.url} answered {error.code} to {method} {path}: {_reason(error)}"
            ) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise GrafanaError(
                f"Grafana at {self.url} gives no answer ({getattr(error, 'reason', None) or error})"
            ) from None

    def dashboard(self, uid: str) -> dict[str, Any] | None:
        found = self.ask("GET", f"/api/dashboards/uid/{urllib.parse.quote(uid)}")
        return found if found is None else dict(found)

    def keep(self, dashboard: Mapping[str, Any], folder: str) -> None:
        body = {"dashboard": {**dashboard, "id": None}, "folderUid": folder, "overwrite": True, "message": TAG}
        self.ask("POST", "/api/dashboards/db", body)

    def remove(self, uid: str) -> None:
        self.ask("DELETE", f"/api/dashboards/uid/{urllib.parse.quote(uid)}")

    def ours(self) -> list[str]:
        """The dashboards that have our tag, which others may use, and a uid as only ours have."""
        found = self.ask("GET", f"/api/search?type=dash-db&limit=5000&tag={TAG}") or []
        return sorted(one["uid"] for one in found if one["uid"].startswith("citadel-"))

    def folder(self, title: str) -> str:
        """Its uid; empty where there is none. One that people have made by that title is used as well."""
        found = self.ask("GET", "/api/folders?limit=1000") or []
        return next((str(one["uid"]) for one in found if one["title"] == title), "")


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(error.reason)


def bring_about(grafana: Grafana, title: str, dashboards: Sequence[Mapping[str, Any]], act: bool) -> list[str]:
    """Dashboards as wanted, none at all where none are given; what changed, for people. All of it or nothing."""
    folder = grafana.folder(title)
    before = {one["uid"]: grafana.dashboard(one["uid"]) for one in dashboards}
    foreign = [uid for uid, found in before.items() if found and TAG not in found["dashboard"].get("tags", [])]
    if foreign:
        raise GrafanaError(
            f"Grafana at {grafana.url} has dashboards of somebody else under our uid, without our tag {TAG}: "
            f"{', '.join(foreign)}; give them another uid"
        )
    differing = [one for one in dashboards if not same(one, before[one["uid"]], folder)]
    gone = [uid for uid in grafana.ours() if uid not in before]
    told = [
        *(f"{'changed' if before[one['uid']] else 'new'}: dashboard {one['title']}" for one in differing),
        *(f"removed: dashboard {uid}" for uid in gone),
    ]
    if act and told:
        _change(grafana, title, differing, gone, before)
    return told


def same(wanted: Mapping[str, Any], found: Mapping[str, Any] | None, folder: str) -> bool:
    if found is None or found["meta"].get("folderUid", "") != folder:
        return False
    return _bare(found["dashboard"]) == _bare(wanted)


def _bare(dashboard: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in dashboard.items() if key not in ADDED}


def _change(
    grafana: Grafana,
    title: str,
    differing: Sequence[Mapping[str, Any]],
    gone: Sequence[str],
    before: Mapping[str, dict[str, Any] | None],
) -> None:
    undo: list[Callable[[], None]] = []
    try:
        folder = grafana.folder(title)
        if differing and not folder:
            grafana.ask("POST", "/api/folders", {"uid": FOLDER_UID, "title": title})
            folder = FOLDER_UID
            undo.append(lambda: _drop_folder(grafana))
        for one in differing:
            undo.append(_restoring(grafana, one["uid"], before[one["uid"]]))
            grafana.keep(one, folder)
        for uid in gone:
            undo.append(_restoring(grafana, uid, grafana.dashboard(uid)))
            grafana.remove(uid)
        if not before:
            _drop_folder(grafana)
    except GrafanaError as error:
        for step in reversed(undo):
            try:
                step()
            except GrafanaError as again:
                raise GrafanaError(f"{error}; and this could not be put back: {again}") from None
        raise GrafanaError(f"{error}; everything is as it was") from None


def _restoring(grafana: Grafana, uid: str, found: Mapping[str, Any] | None) -> Callable[[], None]:
    if found is None:
        return lambda: grafana.remove(uid)
    return lambda: grafana.keep(found["dashboard"], found["meta"].get("folderUid", ""))


def _drop_folder(grafana: Grafana) -> None:
    """Ours, once nothing is in it; Grafana would remove the dashboards of others along with it."""
    if grafana.ask("GET", f"/api/folders/{FOLDER_UID}") is None:
        return
    if not grafana.ask("GET", f"/api/search?folderUIDs={FOLDER_UID}&limit=1"):
        grafana.ask("DELETE", f"/api/folders/{FOLDER_UID}")
