"""When the head of a local cluster counts as up."""

from __future__ import annotations

from pathlib import Path

from cluster.head import has_node

STARTING = "Usage stats collection is disabled.\n\nLocal node IP: 127.0.0.1\n"
TIMED_OUT = "Exception: The current node timed out during startup. This could happen because some of the raylet failed"
STARTED = "--------------------\nRay runtime started.\n--------------------\n"


def test_a_head_is_up_once_its_node_is(tmp_path: Path) -> None:
    log = tmp_path / "ray.log"
    assert not has_node(log)
    log.write_text(STARTING)
    assert not has_node(log)
    log.write_text(STARTING + TIMED_OUT)
    assert not has_node(log)
    log.write_text(STARTING + STARTED)
    assert has_node(log)
