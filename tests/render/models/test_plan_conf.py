"""What the plan tells systemd of a node: only where there are several."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from jinja2 import Template

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = ROOT / "roles/models/templates/units/citadel-llm@instance.service.d/plan.conf.j2"


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_planned_node_reaches_systemd(nodes: int) -> None:
    instance = SimpleNamespace(memory_max_bytes=1, cpus="8-11", start_seconds=60, node=1, unit={})
    text = Template(TEMPLATE.read_text(), trim_blocks=True).render(
        instance=instance, models_capacity=SimpleNamespace(nodes=nodes), ansible_managed="by us"
    )
    assert ("NUMAPolicy=bind\nNUMAMask=1\n" in text) == (nodes == 2)
    assert "AllowedCPUs=8-11\n" in text
