"""Dashboards by Grafana's HTTP API, against a small fake of its version 12."""

from __future__ import annotations

import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from citadel.grafana import FOLDER_UID, Grafana, GrafanaError, bring_about

TOKEN = "glsa_of_the_tests"
TITLE = "AI Infrastructure"


class Kept:
    """What it has, and how many writes it takes before it has had enough."""

    def __init__(self) -> None:
        self.folders: dict[str, str] = {}
        self.dashboards: dict[str, tuple[dict[str, Any], str]] = {}
        self.writes = 0
        self.enough = 1000


class Fake(BaseHTTPRequestHandler):
    kept: Kept

    def answer(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
        status, told = self.told(url.path, query, body)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(told).encode())

    do_GET = do_POST = do_DELETE = answer

    def told(self, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        kept, uid = self.kept, path.rpartition("/")[2]
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return 401, {"message": "Unauthorized"}
        if self.command != "GET":
            kept.writes += 1
            if kept.writes > kept.enough:
                return 500, {"message": "database is locked"}
        missing = 404, {"message": "not found"}
        match self.command, path.removesuffix(uid):
            case "GET", "/api/" if uid == "folders":
                return 200, [{"uid": one, "title": title} for one, title in kept.folders.items()]
            case "GET", "/api/" if uid == "search":
                return 200, [{"uid": one} for one, found in kept.dashboards.items() if self.fits(found, query)]
            case "GET", "/api/folders/":
                return (200, {"uid": uid}) if uid in kept.folders else missing
            case "DELETE", "/api/folders/":
                kept.folders.pop(uid)
                kept.dashboards = {one: found for one, found in kept.dashboards.items() if found[1] != uid}
                return 200, {}
            case "POST", "/api/" if uid == "folders":
                kept.folders[body["uid"]] = body["title"]
                return 200, body
            case "POST", "/api/dashboards/":
                dashboard = body["dashboard"]
                assert dashboard.pop("id") is None
                kept.dashboards[dashboard["uid"]] = {**dashboard, "id": 7, "version": kept.writes}, body["folderUid"]
                return 200, {"status": "success"}
            case "GET", "/api/dashboards/uid/" if uid in kept.dashboards:
                dashboard, folder = kept.dashboards[uid]
                return 200, {"dashboard": dashboard, "meta": {"folderUid": folder}}
            case "DELETE", "/api/dashboards/uid/" if uid in kept.dashboards:
                kept.dashboards.pop(uid)
                return 200, {}
        return missing

    @staticmethod
    def fits(found: tuple[dict[str, Any], str], query: dict[str, list[str]]) -> bool:
        dashboard, folder = found
        return set(query.get("tag", [])) <= set(dashboard.get("tags", [])) and folder in query.get(
            "folderUIDs", [folder]
        )

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def grafana() -> Iterator[Grafana]:
    Fake.kept = Kept()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Grafana(f"http://127.0.0.1:{server.server_port}", TOKEN)
    server.shutdown()
    thread.join()
    server.server_close()


def of(uid: str, **more: Any) -> dict[str, Any]:
    return {"uid": f"citadel-{uid}", "title": uid, "tags": ["citadel-llm"], "panels": [], **more}


def has() -> dict[str, Any]:
    """Its dashboards as people see them."""
    own = {"id", "version"}
    return {
        uid: ({key: value for key, value in one.items() if key not in own}, folder)
        for uid, (one, folder) in Fake.kept.dashboards.items()
    }


def test_all_of_them_once_and_away_again(grafana: Grafana) -> None:
    wanted = [of("one"), of("two")]
    assert bring_about(grafana, TITLE, wanted, act=False) and not has() and not Fake.kept.writes
    assert bring_about(grafana, TITLE, wanted, act=True) == ["new: dashboard one", "new: dashboard two"]
    assert Fake.kept.folders == {FOLDER_UID: TITLE}
    writes = Fake.kept.writes
    assert bring_about(grafana, TITLE, wanted, act=True) == [] and Fake.kept.writes == writes
    changed = [of("one", panels=[1])]
    assert bring_about(grafana, TITLE, changed, act=True) == [
        "changed: dashboard one",
        "removed: dashboard citadel-two",
    ]
    assert has() == {"citadel-one": (changed[0], FOLDER_UID)}
    bring_about(grafana, TITLE, [], act=True)
    assert not has() and not Fake.kept.folders


def test_a_folder_that_people_have_made_is_used_and_stays(grafana: Grafana) -> None:
    Fake.kept.folders["theirs"] = TITLE
    Fake.kept.dashboards["x"] = ({"uid": "x", "title": "x", "tags": ["citadel-llm"]}, "theirs")
    bring_about(grafana, TITLE, [of("one")], act=True)
    assert has()["citadel-one"][1] == "theirs"
    bring_about(grafana, TITLE, [], act=True)
    assert list(has()) == ["x"] and Fake.kept.folders == {"theirs": TITLE}


def test_our_folder_stays_where_somebody_put_something_into_it(grafana: Grafana) -> None:
    bring_about(grafana, TITLE, [of("one")], act=True)
    Fake.kept.dashboards["x"] = ({"uid": "x", "title": "x"}, FOLDER_UID)
    bring_about(grafana, TITLE, [], act=True)
    assert list(has()) == ["x"] and FOLDER_UID in Fake.kept.folders


def test_a_dashboard_of_somebody_else_under_our_uid_is_refused(grafana: Grafana) -> None:
    Fake.kept.dashboards["citadel-one"] = ({"uid": "citadel-one", "title": "theirs"}, "")
    with pytest.raises(GrafanaError, match="without our tag citadel-llm: citadel-one"):
        bring_about(grafana, TITLE, [of("one"), of("two")], act=True)
    assert not Fake.kept.writes


@pytest.mark.parametrize("enough", range(1, 4))
def test_what_fails_in_the_middle_is_put_back(grafana: Grafana, enough: int) -> None:
    bring_about(grafana, TITLE, [of("one"), of("gone")], act=True)
    before, Fake.kept.enough = has(), Fake.kept.writes + enough

    real = Fake.told

    def told(self: Fake, *given: Any) -> tuple[int, Any]:
        status, answer = real(self, *given)
        if status == 500:  # once, and it takes what puts things back
            self.kept.enough = 1000
        return status, answer

    Fake.told = told  # type: ignore[assignment,method-assign]
    try:
        with pytest.raises(GrafanaError, match=r"answered 500 to .*: database is locked; everything is as it was"):
            bring_about(grafana, TITLE, [of("one", panels=[1]), of("two"), of("three"), of("four")], act=True)
    finally:
        Fake.told = real  # type: ignore[method-assign]
    assert has() == before


def test_a_token_that_is_none_is_told_without_it(grafana: Grafana) -> None:
    other = Grafana(grafana.url, "not-this-one")
    with pytest.raises(GrafanaError) as refused:
        bring_about(other, TITLE, [of("one")], act=True)
    assert "answered 401" in str(refused.value) and "not-this-one" not in str(refused.value) + repr(other)


def test_nobody_there() -> None:
    with pytest.raises(GrafanaError, match="gives no answer"):
        bring_about(Grafana("http://127.0.0.1:9", TOKEN), TITLE, [], act=True)
