"""Uniform ranks against ranks by energy and by one budget, in tables of the same size: bytes and perplexity.

    python benchmarks/allocation/study.py --folder /tmp/allocation

Run from the root of the repository; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tolbuild.build_config import BuildConfig
from tolbuild.checkpoint import load_model, open_checkpoint
from tolbuild.compress.allocate import EnergyShare, ranks_of
from tolbuild.drive.driver import build_table
from tolbuild.evaluate.perplexity import measure
from tolbuild.evaluate.text import pack
from tolbuild.evaluate.variant import Variant
from tolbuild.plan import Plan, make_plan
from tolbuild.table import Manifest, open_store, open_table
from tolbuild.table.stats import table_energies
from tolbuild.train.data import read_texts


def main() -> None:
    """Build, measure and print; the last line is one JSON object."""
    options = arguments()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    counts, layers = folder / "counts.json", folder / "layers.json"
    given = ("--checkpoint", options.checkpoint, "--data", str(options.train), "--out")
    run("tolbuild.count", *given, str(counts))
    run("tolbuild.sensitivity", *given, str(layers), "--limit", str(options.sensitivity_limit))
    tables = [table for rank in options.ranks for table in build_all(options, rank, f"counts:{counts}", layers, folder)]
    checkpoint = open_checkpoint(options.checkpoint)
    text = pack(checkpoint.tokenizer(), read_texts([options.valid]))
    opened = [open_table(manifest_folder) for _, manifest_folder, _, _ in tables]
    variants = [
        Variant(name="dense"),
        *(
            Variant(name=name, rows_of=lambda ids_N, table=table: torch.from_numpy(table.rows(ids_N)))
            for (name, _, _, _), table in zip(tables, opened, strict=True)
        ),
    ]
    length = checkpoint.config.max_position_embeddings
    *_, scores = measure(load_model(checkpoint), variants, text, length=length, limit=options.limit, batch=4)
    dense = scores[0].perplexity
    print(f"\n{options.checkpoint}, {scores[0].num_tokens:,} tokens of {options.valid}; dense perplexity {dense:.3f}\n")
    print(f"  {'table':<38} {'bytes':>12} {'perplexity':>11} {'change':>9}   ranks")
    results = []
    for (name, _, manifest, codes), score in zip(tables, scores[1:], strict=True):
        ranks = [stats.rank for stats in manifest.layer_stats]
        change = score.perplexity / dense - 1
        print(f"  {name:<38} {manifest.total_bytes:>12,} {score.perplexity:>11.3f} {change:>+9.3%}   {ranks}")
        results.append(
            {
                "table": name,
                "codes": codes,
                "bytes": manifest.total_bytes,
                "ranks": ranks,
                "perplexity": score.perplexity,
                "change": change,
            }
        )
    about = {"machine": platform.machine(), "torch": torch.__version__, "fingerprint": checkpoint.fingerprint}
    print(json.dumps({**about, "num_tokens": scores[0].num_tokens, "dense": dense, "results": results}))


def build_all(
    options: argparse.Namespace, rank: int, counts: str, layers: Path, folder: Path
) -> Iterator[tuple[str, str, Manifest, str]]:
    """Tables of the size that a uniform rank has: name, URL, manifest, codes."""

    def build(name: str, **choices: object) -> tuple[Plan, Manifest]:
        url = str(folder / f"{options.codes}-{rank}-{name.replace(' ', '-')}")
        config = BuildConfig(
            checkpoint=options.checkpoint,
            table=url,
            codes=options.codes,
            layers_per_band=2,
            no_ray=True,
            device="cpu",
            **choices,
        )
        result = build_table(config)
        assert result.manifest is not None
        made.append((f"{name}", url, result.manifest, options.codes))
        return result.plan, result.manifest

    made: list[tuple[str, str, Manifest, str]] = []
    for suffix, weights in (("", "uniform"), (" + counts", counts)):
        plan, uniform = build(f"rank {rank}{suffix}", rank=rank, weights=weights)
        share = matching_share(plan, uniform, made[-1][1])
        build(f"energy for {rank}{suffix}", rank=f"energy:{share!r}", weights=weights)
        budget = f"bytes:{same_size(options, rank)}"
        build(f"bytes for {rank}{suffix}", rank=budget, weights=weights)
        build(f"bytes for {rank}{suffix} + layers", rank=budget, weights=weights, layer_weights=layers)
    yield from made


def same_size(options: argparse.Namespace, rank: int) -> int:
    """The budget that holds a uniform rank as budgets count it: a little more than such a table takes."""
    config = BuildConfig(
        checkpoint=options.checkpoint, table="-", codes=options.codes, layers_per_band=2, rank="energy:1"
    )
    checkpoint = open_checkpoint(options.checkpoint)
    plan = make_plan(config, checkpoint.config, checkpoint.fingerprint)
    return plan.costs.fixed + len(plan.kept_layers) * plan.costs.of_layer(rank, whole=False)


def matching_share(plan: Plan, uniform: Manifest, url: str) -> float:
    """The largest share whose table is no larger than the uniform one, by the latter's spectra."""
    import numpy as np

    energies = table_energies(open_store(url), uniform)
    spectra_LD = np.stack([energies[layer].spectrum_D for layer in plan.kept_layers])

    def size(share: float) -> int:
        ranks = ranks_of(EnergyShare(share=share), spectra_LD, plan.costs)
        return sum(plan.costs.of_layer(rank, whole=rank == plan.hidden_size) for rank in ranks)

    most = sum(plan.costs.of_layer(plan.rank(layer), whole=False) for layer in plan.kept_layers)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if size(middle) <= most else (low, middle)
    return low


def run(module: str, *line: str) -> None:
    """A command of the package."""
    subprocess.run([sys.executable, "-m", module, *line], check=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where tables and weights go")
    parser.add_argument("--checkpoint", default="builtin:tiny")
    parser.add_argument("--train", type=Path, default=Path("data/public_domain.train.jsonl.gz"))
    parser.add_argument("--valid", type=Path, default=Path("data/public_domain.valid.jsonl.gz"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[96, 48], help="uniform ranks to compare with")
    parser.add_argument("--codes", default="int8")
    parser.add_argument("--limit", type=int, default=16_384, help="tokens of validation text")
    parser.add_argument("--sensitivity-limit", type=int, default=16_384, help="tokens for layer sensitivities")
    return parser.parse_args()


if __name__ == "__main__":
    main()
