#!/bin/sh
# Configuration and units as an archive, then everything that a client may ask, as a report. Status: that of the questions.
today=$(date +%Y%m%d)
cd / && tar -czf "/opt/citadel/backup/config-weekly-$today.tar.gz" opt/citadel/config etc/systemd/system/citadel-* || exit 1
/opt/citadel/scripts/comprehensive-test.sh >"/opt/citadel/reports/health-check-$today.log" 2>&1
status=$?
cat "/opt/citadel/reports/health-check-$today.log"
exit "$status"
