"""The verbs behind `make`: standard library only, since they run before anything is installed."""

import sys

# before anything that an older one cannot even read
if sys.version_info < (3, 11):
    sys.exit(
        f"python3 is {sys.version.split()[0]} and 3.11 or newer is needed: use Debian 12 or Ubuntu 24.04, or name "
        "a newer one with `make PYTHON=python3.12 …`."
    )
