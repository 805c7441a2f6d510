#!/bin/sh
# The verbs of this host: `citadel --help` lists them.
PYTHONPATH=/opt/citadel/current/host exec /usr/bin/python3 -B -P -m citadel "$@"
