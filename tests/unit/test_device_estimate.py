"""Hours and dollars of a build on a described device: the arithmetic, and descriptions that are none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tolbuild.build_config import BuildConfig
from tolbuild.config import ModelConfig
from tolbuild.drive.device import KNOWN, Device, describe_time, estimate_time, load_device
from tolbuild.plan import Plan, make_plan


def plan_of(**options: object) -> Plan:
    model = ModelConfig(
        kind="memory",
        vocab_size=128_256,
        hidden_size=2048,
        num_hidden_layers=24,
        num_attention_heads=32,
        intermediate_size=5464,
    )
    return make_plan(BuildConfig(checkpoint="c", table="t", **options), model, "f")  # type: ignore[arg-type]


def device(**changes: object) -> Device:
    fields = {"name": "d", "row_flops": 1e12, "fp64_flops": 5e11, "transfer_bytes_per_s": 1e12, **changes}
    return Device(**fields)  # type: ignore[arg-type]


def test_a_full_rank_build_is_its_rows() -> None:
    time = estimate_time(plan_of(), device(start_s=7), num_workers=2, spools=False)
    assert math.isclose(time.compute_s, 6 * 128_256 * 24 * 2048 * 5464 / 2e12)
    assert time.total_s == 7 + time.compute_s


def test_slow_transfers_are_what_counts() -> None:
    time = estimate_time(plan_of(), device(transfer_bytes_per_s=1e6), num_workers=1, spools=False)
    assert time.transfer_s > 12_600 and time.total_s == time.transfer_s


def test_bases_are_found_a_layer_at_a_time() -> None:
    reduced = plan_of(rank=1024, codes="int8")
    few, many = (estimate_time(reduced, device(), num_workers=count, spools=True) for count in (24, 48))
    basis_s = 9 * 2048**3 / 5e11
    assert math.isclose(few.compute_s - basis_s, 2 * (many.compute_s - basis_s))


def test_dollars_are_those_of_all_workers() -> None:
    text = describe_time(plan_of(), device(dollars_per_hour=3.0), num_workers=4, spools=False)
    seconds = estimate_time(plan_of(), device(), num_workers=4, spools=False).total_s
    assert f"{seconds / 3600 * 12:,.2f} dollars at 3 an hour each" in text
    assert "no price is known" in describe_time(plan_of(), device(), num_workers=1, spools=False)


def test_known_devices_say_where_they_come_from() -> None:
    assert all(known.source for known in KNOWN.values())
    assert load_device("h100") is KNOWN["h100"]


def test_a_file_describes_a_device(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"row_flops": 2e12, "fp64_flops": 1e12, "transfer_bytes_per_s": 1e9}))
    assert load_device(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "no JSON"),
        ("[]", "an object with some of"),
        ('{"speed": 1}', "an object with some of"),
        ('{"row_flops": 1e12}', "missing 2 required"),
        ('{"row_flops": 0, "fp64_flops": 1, "transfer_bytes_per_s": 1}', "row_flops is 0; it must be a positive"),
        ('{"row_flops": "1", "fp64_flops": 1, "transfer_bytes_per_s": 1}', "row_flops is '1'"),
        ('{"row_flops": 1, "fp64_flops": 1, "transfer_bytes_per_s": 1, "start_s": -1}', "start_s is -1"),
    ],
)
def test_what_describes_no_device_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        load_device(str(path))


def test_an_unknown_name_tells_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no such file, and known are cpu-core, h100"):
        load_device("tpu")


def test_a_description_without_a_dry_run_is_refused() -> None:
    with pytest.raises(ValueError, match="it needs --dry-run"):
        BuildConfig(checkpoint="c", table="t", device_description="h100")
