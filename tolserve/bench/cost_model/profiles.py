"""Hardware that one can rent or buy, as published, with the source of each. Nothing here was measured by this project.

Rates are data sheets' or other people's measurements; prices are those of one provider in 2026 or plain assumptions,
and are said to be. Replace what you can measure: every command that uses these takes files of your own.
"""

from __future__ import annotations

from tolserve.bench.cost_model.hardware import Accelerator, Link, Store

ACCELERATORS = {
    one.name: one
    for one in (
        Accelerator(
            name="h100",
            flops=989e12,
            memory_bytes_per_s=3.35e12,
            memory_bytes=80e9,
            dollars_per_hour=2.49,
            source="NVIDIA H100 SXM data sheet (bf16 dense); price: one on demand at Lambda, 2026",
        ),
        Accelerator(
            name="h200",
            flops=989e12,
            memory_bytes_per_s=4.8e12,
            memory_bytes=141e9,
            dollars_per_hour=3.5,
            source="NVIDIA H200 SXM data sheet; price assumed",
        ),
        Accelerator(
            name="b200",
            flops=2250e12,
            memory_bytes_per_s=8e12,
            memory_bytes=180e9,
            dollars_per_hour=5.0,
            source="NVIDIA DGX B200 data sheet, an eighth (bf16 dense); price assumed",
        ),
    )
}

_TCP = "round trip in one placement group of a cloud 35 us (published measurements); message work and tail: assumed"
_RDMA = "1 to 5 us a read up to 32 KB, 45 M messages/s a NIC, 2.4 to 4.6 times TCP (published); tail assumed"

LINKS = {
    one.name: one
    for one in (
        Link(
            name="25gbe-tcp",
            bytes_per_s=2.8e9,
            round_trip_s=35e-6,
            message_s=10e-6,
            tail=3.0,
            messages_per_s=2e5,
            source=_TCP,
            dollars_per_hour=0.05,
        ),
        Link(
            name="100gbe-tcp",
            bytes_per_s=9e9,
            round_trip_s=35e-6,
            message_s=10e-6,
            tail=3.0,
            messages_per_s=2e5,
            source=_TCP,
            dollars_per_hour=0.15,
        ),
        Link(
            name="400gbe-tcp",
            bytes_per_s=20e9,
            round_trip_s=35e-6,
            message_s=10e-6,
            tail=3.0,
            messages_per_s=4e5,
            source=_TCP + "; several streams",
            dollars_per_hour=0.5,
        ),
        Link(
            name="25gbe-rdma",
            bytes_per_s=3e9,
            round_trip_s=4e-6,
            message_s=1e-6,
            tail=1.5,
            messages_per_s=1e7,
            source=_RDMA,
            dollars_per_hour=0.07,
        ),
        Link(
            name="100gbe-rdma",
            bytes_per_s=11.5e9,
            round_trip_s=4e-6,
            message_s=1e-6,
            tail=1.5,
            messages_per_s=2e7,
            source=_RDMA,
            dollars_per_hour=0.2,
        ),
        Link(
            name="400gbe-rdma",
            bytes_per_s=46e9,
            round_trip_s=4e-6,
            message_s=1e-6,
            tail=1.5,
            messages_per_s=4.5e7,
            source=_RDMA,
            dollars_per_hour=0.6,
        ),
    )
}
"""Dollars an hour are assumed: a share of what a port and its switch cost over three years."""

STORES = {
    one.name: one
    for one in (
        Store(
            name="ram",
            p50_s=0.0,
            p99_s=0.0,
            bytes_per_s=100e9,
            reads_per_s=1e8,
            dollars_per_gb_hour=0.008,
            source="host memory; price assumed: a large-memory instance on demand, by its gigabytes",
        ),
        Store(
            name="pcie5-host",
            p50_s=2e-6,
            p99_s=4e-6,
            bytes_per_s=35e9,
            reads_per_s=1e8,
            dollars_per_gb_hour=0.008,
            source="63 GB/s in theory, 35 GB/s by GPU-driven reads of pinned memory on an H100 (published)",
        ),
        Store(
            name="nvme",
            p50_s=60e-6,
            p99_s=200e-6,
            bytes_per_s=14e9,
            reads_per_s=3e6,
            dollars_per_gb_hour=0.0001,
            source="gen 5: 14 GB/s, 3 M reads of 4 KiB a second, 60 us (published); tail and price assumed",
        ),
        Store(
            name="s3-express",
            p50_s=6e-3,
            p99_s=15e-3,
            bytes_per_s=10e9,
            reads_per_s=2e5,
            dollars_per_gb_hour=0.11 / 730,
            dollars_per_million_reads=0.03,
            source="single-digit ms (published); tail assumed; list price of storage and GET, us-east-1, 2025",
        ),
        Store(
            name="s3-standard",
            p50_s=57e-3,
            p99_s=182e-3,
            bytes_per_s=10e9,
            reads_per_s=5500,
            dollars_per_gb_hour=0.023 / 730,
            dollars_per_million_reads=0.4,
            source="4 KB reads: p50 57, p99 182 ms, 5,500 GET/s a prefix (published); list price us-east-1, 2025",
        ),
    )
}
