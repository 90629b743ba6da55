"""Somebody's own state dict under this project's names."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from tolbuild.checkpoint.files import WeightFiles, read_infos
from tolbuild.checkpoint.shapes import check_dtype, check_finite, check_shapes, expected_shapes
from tolbuild.config import ModelConfig
from tolbuild.table.errors import FormatError
from tolbuild.table.store import Credentials, open_store

LAYER = "{layer}"
"""Stands for the layer's number on both sides of a name map."""

_PICKLES = (".pt", ".pth", ".bin")


@dataclass(frozen=True, kw_only=True)
class Theirs:
    """A tensor of the foreign state dict: its name, with `{layer}`, and whether its two dimensions are exchanged."""

    name: str
    transpose: bool = False


NameMap = Mapping[str, str | Theirs]
"""Our name -> their name; names that it leaves out are looked for as they are."""


def import_weights(
    weights: Mapping[str, Tensor] | str | Path,
    config: ModelConfig,
    name_map: NameMap,
    *,
    ignore: Sequence[str] = (),
    credentials: Credentials | None = None,
) -> dict[str, Tensor]:
    """The state dict of a model of `config`, taken from one with other names; types stay as they are.

        save_checkpoint("s3://models/mine", config, import_weights("run7/model.pt", config, {
            "model.embed_tokens.weight": "tok_embeddings.weight",
            "model.layers.{layer}.memory_mlp.gate_proj.weight": Theirs(name="blocks.{layer}.w1", transpose=True), ...
        }, ignore=["*.rotary.inv_freq"]))

    Args:
        weights: a state dict, or where one is: a .safetensors, .pt, .pth or .bin file (pickles are read with torch's
            weights-only loader), or a folder with model.safetensors or its shards and index; any URL.
        name_map: our name -> theirs.
        ignore: patterns (* and ?) of their tensors that the model has no use for.

    Raises:
        ValueError: names what is unmatched: our tensors that theirs lack, theirs that nothing asks for, names of the
            map that the config does not have; and wrong shapes and values that are no finite numbers.
    """
    where = "the state dict" if isinstance(weights, Mapping) else str(weights)
    theirs = weights if isinstance(weights, Mapping) else read_state_dict(weights, credentials)
    sources = _sources(config, name_map)
    _check_matches(sources, theirs, config, name_map, ignore, where)
    state: dict[str, Tensor] = {}
    for name, source in sources.items():
        tensor = theirs[source.name]
        check_dtype(tensor.dtype, source.name, where)
        check_finite(tensor, source.name, where)
        if source.transpose and tensor.dim() != 2:
            raise ValueError(f"{where}: {source.name} cannot be transposed: its shape is {list(tensor.shape)}")
        state[name] = (tensor.t() if source.transpose else tensor).clone(memory_format=torch.contiguous_format)
    check_shapes(config, {name: tuple(tensor.shape) for name, tensor in state.items()}, where)
    return state


def read_state_dict(url: str | Path, credentials: Credentials | None = None) -> dict[str, Tensor]:
    """All tensors at a URL: a .safetensors, .pt, .pth or .bin file, or a folder of safetensors.

    Raises:
        FormatError: the file is damaged, or holds something else than tensors by name.
        StoreError: it cannot be read.
    """
    folder, _, key = str(url).rpartition("/")
    is_file = key.endswith((".safetensors", *_PICKLES))
    store = open_store((folder or ".") if is_file else url, credentials)
    try:
        if key.endswith(_PICKLES):
            return _unpickle(store.read(key), str(url))
        files = WeightFiles(store, {key: read_infos(store, key)}) if is_file else WeightFiles.open(store)
        return {name: files.tensor(name) for name in files.infos}
    finally:
        store.close()


def _unpickle(data: bytes, where: str) -> dict[str, Tensor]:
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip and runtime errors
        raise FormatError(f"{where} is no file of plain tensors: {error}") from error
    wrong = (
        [name for name, value in loaded.items() if not isinstance(value, Tensor)] if isinstance(loaded, dict) else []
    )
    if not isinstance(loaded, dict) or wrong:
        found = f"{wrong[0]!r} is no tensor" if wrong else f"it holds a {type(loaded).__name__}"
        raise FormatError(f"{where} must hold tensors by name; {found}: save the model's state_dict() alone")
    return loaded


def _sources(config: ModelConfig, name_map: NameMap) -> dict[str, Theirs]:
    """For each of our tensors, which of theirs it is."""
    patterns = {ours: Theirs(name=theirs) if isinstance(theirs, str) else theirs for ours, theirs in name_map.items()}
    filled = {
        ours.replace(LAYER, str(layer)): Theirs(name=theirs.name.replace(LAYER, str(layer)), transpose=theirs.transpose)
        for ours, theirs in patterns.items()
        for layer in range(config.num_hidden_layers if LAYER in ours else 1)
    }
    return {name: filled.get(name, Theirs(name=name)) for name in expected_shapes(config)}


def _check_matches(
    sources: Mapping[str, Theirs],
    theirs: Mapping[str, Tensor],
    config: ModelConfig,
    name_map: NameMap,
    ignore: Sequence[str],
    where: str,
) -> None:
    last = str(config.num_hidden_layers - 1)
    unknown = [ours for ours in name_map if ours.replace(LAYER, last) not in sources]
    missing = [f"{name} (as {source.name})" for name, source in sources.items() if source.name not in theirs]
    used = {source.name for source in sources.values()}
    left = [name for name in theirs if name not in used and not any(fnmatchcase(name, pattern) for pattern in ignore)]
    faults = []
    if unknown:
        faults.append(f"the name map has {_some(unknown)}, which a {config.kind} model of this config has not")
    if missing:
        faults.append(f"{where} lacks {_some(missing)}")
    if left:
        faults.append(f"nothing asks for {_some(left)} of {where}: map or ignore them")
    if faults:
        raise ValueError("; ".join(faults))


def _some(names: Sequence[str], shown: int = 8) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
