"""An open checkpoint: its config and headers at once, its tensors when they are asked for."""

from __future__ import annotations

import json
import socket
import weakref
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tolbuild.checkpoint.files import TORCH_DTYPES, WeightFiles
from tolbuild.checkpoint.fingerprint import BLOCK_ROWS, EMBEDDING, Digests, digest_tensors, fingerprint, parts_of
from tolbuild.checkpoint.shapes import WEIGHT_DTYPES, check_dtype, check_finite, check_shapes
from tolbuild.config import ModelConfig
from tolbuild.model import MemoryLLM
from tolbuild.rows import MemoryFFN
from tolbuild.table.errors import FormatError, IdentityError, ObjectNotFoundError
from tolbuild.table.store import Credentials, Store, open_store

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BUILTIN = "builtin:"
"""Scheme of the checkpoints that come with this package."""


class Checkpoint:
    """One checkpoint: `config`, the tensors by name, and the pieces of them that a build reads.

    Reads only what is asked for, by range, from any URL; may be used from several threads. Made by `open_checkpoint`.

    config: the model's shape. url: where it was opened, `builtin:` names included.

    With `expected`, the networks are compared with it whenever they are loaded, and the embedding's blocks when they
    are first read whole: an IdentityError says that they are another checkpoint's.
    """

    def __init__(
        self, url: str, store: Store, config: ModelConfig, files: WeightFiles, expected: Digests | None = None
    ) -> None:
        self.url = url
        self.config = config
        self._store = store
        self._files = files
        self._expected = expected
        self._seen_blocks: set[int] = set()
        self._closing = weakref.finalize(self, store.close)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, those of the model and no others."""
        return tuple(self._files.infos)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the model: see tolbuild.checkpoint.fingerprint. The first use reads every byte."""
        return fingerprint(self.config, self._files, self.digests)

    @cached_property
    def digests(self) -> Digests:
        """Of all tensors. The first use reads every byte."""
        return digest_tensors(self._files)

    def tensor(self, name: str) -> Tensor:
        """A whole tensor in its stored type, values unchecked.

        Raises:
            ValueError: there is none of that name.
            StoreError: its file cannot be read or is shorter than its header says.
        """
        return self._files.tensor(name)

    def tensor_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` up to `stop` of a tensor in its stored type, read without the rest, values unchecked.

        Raises:
            ValueError: no such tensor, or the range is not within it.
            StoreError: its file cannot be read or is shorter than its header says.
        """
        return self._files.tensor_rows(name, start, stop)

    def embedding_rows(self, start: int, stop: int) -> Tensor:
        """Embeddings fp32 [stop - start, D] of token ids `start` up to `stop`.

        Raises:
            ValueError: ids beyond the vocabulary, or a value that is no finite number.
            IdentityError: not the embedding that is expected.
        """
        stored_ND = self.tensor_rows(EMBEDDING, start, stop)
        if self._expected is not None:
            self._compare_blocks(stored_ND, start, stop, self._expected)
        rows_ND = stored_ND.float()
        return check_finite(rows_ND, EMBEDDING, self.url, first_row=start)

    def memory_ffn(self, layer: int) -> MemoryFFN:
        """The network FFN_L(LN_L(E)) of a layer in fp32.

        Raises:
            ValueError: the model has no memory or no such layer, or a value that is no finite number.
            IdentityError: not the network that is expected.
        """
        config = self.config
        if not config.has_memory:
            raise ValueError(
                f"{self.url} is a {config.kind} model: its feed-forward networks are no functions of the token"
            )
        if not 0 <= layer < config.num_hidden_layers:
            raise ValueError(f"layer {layer} was asked for; {self.url} has {config.num_hidden_layers}")
        hidden, width = config.memory_intermediate_size, config.hidden_size
        gate_up_2KD = torch.empty(2 * hidden, width)
        for half, name in enumerate(("gate", "up")):
            gate_up_2KD[half * hidden : (half + 1) * hidden] = self._checked(layer, f"memory_mlp.{name}_proj.weight")
        return MemoryFFN(
            norm_weight_D=self._checked(layer, "memory_layernorm.weight"),
            norm_bias_D=self._checked(layer, "memory_layernorm.bias"),
            gate_up_2KD=gate_up_2KD,
            down_DK=self._checked(layer, "memory_mlp.down_proj.weight"),
            eps=config.layer_norm_eps,
        )

    def _checked(self, layer: int, suffix: str) -> Tensor:
        name = f"model.layers.{layer}.{suffix}"
        tensor = self.tensor(name)
        if self._expected is not None and not self._expected.holds(name, _bytes_of(tensor)):
            raise self._another(name)
        return check_finite(tensor.float(), name, self.url)

    def _compare_blocks(self, stored_ND: Tensor, start: int, stop: int, expected: Digests) -> None:
        """Blocks of the embedding that lie whole in rows `start` to `stop` and were not read before."""
        first, last = -(-start // BLOCK_ROWS), stop // BLOCK_ROWS
        if stop == self.config.vocab_size:
            last = -(-stop // BLOCK_ROWS)
        data = _bytes_of(stored_ND[first * BLOCK_ROWS - start :])
        parts = parts_of(data, BLOCK_ROWS * self._files.info(EMBEDDING).row_bytes)
        for block, part in zip(range(first, last), parts, strict=False):
            if block not in self._seen_blocks and not expected.holds_block(block, part):
                raise self._another(f"{EMBEDDING}, rows from {block * BLOCK_ROWS} on,")
            self._seen_blocks.add(block)

    def _another(self, name: str) -> IdentityError:
        return IdentityError(
            f"tensor {name} of {self.url} as {socket.gethostname()} reads it (in {self._store.url}) is not that of the "
            f"checkpoint which the plan was made from: it was replaced meanwhile, or this machine has another at that "
            "place; give all workers the same one and run again"
        )

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of tokenizer.json (needs the package tokenizers).

        Raises:
            ObjectNotFoundError: the checkpoint has none.
            FormatError: the file is no tokenizer.
        """
        from tokenizers import Tokenizer

        try:
            text = self._store.read("tokenizer.json").decode()
        except ObjectNotFoundError as error:
            raise ObjectNotFoundError(f"{self.url} has no tokenizer.json; copy it beside model.safetensors") from error
        try:
            return Tokenizer.from_str(text)
        except Exception as error:  # the package raises plain Exceptions
            raise FormatError(f"{self.url}/tokenizer.json is no tokenizer: {error}") from error

    def close(self) -> None:
        """Give back descriptors and connections; also happens when the object goes."""
        self._closing()


def _bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    flat: NDArray[np.uint8] = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat


def open_checkpoint(
    url: str | Path, *, credentials: Credentials | None = None, expected: Digests | None = None
) -> Checkpoint:
    """Open a folder of config.json, model.safetensors (or its shards and their index) and tokenizer.json.

    Only the config and the headers are read. `url` is a path, file://, s3://, memory://, what else fsspec reads
    (https://), or `builtin:tiny`, the trained checkpoint that comes with this package. `expected`: see Checkpoint.

    Raises:
        ValueError: the config has unknown or wrong keys, or a tensor is missing, unexpected, of a wrong shape or type:
            each is named with what was expected.
        FormatError: a file is truncated or damaged.
        ObjectNotFoundError: there is no checkpoint at that place; StoreError: the place cannot be read.
    """
    store = open_store(_builtin_folder(str(url)) if str(url).startswith(BUILTIN) else url, credentials)
    try:
        config = _read_config(store)
        files = WeightFiles.open(store)
        check_shapes(config, {name: info.shape for name, info in files.infos.items()}, str(url))
        for info in files.infos.values():
            check_dtype(TORCH_DTYPES[info.dtype], info.name, str(url))
    except BaseException:
        store.close()
        raise
    return Checkpoint(str(url), store, config, files, expected)


def load_model(checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32) -> MemoryLLM:
    """The whole model on the CPU, in evaluation mode, its weights converted to `dtype` one after another.

    Raises:
        ValueError: a tensor holds a value that is no finite number.
    """
    with torch.device("meta"):
        model = MemoryLLM(checkpoint.config)
    state = {name: check_finite(checkpoint.tensor(name).to(dtype), name, checkpoint.url) for name in model.state_dict()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def _builtin_folder(url: str) -> Path:
    assets = Path(__file__).parents[1] / "assets"
    name = url.removeprefix(BUILTIN)
    known = sorted(path.parent.name for path in assets.glob("*/config.json"))
    if name not in known:
        raise ValueError(
            f"{url!r} does not come with this package; it has {', '.join(BUILTIN + k for k in known) or 'none'}"
        )
    return assets / name


def _read_config(store: Store) -> ModelConfig:
    where = f"{store.url.rstrip('/')}/config.json"
    try:
        data = store.read("config.json")
    except ObjectNotFoundError as error:
        raise ObjectNotFoundError(f"no checkpoint at {store.url}: it has no config.json") from error
    try:
        values: Any = json.loads(data)
    except ValueError as error:
        raise FormatError(f"{where} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise FormatError(f"{where} is a JSON {type(values).__name__}; expected an object")
    config = _config_of(values, where)
    known = [str(dtype).removeprefix("torch.") for dtype in WEIGHT_DTYPES]
    if config.torch_dtype not in known:
        raise ValueError(f"{where}: torch_dtype is {config.torch_dtype!r}; expected one of {', '.join(known)}")
    return config


def _config_of(values: dict[str, Any], where: str) -> ModelConfig:
    try:
        return ModelConfig.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
