"""`python3 -m tools VERB`: what stands behind `make VERB`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable

from tools import benchmark, dashboards, deployment, keys, locks, mutation, programs, testing
from tools.phases import Failure, say

VERBS: dict[str, Callable[[], None]] = {
    "demo": deployment.demo,
    "plan": deployment.plan,
    "deploy": deployment.deploy,
    "rollback": deployment.rollback,
    "releases": deployment.releases,
    "keys": keys.keys,
    "smoke": deployment.smoke,
    "status": deployment.status,
    "validate": deployment.validate,
    "drift": deployment.drift,
    "untune": deployment.untune,
    "register": deployment.register,
    "unregister": deployment.unregister,
    "destroy": deployment.destroy,
    "check": testing.check,
    "test": testing.test,
    "lock": locks.lock,
    "dashboards": dashboards.dashboards,
    "capacity": deployment.capacity,
    "variants": deployment.variants,
    "audit": deployment.audit,
    "gateway": deployment.gateway,
    "mutate": mutation.mutate,
    "fuzz": testing.fuzz,
    "prove-alerts": testing.prove_alerts,
    "prove-usage": testing.prove_usage,
    "bench-deploy": benchmark.deploy,
    "bench-gateway": benchmark.gateway,
    "bench-companion": benchmark.companion,
    "bench-hostile": benchmark.hostile,
    "bench-serving": benchmark.serving,
    "bench-host": benchmark.host,
    "bench-accuracy": benchmark.accuracy,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools", description=__doc__)
    parser.add_argument("verb", choices=sorted(VERBS))
    verb = parser.parse_args().verb
    # `kill` and a closed terminal end a verb as Ctrl-C does: through its clean-up
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        programs.confine(verb)
        VERBS[verb]()
    except Failure as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say(f"\n`make {verb}` was interrupted; run it again and it goes on from what is there.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
