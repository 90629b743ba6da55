"""`python -m tolserve.bench.cost_model`: what networked memory would cost on hardware that is not here.

Three tables and one line of JSON: the smallest link and device share at which rows over the network add less than 3 %
to a decode step; dollars per million tokens with the table on the device and on shared memory nodes; a pool of memory
nodes for many attention nodes. Tokens follow a Zipf law; profiles and their sources are in profiles.py, and --profiles
replaces any of their numbers. How well the model predicts this machine is what `python -m tolserve.bench cost` reports.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tolserve.bench.cost_model.answers import WANTED, Setting, pool, price, smallest
from tolserve.bench.cost_model.hardware import Accelerator, Link, Store
from tolserve.bench.cost_model.pace import SHAPES, ModelShape, compressed
from tolserve.bench.cost_model.profiles import ACCELERATORS, LINKS, STORES

VOCABULARIES = (128_256, 262_144, 1_048_576)
BATCHES = (1, 8, 64, 256)
ORDER = ("25gbe-tcp", "100gbe-tcp", "400gbe-tcp", "25gbe-rdma", "100gbe-rdma", "400gbe-rdma")
"""Links from the most ordinary to the most demanding."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the answers; 1 for profiles that are none."""
    options = _arguments(arguments)
    try:
        for name in ("attention_nodes", "context", "alpha"):
            if not getattr(options, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be positive")
        devices, links, stores = _profiles(options.profiles)
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    device = devices[options.device]
    base = Setting(
        shape=SHAPES["1b"],
        device=device,
        link=links[options.link],
        store=stores["ram"],
        batch=8,
        device_share=0.0,
        alpha=options.alpha,
        context=options.context,
    )
    ordered = [links[name] for name in ORDER]
    found = {
        "suffices": _suffices(base, ordered),
        "prices": _prices(base, options.attention_nodes),
        "pool": _pools(base, options.attention_nodes),
    }
    about = {"device": asdict(device), "link": asdict(base.link), "alpha": base.alpha, "context": base.context}
    if options.out:
        options.out.write_text(json.dumps({"results": found, **about}, indent=1) + "\n")
    print(json.dumps(found))
    return 0


def shapes() -> list[ModelShape]:
    """Whole rows in fp16, and rows at an eighth of their bytes, by vocabulary."""
    return [
        replace(shape, vocab_size=vocab_size)
        for one in SHAPES.values()
        for shape in (one, compressed(one))
        for vocab_size in VOCABULARIES
    ]


def _suffices(base: Setting, links: list[Link]) -> list[dict[str, Any]]:
    print(f"\nThe smallest link and device share below {WANTED:.0%}: {base.device.name}, Zipf {base.alpha:g}, "
          f"{base.context:,} tokens of context, rows in host memory of memory nodes\n")  # fmt: skip
    print(f"  {'model':<22} {'vocabulary':>10} {'row':>9} " + " ".join(f"{f'batch {b}':>18}" for b in BATCHES))
    found = []
    for shape in shapes():
        cells = []
        for batch in BATCHES:
            best = smallest(replace(base, shape=shape, batch=batch), links)
            cells.append(f"{best[0].name} {best[1]:.0%}" if best else "none")
            found.append(
                {"model": shape.name, "vocab_size": shape.vocab_size, "batch": batch}
                | {"link": best[0].name if best else None, "device_share": best[1] if best else None}
            )
        row = f"{shape.row_bytes / 1024:,.0f} KiB"
        print(f"  {shape.name:<22} {shape.vocab_size:>10,} {row:>9} " + " ".join(f"{cell:>18}" for cell in cells))
    return found


def _prices(base: Setting, attention_nodes: int) -> list[dict[str, Any]]:
    print(f"\nDollars per million tokens, batch {base.batch}: the table on each device, or once for "
          f"{attention_nodes:,} attention nodes over {base.link.name} with 10 % of it on the device\n")  # fmt: skip
    print(f"  {'model':<22} {'vocabulary':>10} {'table':>9} {'on device':>10} {'networked':>10} {'stall':>7}  cheaper")
    found = []
    for shape in shapes():
        setting = replace(base, shape=shape, device_share=0.1)
        cost, step = price(setting, attention_nodes=attention_nodes), setting.step()
        cheaper = "networked" if cost.networked < cost.on_device else "on device"
        found.append({"model": shape.name, "vocab_size": shape.vocab_size, "overhead": step.overhead} | asdict(cost))
        size = f"{shape.table_bytes / 1e9:,.1f} GB"
        print(f"  {shape.name:<22} {shape.vocab_size:>10,} {size:>9} {cost.on_device:>10.3f} {cost.networked:>10.3f} "
              f"{max(step.overhead, 0):>7.1%}  {cheaper}")  # fmt: skip
    return found


def _pools(base: Setting, attention_nodes: int) -> list[dict[str, Any]]:
    print(f"\nOne pool for {attention_nodes:,} attention nodes at full speed, batch 64, 10 % of the table on each, "
          f"{base.link.name}, nodes of 512 GB\n")  # fmt: skip
    print(f"  {'model':<22} {'vocabulary':>10} {'GB/s':>9} {'M rows/s':>9} {'skew':>6} {'nodes':>7}  bound by")
    found = []
    for shape in shapes():
        setting = replace(base, shape=shape, device_share=0.1, batch=64)
        one = pool(setting, attention_nodes=attention_nodes)
        bounds = {"memory": one.by_memory, "bytes": one.by_bytes, "messages": one.by_messages}
        found.append({"model": shape.name, "vocab_size": shape.vocab_size, "nodes": one.nodes} | asdict(one))
        print(f"  {shape.name:<22} {shape.vocab_size:>10,} {one.bytes_per_s / 1e9:>9,.1f} {one.rows_per_s / 1e6:>9.1f} "
              f"{one.skew:>6.2f} {one.nodes:>7,}  {max(bounds, key=lambda name: bounds[name])}")  # fmt: skip
    return found


def _profiles(path: Path | None) -> tuple[dict[str, Accelerator], dict[str, Link], dict[str, Store]]:
    """The known profiles with the changes of a file: {"accelerators" | "links" | "stores": {name: {field: number}}}."""
    changes: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text()) if path else {}
    kinds: dict[str, dict[str, Any]] = {"accelerators": ACCELERATORS, "links": LINKS, "stores": STORES}
    if unknown := set(changes) - set(kinds):
        raise ValueError(f"--profiles {path}: {', '.join(sorted(unknown))}; known are {', '.join(kinds)}")
    found = []
    for kind, known in kinds.items():
        new = changes.get(kind, {})
        if unknown := set(new) - set(known):
            raise ValueError(
                f"--profiles {path}: {kind} has no {', '.join(sorted(unknown))}; known: {', '.join(known)}"
            )
        found.append({name: replace(one, **new.get(name, {})) for name, one in known.items()})
    return found[0], found[1], found[2]


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tolserve.bench.cost_model", description=__doc__)
    parser.add_argument("--device", choices=tuple(ACCELERATORS), default="h100", help="what computes")
    parser.add_argument("--link", choices=tuple(LINKS), default="100gbe-tcp", help="of the second and third table")
    parser.add_argument("--alpha", type=float, default=1.05, help="of the Zipf law of tokens")
    parser.add_argument("--context", type=int, default=1024, help="tokens that a sequence attends to")
    parser.add_argument("--attention-nodes", type=int, default=1000, help="that share one pool")
    parser.add_argument("--profiles", type=Path, help="a JSON file that changes numbers of the known profiles")
    parser.add_argument("--out", type=Path, help="write the answers here, too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
