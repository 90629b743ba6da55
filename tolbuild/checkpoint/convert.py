"""`python -m tolbuild.checkpoint.convert`: make a checkpoint of your own weights.

    python -m tolbuild.checkpoint.convert --weights run7/model.pt --config config.json --name-map names.json \\
      --tokenizer tokenizer.json --out s3://models/mine

names.json maps this project's names to yours; {layer} stands for the layer's number on both sides:

    {"model.embed_tokens.weight": "tok_embeddings.weight",
     "model.layers.{layer}.memory_mlp.down_proj.weight": {"name": "blocks.{layer}.w2", "transpose": true}}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolbuild.checkpoint.importing import NameMap, Theirs, import_weights
from tolbuild.checkpoint.reader import open_checkpoint
from tolbuild.checkpoint.writer import save_checkpoint
from tolbuild.cli import parse
from tolbuild.config import ModelConfig
from tolbuild.table.errors import ToLError


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What to convert, and to where."""

    weights: str
    """Your weights: a .safetensors, .pt, .pth or .bin file or a folder of safetensors, as a path or URL."""
    config: Path
    """The model's config.json."""
    name_map: Path
    """JSON file: our name -> yours, or {"name": yours, "transpose": true}."""
    out: str
    """Where the checkpoint goes: a path, file://, s3:// or memory://."""
    tokenizer: Path | None = None
    """A tokenizer.json to put beside the weights."""
    ignore: tuple[str, ...] = ()
    """Patterns (* and ?) of your tensors that the model has no use for."""


def convert(config: ConvertConfig) -> str:
    """Import, save and open again; returns the new checkpoint's fingerprint.

    Raises:
        ValueError: the weights, the config or the map do not fit each other, each fault named.
        ToLError: a place cannot be read or written.
    """
    shape = ModelConfig.from_dict(_read_object(config.config))
    state = import_weights(config.weights, shape, _name_map(config.name_map), ignore=config.ignore)
    tokenizer_json = None if config.tokenizer is None else _read_text(config.tokenizer)
    save_checkpoint(config.out, shape, state, tokenizer_json=tokenizer_json)
    return open_checkpoint(config.out).fingerprint


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert; 0 when the checkpoint is written, 1 with the reason on standard error."""
    config = parse(ConvertConfig, module="tolbuild.checkpoint.convert", doc=__doc__, arguments=arguments)
    try:
        fingerprint = convert(config)
    except (ValueError, ToLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"checkpoint: {config.out}\nfingerprint: {fingerprint}")
    return 0


def _name_map(path: Path) -> NameMap:
    found: dict[str, str | Theirs] = {}
    for ours, theirs in _read_object(path).items():
        if isinstance(theirs, str):
            found[ours] = theirs
        elif isinstance(theirs, dict) and set(theirs) <= {"name", "transpose"} and isinstance(theirs.get("name"), str):
            found[ours] = Theirs(name=theirs["name"], transpose=bool(theirs.get("transpose", False)))
        else:
            raise ValueError(f'{path}: {ours} maps to {theirs!r}; expected a name or {{"name": ..., "transpose": ...}}')
    return found


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is a JSON {type(values).__name__}; expected an object")
    return values


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
