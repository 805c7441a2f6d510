#!/bin/sh
exec /opt/citadel/scripts/citadel.sh prestart "$@"
