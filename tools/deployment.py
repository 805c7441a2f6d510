"""Verbs that build, change, question or remove an estate: the lab on this machine, or the real one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import preflight
from lab.__main__ import status as lab_status
from lab.settings import Lab, LabError
from tools import toolchain
from tools.phases import ROOT, Failure, Journal, say

INVENTORIES = ROOT / "inventory"
FLAGS = ("FORCE", "DIRTY")
TOLD = re.compile(r"^(\S+) \| SUCCESS => (\{.*?^\})$", re.MULTILINE | re.DOTALL)
FOR_PEOPLE = re.compile(r"""\s*(?:msg: (?P<quote>['"]))?\| (?P<said>.*?)(?(quote)(?P=quote))$""")
# the documents' own check, to the letter: no model named, no key
QUESTION = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 24}


def chosen_inventory(otherwise: str = "lab") -> Path:
    """ENV is the name of a folder below inventory/, or the path of one anywhere."""
    chosen = os.environ.get("ENV") or otherwise
    for place in (INVENTORIES / chosen, Path(chosen).expanduser()):
        if place.exists():
            return place.resolve()
    known = ", ".join(sorted(place.name for place in INVENTORIES.iterdir() if place.is_dir()))
    raise Failure(
        f"ENV is {chosen!r}: there is no such inventory. Say the name of one below inventory/ ({known}), or the path "
        "of your own."
    )


def shown(inventory: Path) -> str:
    """Short where it lies in this checkout."""
    return str(inventory.relative_to(ROOT)) if inventory.is_relative_to(ROOT) else str(inventory)


def is_lab(inventory: Path) -> bool:
    """Hosts of the lab are ours to build, change and remove."""
    return inventory == (INVENTORIES / "lab").resolve()


def only_for_the_lab(verb: str) -> None:
    if not is_lab(chosen_inventory()):
        raise Failure(
            f"`make {verb}` builds and removes hosts, and only the lab's are ours to do that with: leave ENV away."
        )


def ask_before_changing(verb: str) -> None:
    """Nothing of a real estate changes because of a slip of the fingers."""
    inventory = chosen_inventory()
    if is_lab(inventory) or os.environ.get("YES") == "1":
        return
    if not sys.stdin.isatty():
        raise Failure(
            f"`make {verb}` changes the real estate of {shown(inventory)} and nobody is here to ask: say YES=1 as well."
        )
    if input(f"`make {verb}` changes the real estate ({shown(inventory)}). Go on? [yes/no] ").strip().lower() != "yes":
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
        [toolchain.program("ansible-playbook"), "-i", str(chosen_inventory()), path, *options],
        toolchain.environment(),
        for_people if show_messages else None,
    )


def for_people(line: str) -> str | None:
    """Roles put a bar before the lines that they write for whoever deploys; a single line stands in quotes."""
    found = FOR_PEOPLE.match(line.rstrip())
    return found["said"] if found else None


def require_lab(lab: Lab | None = None) -> None:
    """Verbs that work with a lab say so when there is none; the real estate is always there."""
    if lab is None and is_lab(chosen_inventory()):
        try:
            lab = Lab.from_environment()
        except LabError as error:
            raise Failure(str(error)) from None
    if lab is not None and not lab.record.exists():
        raise Failure(f"There is no lab {lab.prefix!r} on this machine: `make demo` builds one.")


def asked(expression: str, inventory: Path) -> dict[str, Any]:
    """What an expression of Ansible is for each LLM server of the inventory. No server is asked for it."""
    command: list[str | Path] = [toolchain.program("ansible"), "llm_servers", "-i", inventory]
    command += ["-m", "ansible.builtin.debug"]
    done = subprocess.run(
        [*command, "-a", f"msg={{{{ {expression} | to_json }}}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **toolchain.environment(), "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
    )
    # a text, since Ansible would sort the keys of a mapping
    found = {name: json.loads(json.loads(told)["msg"]) for name, told in sorted(TOLD.findall(done.stdout))}
    if done.returncode != 0:
        reason = done.stderr.strip() or done.stdout.strip()
        raise Failure(f"{shown(inventory)} cannot be used: {reason[-1000:]}")
    if not found:
        raise Failure(
            f"{shown(inventory)} has no host in its group llm_servers: add the server that shall carry the models, "
            "with its ansible_host."
        )
    return found


def only_named(found: dict[str, Any], inventory: Path) -> dict[str, Any]:
    """Those of the LLM servers that HOST names: one, or several with commas; all of them when it is not said."""
    named = [name for name in (os.environ.get("HOST") or "").split(",") if name]
    for name in named:
        if name not in found:
            raise Failure(f"HOST is {name!r}: {shown(inventory)} has no such LLM server; it has {', '.join(found)}.")
    return {name: found[name] for name in named} if named else found


def contracts() -> dict[str, Any]:
    """What each LLM server offers, as the inventory has it."""
    inventory = chosen_inventory()
    return only_named(asked("citadel_contract", inventory), inventory)


def limited() -> list[str]:
    """HOST as a limit of Ansible: the LLM servers that it names, and everybody who is none."""
    if not os.environ.get("HOST"):
        return []
    inventory = chosen_inventory()
    everybody = asked("groups['all']", inventory)
    others = [name for name in next(iter(everybody.values())) if name not in everybody]
    return ["--limit", ",".join([*only_named(everybody, inventory), *others, "localhost"])]


def base_of(contract: dict[str, Any]) -> str:
    return str(contract["url"])


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


def ask(base: str, model: str | None = None, endpoints: Sequence[str] = ("chat",)) -> str:
    """One question through the gateway, and one line on what came back."""
    if "chat" not in endpoints:
        headers, answer = request(f"{base}/v1/embeddings", {"model": model, "input": "Who are you?"})
        vector = answer["data"][0]["embedding"]
        if not any(vector):
            raise Failure(f"{answer['model']} answered with an empty vector: it runs, but it does not work.")
        return f"{headers.get('x-citadel-model', answer['model'])}: a vector of {len(vector)}"
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
        base = base_of(next(iter(contracts().values())))
        say(f"  asked “{QUESTION['messages'][0]['content']}” at {base}/v1/chat/completions")  # type: ignore[index]
        say(f"    {ask(base)}")
        journal.finish()
        say("Next: `make smoke` asks every model, `make status` shows the estate, `make destroy` removes it.")


def on_the_estate(verb: str, phase: str, path: str, *options: str) -> None:
    """One playbook on the lab or the real estate, with what it says to people on the screen."""
    with hold(is_lab(chosen_inventory())) as lab:
        require_lab(lab)
        journal = Journal(verb)
        toolchain.python_tools(journal)
        playbook(journal, phase, path, *limited(), *options, show_messages=True)
        journal.finish()


def said(**names: str) -> list[str]:
    """What was said on make's command line, as variables of Ansible; a flag is set by anything but 0."""
    words = {variable: os.environ.get(name, "") for variable, name in names.items()}
    given = {
        variable: True if names[variable] in FLAGS else word
        for variable, word in words.items()
        if word and not (names[variable] in FLAGS and word == "0")
    }
    return ["--extra-vars", json.dumps(given)] if given else []


def deploy() -> None:
    ask_before_changing("deploy")
    on_the_estate("deploy", "deploy", "site.yml", *said(release_force="FORCE", release_allow_dirty="DIRTY"))


def plan() -> None:
    on_the_estate("plan", "compare", "playbooks/plan.yml", "--check")


def rollback() -> None:
    ask_before_changing("rollback")
    on_the_estate("rollback", "roll back", "playbooks/rollback.yml", *said(release_to="TO", release_force="FORCE"))


def releases() -> None:
    on_the_estate("releases", "list", "playbooks/releases.yml")


def audit() -> None:
    on_the_estate("audit", "look", "playbooks/audit.yml")


def validate() -> None:
    on_the_estate("validate", "look", "playbooks/validate.yml", "--check")


def drift() -> None:
    on_the_estate("drift", "compare", "playbooks/drift.yml")


def untune() -> None:
    ask_before_changing("untune")
    on_the_estate("untune", "put back", "playbooks/untune.yml")


def register() -> None:
    ask_before_changing("register")
    on_the_estate("register", "register", "playbooks/register.yml")


def unregister() -> None:
    ask_before_changing("unregister")
    on_the_estate("unregister", "unregister", "playbooks/unregister.yml")


def variants() -> None:
    """What there is; with MEASURE=model what it costs in accuracy, which takes minutes of all cores that are free."""
    if os.environ.get("MEASURE"):
        ask_before_changing("variants")
        on_the_estate("variants", "measure", "playbooks/variants.yml", *said(models_measure="MEASURE"))
    else:
        on_the_estate("variants", "look", "playbooks/variants.yml", "--check")


def each_server(what: Callable[[str], None]) -> None:
    """Do something with every gateway. One that fails is told at once, and the others are asked all the same."""
    failed = []
    for name, contract in contracts().items():
        try:
            what(base_of(contract))
        except Failure as failure:
            say(f"  {name}: {failure}")
            failed.append(name)
    if failed:
        raise Failure(f"{', '.join(failed)} did not answer as it should; the reason stands above.")


def smoke() -> None:
    """Every model that a gateway lists answers one question."""
    require_lab()
    toolchain.python_tools(Journal("smoke"))

    def ask_all(base: str) -> None:
        say(f"{base} is {request(f'{base}/health')[1]['status']}")
        for model in request(f"{base}/v1/models")[1]["data"]:
            say(f"  {ask(base, model['id'], model['endpoints'])}")

    each_server(ask_all)


def status() -> None:
    require_lab()
    toolchain.python_tools(Journal("status"))
    if is_lab(chosen_inventory()):
        say(lab_status(Lab.from_environment()))

    def show(base: str) -> None:
        say(f"{base}\n{json.dumps(request(f'{base}/health', timeout=10)[1], indent=2)}")

    each_server(show)


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
    """The plan's sum for hosts that need not be there: HOST=cores=24,ram=128,nodes=2,isa=amx, or HOST=here. What the
    models are and how they are planned is read from the inventory, for each of its LLM servers."""
    toolchain.python_tools(Journal("capacity"))
    inventory = chosen_inventory("citadel")
    host = os.environ.get("HOST") or "cores=16,ram=128"
    found = asked("{'stanzas': citadel_stanzas, 'settings': models_settings, 'source': models_source}", inventory)
    refused = []
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        for name, planned in found.items():
            say(f"{name} of {shown(inventory)}, were it {host}:")
            file.seek(0)
            file.truncate()
            json.dump(planned, file)
            file.flush()
            if toolchain.run_python("-m", "citadel", "capacity", "--host", host, "--planned", file.name).wait():
                refused.append(name)
    if refused:
        raise Failure(f"The plan refuses {', '.join(refused)}; what it found and what would help stands above.")


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
