"""Resource Utilization: processors, memory, disks and network of each host, and whose they are."""

from __future__ import annotations

from citadel.contract import GATEWAY
from tools.dashboards.board import AT, NO, OF, RATE, YES, Board, Row, leads
from tools.dashboards.panels import GREEN, RED, SLOW, YELLOW, Ask, Column, lines, rows, shares

# whatever is on a disk: not what is memory, an image, or somebody else's
DISKS = f'{AT}, fstype!~"tmpfs|ramfs|squashfs|nsfs|fuse.*"'
DISK_USED = f"1 - node_filesystem_avail_bytes{{{DISKS}}} / node_filesystem_size_bytes{{{DISKS}}}"
MEMORY_USED = f"1 - node_memory_MemAvailable_bytes{{{AT}}} / node_memory_MemTotal_bytes{{{AT}}}"
CPU_USED = f'1 - avg by (citadel_host) (rate(node_cpu_seconds_total{{{AT}, mode="idle"}}{RATE}))'


def resources() -> Board:
    processors = Row(
        "Processors",
        [
            lines(
                "CPU Usage",
                "What the processors of a host are busy with; all of them are 100 %.",
                "percentunit",
                Ask(
                    f'avg by (citadel_host, mode) (rate(node_cpu_seconds_total{{{AT}, mode!~"idle|guest.*"}}{RATE}))',
                    "{{citadel_host}} {{mode}}",
                    SLOW,
                ),
                stacked=True,
                most=1,
            ),
            lines(
                "Load",
                "Threads that ran or wanted to, in the mean of one minute; dashed, the number of processors.",
                "short",
                Ask(f"node_load1{{{AT}}}", "{{citadel_host}}", SLOW),
                Ask(
                    f'count by (citadel_host) (node_cpu_seconds_total{{{AT}, mode="idle"}})',
                    "{{citadel_host}} processors",
                    SLOW,
                ),
                dashed="processors",
            ),
            lines(
                "Pressure",
                "Share of the time in which something waited for processors, memory or disks. Only kernels with PSI "
                "tell it.",
                "percentunit",
                Ask(
                    f"rate(node_pressure_cpu_waiting_seconds_total{{{AT}}}{RATE})", "{{citadel_host}} processors", SLOW
                ),
                Ask(f"rate(node_pressure_memory_waiting_seconds_total{{{AT}}}{RATE})", "{{citadel_host}} memory", SLOW),
                Ask(f"rate(node_pressure_io_waiting_seconds_total{{{AT}}}{RATE})", "{{citadel_host}} disks", SLOW),
                levels=[(0.5, YELLOW)],
            ),
        ],
    )
    memory = Row(
        "Memory",
        [
            lines(
                "Memory Usage",
                "What processes hold, what the kernel keeps of files and gives back when it must, and dashed, all "
                "there is.",
                "bytes",
                Ask(
                    f"node_memory_MemTotal_bytes{{{AT}}} - node_memory_MemAvailable_bytes{{{AT}}}",
                    "{{citadel_host}} used",
                    SLOW,
                ),
                Ask(f"node_memory_Cached_bytes{{{AT}}}", "{{citadel_host}} files", SLOW),
                Ask(f"node_memory_MemTotal_bytes{{{AT}}}", "{{citadel_host}} total", SLOW),
                dashed="total",
            ),
            leads(
                lines(
                    "Memory of Models",
                    "Memory of each model's unit, as the kernel counts it against the limit; dashed, what the plan "
                    "foresaw.",
                    "bytes",
                    Ask(f"sum by (model) (citadel_unit_memory_bytes{{{OF}}})", "{{model}}", SLOW),
                    Ask(f"sum by (model) (citadel_plan_memory_bytes{{{OF}}})", "{{model}} plan", SLOW),
                    dashed="plan",
                ),
                "The model in detail",
                "model_performance",
                "model",
            ),
            shares(
                "Memory Beside Its Limit",
                "How near each unit is to the limit at which the kernel ends it.",
                "percentunit",
                Ask(
                    f"citadel_unit_memory_bytes{{{OF}}} / (citadel_unit_memory_max_bytes{{{OF}}} > 0)",
                    "{{unit}}",
                    SLOW,
                ),
                levels=[(0.85, YELLOW), (0.95, RED)],
                most=1,
            ),
        ],
    )
    disks = Row(
        "Disks and network",
        [
            shares(
                "Disk Usage",
                "How full each disk is, however often it is mounted.",
                "percentunit",
                Ask(f"max by (citadel_host, device) ({DISK_USED})", "{{citadel_host}} {{device}}", SLOW),
                levels=[(0.8, YELLOW), (0.9, RED)],
                most=1,
            ),
            lines(
                "Disk Traffic",
                "Bytes a second that were read and written, over all disks.",
                "Bps",
                Ask(
                    f"sum by (citadel_host) (rate(node_disk_read_bytes_total{{{AT}}}{RATE}))",
                    "{{citadel_host}} read",
                    SLOW,
                ),
                Ask(
                    f"sum by (citadel_host) (rate(node_disk_written_bytes_total{{{AT}}}{RATE}))",
                    "{{citadel_host}} written",
                    SLOW,
                ),
            ),
            lines(
                "Network",
                "Bytes a second that came in and went out, loopback left out.",
                "Bps",
                Ask(
                    f'sum by (citadel_host) (rate(node_network_receive_bytes_total{{{AT}, device!="lo"}}{RATE}))',
                    "{{citadel_host}} in",
                    SLOW,
                ),
                Ask(
                    f'sum by (citadel_host) (rate(node_network_transmit_bytes_total{{{AT}, device!="lo"}}{RATE}))',
                    "{{citadel_host}} out",
                    SLOW,
                ),
            ),
        ],
    )
    units = Row(
        "Units and gateway",
        [
            rows(
                "Units",
                "Every service of this product as systemd sees it. `gave up` means that it is not started again by "
                "itself "
                "for five minutes.",
                ["citadel_host", "unit"],
                Column(
                    "active",
                    "short",
                    Ask(f'citadel_unit_state{{{AT}, state="active"}}'),
                    mapped={"1": YES, "0": NO},
                ),
                Column("memory", "bytes", Ask(f"citadel_unit_memory_bytes{{{AT}}}")),
                Column("restarts", "short", Ask(f"citadel_unit_restarts_total{{{AT}}}"), [(1, YELLOW), (5, RED)]),
                Column("out of memory", "short", Ask(f"citadel_unit_oom_kills_total{{{AT}}}"), [(1, RED)]),
                Column(
                    "gave up",
                    "short",
                    Ask(f"citadel_unit_gave_up{{{AT}}}"),
                    mapped={"0": ("no", GREEN), "1": ("yes", RED)},
                ),
                size=(12, 8),
            ),
            lines(
                "Gateway's Processor",
                "How much of one processor the gateway uses. It is one thread, so that near 100 % it is the "
                "bottleneck.",
                "percentunit",
                Ask(f'rate(process_cpu_seconds_total{{job="{GATEWAY}", {AT}}}{RATE})', "{{citadel_host}}"),
                levels=[(0.8, YELLOW)],
                size=(6, 8),
            ),
            lines(
                "Gateway's Memory",
                "What the gateway holds resident.",
                "bytes",
                Ask(f'process_resident_memory_bytes{{job="{GATEWAY}", {AT}}}', "{{citadel_host}}"),
                size=(6, 8),
            ),
        ],
    )
    return Board(
        "Resource Utilization",
        "Processors, memory, disks and network of each host, and which unit uses them.",
        [processors, memory, disks, units],
    )
