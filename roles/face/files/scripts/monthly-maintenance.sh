#!/bin/sh
# The audit as a report, and what there is room for.
today=$(date +%Y%m%d)
/opt/citadel/scripts/security-audit.sh >"/opt/citadel/reports/security-audit-$today.log" 2>&1 || exit 1
/opt/citadel/scripts/citadel.sh status
