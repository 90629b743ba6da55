"""`python -m tolbuild.inspect URL`: what a table holds, from its manifests, means and spectra.

Prints versions, bands, ranks, types, sizes, the energy and error of each layer and what its mean alone explains; --json
prints the manifest.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tolbuild.table.errors import ToLError
from tolbuild.table.manifest import Manifest
from tolbuild.table.publish import latest_version, list_versions, read_manifest
from tolbuild.table.stats import LayerEnergy, table_energies
from tolbuild.table.store import Store, open_store


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What to look at."""

    url: str
    """Where the table is: a path, file://, s3://bucket/prefix or another URL."""
    version: int | None = None
    """Version to describe; the latest when left out."""
    json: bool = False
    """Print the version's manifest document instead."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Describe a table; 0, or 1 where there is none that can be read."""
    from tolbuild.cli import parse

    try:
        config = parse(InspectConfig, positional=True, module="tolbuild.inspect", doc=__doc__, arguments=arguments)
        store = open_store(config.url)
        try:
            manifest = read_manifest(store, latest_version(store) if config.version is None else config.version)
            lines = [manifest.to_bytes().decode().rstrip()] if config.json else describe(store, manifest)
            print("\n".join(lines))
        finally:
            store.close()
    except (ValueError, ToLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def describe(store: Store, manifest: Manifest) -> list[str]:
    """The table and one of its versions, a line each."""
    fp16 = manifest.vocab_size * manifest.num_layers * manifest.hidden_size * 2
    return [
        store.url,
        *_versions(store, manifest),
        "",
        f"version {manifest.version}, identity {manifest.identity.hex()}, plan {manifest.plan_hash}",
        f"  model     {manifest.model_fingerprint[:16]}: V {manifest.vocab_size:,}, {manifest.num_layers} layers, "
        f"D {manifest.hidden_size}",
        f"  size      {_size(manifest.total_bytes)}; full rank in fp16 is {_size(fp16)}, "
        f"{fp16 / manifest.total_bytes:.2f} times as much",
        f"  options   {', '.join(f'{name} {value}' for name, value in sorted(manifest.options.items())) or 'none'}",
        "",
        *_bands(manifest),
        "",
        *_layers(manifest, table_energies(store, manifest)),
    ]


def _versions(store: Store, shown: Manifest) -> Iterator[str]:
    for number in list_versions(store):
        mark = "->" if number == shown.version else "  "
        try:
            other = read_manifest(store, number)
        except ToLError as error:
            yield f"  {mark} version {number}: cannot be read: {error}"
            continue
        yield f"  {mark} version {number}, {other.created}, plan {other.plan_hash}, {_size(other.total_bytes)}"


def _bands(manifest: Manifest) -> Iterator[str]:
    yield "  band  layers        codes               bytes a row   shards         size   made by"
    for band in manifest.bands:
        layers = ",".join(map(str, band.layers))
        codes = f"{band.dtype} x {sum(band.ranks)}"
        size = sum(item.size for item in band.codes.objects)
        parts = ", ".join(part.name for part in (band.transform, band.predictor, band.quantiser))
        shards = band.layout.num_shards
        line = f"  {band.index:>4}  {layers:<13} {codes:<18} {band.row_bytes:>12,} {shards:>8}"
        scaled = f", s_token in layers {','.join(map(str, band.token_scaled))}" if band.token_scaled else ""
        yield f"{line} {_size(size):>12}   {band.codes.format}; {parts}{scaled}"


def _layers(manifest: Manifest, energies: Mapping[int, LayerEnergy]) -> Iterator[str]:
    weighted = any(stats.weighted_error is not None for stats in manifest.layer_stats)
    yield "  layer   rank   energy kept  mean alone      error   worst row         energy" + "   weighted" * weighted
    for stats in manifest.layer_stats:
        energy = energies.get(stats.layer)
        mean = f"{'-':>10}" if energy is None else f"{100 * energy.mean_share:>8.2f} %"
        own = f"  {stats.weighted_error:>9.2e}" if stats.weighted_error is not None else ""
        yield (
            f"  {stats.layer:>5}  {stats.rank:>5}   {100 * stats.energy_kept:>9.3f} %  {mean}  "
            f"{stats.relative_error:>9.2e}   {stats.max_relative_error:>9.2e}  {stats.energy:>13.6e}{own}"
        )
    if manifest.dropped_layers:
        yield f"  left out: {', '.join(map(str, manifest.dropped_layers))}"


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} B" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


if __name__ == "__main__":
    sys.exit(main())
