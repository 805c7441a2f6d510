"""`make keys`: the API keys of a gateway on its host, without a path that anybody has to know."""

from __future__ import annotations

import json
import os

from tools import deployment, toolchain
from tools.phases import Failure, Journal

# word of make -> action of `citadel-gateway keys`, and what else may be said with it
ACTIONS: dict[str, tuple[str, dict[str, str]]] = {
    "CREATE": ("create", {"ROLE": "--role", "TIER": "--tier", "DAYS": "--days", "MODELS": "--model"}),
    "ROTATE": ("rotate", {"OVERLAP": "--overlap"}),
    "REVOKE": ("revoke", {}),
}


def arguments() -> list[str]:
    """What was said on make's command line, in the words of `citadel-gateway keys`."""
    said = [word for word in ACTIONS if os.environ.get(word)]
    if len(said) > 1:
        raise Failure(f"{' and '.join(said)} cannot be done at once: say one of them.")
    action, options = ACTIONS[said[0]] if said else ("list", {})
    found = [action]
    for word, (_, others) in ACTIONS.items():
        for name, option in others.items():
            value = os.environ.get(name)
            if value and name not in options:
                raise Failure(f"{name}={value} is said with {word} only: `make keys {word}=… {name}={value}`.")
            if value:
                found += [f"{option}={part}" for part in (value.split(",") if name == "MODELS" else [value])]
    return [*found, "--", os.environ[said[0]]] if said else found


def keys() -> None:
    wanted = arguments()
    if wanted[0] != "list":
        deployment.ask_before_changing("keys")
        deployment.require_lab()
        toolchain.python_tools(Journal("keys"))
        servers = deployment.contracts()
        if len(servers) > 1:
            raise Failure(f"Each LLM server has keys of its own: say HOST=, which is one of {', '.join(servers)}.")
    told = json.dumps({"gateway_keys": wanted})
    deployment.on_the_estate("keys", f"{wanted[0]} keys", "playbooks/keys.yml", "--extra-vars", told)
