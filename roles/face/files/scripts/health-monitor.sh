#!/bin/sh
exec /opt/citadel/scripts/citadel.sh status --log /var/log/citadel-llm/health-monitor.log
