"""Verbs that build, change, question or remove an estate: the lab on this machine, or the real one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lab import preflight
from lab.__main__ import status as lab_status
from lab.settings import Lab, LabError
from tools import toolchain
from tools.phases import ROOT, Failure, Journal, say

ENVIRONMENTS = ("lab", "citadel")
GATEWAY_PORT = 8000
FOR_PEOPLE = re.compile(r"""\s*(?:msg: (?P<quote>['"]))?\| (?P<said>.*?)(?(quote)(?P=quote))$""")
# the documents' own check, to the letter: no model named, no key
QUESTION = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 24}


def chosen_environment() -> str:
    chosen = os.environ.get("ENV") or "lab"
    if chosen not in ENVIRONMENTS:
        raise Failure(
            f"ENV is {chosen!r}: say ENV=lab for the estate on this machine, or ENV=citadel for the real one."
        )
    return chosen


def only_for_the_lab(verb: str) -> None:
    if chosen_environment() != "lab":
        raise Failure(
            f"`make {verb}` builds and removes hosts, and only the lab's are ours to do that with: leave ENV away."
        )


def ask_before_changing(verb: str) -> None:
    """Nothing of the real estate changes because of a slip of the fingers."""
    if chosen_environment() == "lab" or os.environ.get("YES") == "1":
        return
    if not sys.stdin.isatty():
        raise Failure(
            f"`make {verb} ENV=citadel` changes the real estate and nobody is here to ask: say YES=1 as well."
        )
    if input(f"`make {verb}` changes the real estate (inventory/citadel). Go on? [yes/no] ").strip().lower() != "yes":
        raise Failure("Nothing was changed.")


@contextmanager
def hold(lab_environment: bool = True) -> Iterator[Lab | None]:
    """The lab for this verb alone; the real estate has a lock of its own, on its host."""
    if not lab_environment:
        yield None
        return
    try:
        lab = Lab.from_environment()
        with preflight.only_one(lab):
            yield lab
    except LabError as error:
        raise Failure(str(error)) from None


def playbook(journal: Journal, name: str, path: str, *options: str, show_messages: bool = False) -> None:
    journal.phase(
        name,
        [toolchain.program("ansible-playbook"), "-i", f"inventory/{chosen_environment()}", path, *options],
        toolchain.environment(),
        for_people if show_messages else None,
    )


def for_people(line: str) -> str | None:
    """Roles put a bar before the lines that they write for whoever deploys; a single line stands in quotes."""
    found = FOR_PEOPLE.match(line.rstrip())
    return found["said"] if found else None


def require_lab(lab: Lab | None = None) -> None:
    """Verbs that work with a lab say so when there is none; the real estate is always there."""
    if lab is None and chosen_environment() == "lab":
        try:
            lab = Lab.from_environment()
        except LabError as error:
            raise Failure(str(error)) from None
    if lab is not None and not lab.record.exists():
        raise Failure(f"There is no lab {lab.prefix!r} on this machine: `make demo` builds one.")


def gateway_address() -> str:
    """Where the gateway of this environment answers, as the inventory has it."""
    command = [
        toolchain.program("ansible"),
        "llm_servers[0]",
        "-i",
        f"inventory/{chosen_environment()}",
        "-o",
        "-m",
        "ansible.builtin.debug",
        "-a",
        "msg={{ ansible_host }}",
    ]
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **toolchain.environment(), "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
    )
    if done.returncode != 0 or "SUCCESS" not in done.stdout:
        raise Failure(
            f"inventory/{chosen_environment()} names no host in its group llm_servers: add the server that shall carry "
            "the models, with its ansible_host."
        )
    return str(json.loads(done.stdout.partition("=>")[2])["msg"])


def request(url: str, body: dict[str, Any] | None = None, timeout: float = 120) -> tuple[dict[str, str], Any]:
    data = json.dumps(body).encode() if body is not None else None
    key = os.environ.get("KEY")
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    call = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(call, timeout=timeout) as answer:
            return {name.lower(): value for name, value in answer.headers.items()}, json.load(answer)
    except urllib.error.HTTPError as error:
        hint = " Say KEY=<an API key> as well." if error.code == 401 and not key else ""
        raise Failure(f"{url} answered {error.code}: {error.read().decode(errors='replace')[:500]}{hint}") from None
    except (OSError, ValueError) as error:
        raise Failure(
            f"{url} gave no answer ({error}): is the gateway deployed and running? `make status` tells."
        ) from None


def ask(base: str, model: str | None = None) -> str:
    """One question through the gateway, and one line on what came back."""
    body = {**QUESTION, **({"model": model} if model else {})}
    headers, answer = request(f"{base}/v1/chat/completions", body)
    text = " ".join(answer["choices"][0]["message"]["content"].split())
    if not text:
        raise Failure(f"{answer['model']} answered with an empty text: it runs, but it does not work.")
    return f"{headers.get('x-citadel-model', answer['model'])}: “{text}”"


def demo() -> None:
    """The main job on this machine: hosts, deployment, and a question that a real model answers."""
    only_for_the_lab("demo")
    with hold() as lab:
        assert lab is not None  # noqa: S101 - only the lab gets here
        journal = Journal("demo")
        preflight.room(lab)
        toolchain.packages(journal)
        preflight.check(lab)
        toolchain.python_tools(journal)
        playbook(journal, "bring up the hosts", "molecule/default/create.yml")
        playbook(journal, "prepare the estate's other servers", "molecule/default/prepare.yml")
        playbook(journal, "deploy", "site.yml")
        base = f"http://{gateway_address()}:{GATEWAY_PORT}"
        say(f"  asked “{QUESTION['messages'][0]['content']}” at {base}/v1/chat/completions")  # type: ignore[index]
        say(f"    {ask(base)}")
        journal.finish()
        say("Next: `make smoke` asks every model, `make status` shows the estate, `make destroy` removes it.")


def on_the_estate(verb: str, phase: str, path: str, *options: str) -> None:
    """One playbook on the lab or the real estate, with what it says to people on the screen."""
    with hold(chosen_environment() == "lab") as lab:
        require_lab(lab)
        journal = Journal(verb)
        toolchain.python_tools(journal)
        playbook(journal, phase, path, *options, show_messages=True)
        journal.finish()


def said(**names: str) -> list[str]:
    """What was said on make's command line, as variables of Ansible."""
    given = {variable: os.environ[name] for variable, name in names.items() if os.environ.get(name)}
    return ["--extra-vars", json.dumps(given)] if given else []


def deploy() -> None:
    ask_before_changing("deploy")
    on_the_estate("deploy", "deploy", "site.yml", *said(release_force="FORCE"))


def plan() -> None:
    on_the_estate("plan", "compare", "playbooks/plan.yml", "--check")


def rollback() -> None:
    ask_before_changing("rollback")
    on_the_estate("rollback", "roll back", "playbooks/rollback.yml", *said(release_to="TO", release_force="FORCE"))


def releases() -> None:
    on_the_estate("releases", "list", "playbooks/releases.yml")


def smoke() -> None:
    """Every model that the gateway lists answers one question."""
    require_lab()
    toolchain.python_tools(Journal("smoke"))
    base = f"http://{gateway_address()}:{GATEWAY_PORT}"
    health = request(f"{base}/health")[1]
    say(f"{base} is {health['status']}")
    for model in request(f"{base}/v1/models")[1]["data"]:
        say(f"  {ask(base, model['id'])}")


def status() -> None:
    require_lab()
    toolchain.python_tools(Journal("status"))
    if chosen_environment() == "lab":
        say(lab_status(Lab.from_environment()))
    base = f"http://{gateway_address()}:{GATEWAY_PORT}"
    say(json.dumps(request(f"{base}/health", timeout=10)[1], indent=2))


def destroy() -> None:
    only_for_the_lab("destroy")
    with hold():
        done = subprocess.run(
            [sys.executable, "-m", "lab", "down"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise Failure(done.stderr.strip())
        say("the lab is gone" if done.stdout.strip() == "changed" else "there was no lab")


def capacity() -> None:
    """The plan's sum for a host that need not be there: HOST=cores=24,ram=128,nodes=2,isa=amx, or HOST=here."""
    toolchain.python_tools(Journal("capacity"))
    host = os.environ.get("HOST") or "cores=16,ram=128"
    if toolchain.run_python("-m", "citadel", "capacity", "--host", host).wait():
        raise Failure("The plan refuses; what it found and what would help stands above.")


def gateway() -> None:
    """The gateway alone on this machine, before simulated models; Ctrl-C ends it."""
    toolchain.python_tools(Journal("gateway"))
    served = toolchain.run_python("-m", "tests.gateway.alone")
    try:
        ended = served.wait()
    finally:
        served.terminate()
        served.wait()
    if ended:
        raise Failure(f"The gateway ended with status {ended}; its reason stands above.")
