#!/bin/sh
# Status 1: there are warnings; 3: something is critical.
exec /opt/citadel/scripts/citadel.sh audit "$@"
