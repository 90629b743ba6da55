"""Every choice of a serving deployment, as one frozen dataclass: the command line and the Serve config file fill it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from tolbuild.config import ModelConfig
from tolserve.memory.node_config import check_mappable
from tolserve.openai_api.prompts import ModelInfo
from tolserve.tier_settings import TierSettings, option
from tolserve.transport.choose import TransportName
from tolserve.transport.security import Security

_SECURITY = tuple(field.name for field in fields(Security))
_OF_CACHES = {
    "cache_bytes",
    "cache_share",
    "cache_policy",
    "cache_counts",
    "cache_state",
    "host_cache_bytes",
    "speculative_rows",
}
_OF_MEMORY_NODES = {"replication", "keep", "transport", "memory_resource", *_SECURITY}
"""Settings that say nothing where there is no cache, or no memory node."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig(TierSettings):
    """One endpoint: the model, where its rows lie, how much of it runs, what a request may ask.

    Raises:
        ValueError: a value that no deployment can have, with the value and what it may be.
    """

    checkpoint: str
    """Checkpoint folder: a path, file://, s3:// or another URL, or builtin:tiny."""
    table: str | None = None
    """The table built from it. Left out: the rows are computed from the checkpoint and kept on the attention nodes."""
    table_version: int | None = None
    """Version of the table; the latest when left out."""
    model_name: str = ""
    """What requests call the model; the checkpoint's last path part when left out."""
    memory_nodes: int = 1
    """Partitions P of the table, each on memory nodes of its own; 0 keeps the whole table on every attention node."""
    replication: int = 1
    """Memory nodes that hold each partition; with 2 the loss of one fails no request."""
    attention_replicas: int = 1
    """Attention nodes: each holds the model and computes requests of its own."""
    host: str = "127.0.0.1"
    """Interface that the endpoint listens on; 0.0.0.0 takes requests from other machines."""
    port: int = 8000
    """Port of the endpoint; 0 takes a free one."""
    gateway_node: str = ""
    """IP of the cluster node that the endpoint is on; any when left out (`tolserve.run` takes its own)."""
    memory_resource: str = ""
    """Custom Ray resource of which each memory node takes 1; copies of a partition are then on different hosts."""
    attention_resource: str = ""
    """The same for attention nodes, beside their CPUs and GPUs."""
    gateway_resource: str = ""
    """The same for the endpoint, in the place of `gateway_node`."""
    api_key: str | None = field(default=None, repr=False)
    """What clients must send as `Authorization: Bearer`; nothing is asked for when left out."""
    api_key_file: str | None = None
    """A file whose first line is the key, which then stands on no command line."""
    cache_bytes: int | None = None
    """Bytes of the row cache of an attention node; `cache_share` decides when left out."""
    cache_share: float = 0.1
    """Row cache of an attention node as a share of the table as stored; 0 caches nothing."""
    cache_policy: Literal["lru", "frequency", "s3fifo"] = "s3fifo"
    """What the cache keeps: rows used again, which text read once does not flush (s3fifo), rows used last (lru), or for
    good those of the most frequent tokens in `cache_counts` (frequency)."""
    cache_counts: str | None = None
    """How often each token occurs: V counts as .npy or a JSON list, at a path or URL; they fill the cache at start."""
    cache_state: str | None = None
    """File at a path or URL that nodes save their cache's token ids to, now and then and at the end, and start from."""
    prefix_cache: bool = True
    """Keep the keys and values of prompts in the KV cache for later ones that begin with the same tokens."""
    speculative_rows: int = 0
    """Request the rows of so many likely next tokens a sequence before the next token is known; 0 does not."""
    pinned_bands: int = 0
    """The first bands, kept on the attention nodes for every token and never requested."""
    alpha: float = 1.0
    """Factor on the memory term of every layer."""
    drop_layers: tuple[int, ...] = ()
    """Layers served without their memory term."""
    verify_rows: bool = False
    """Compare sampled rows with the checkpoint's networks while serving; /metrics has tol_row_mismatches."""
    num_gpus: float = 0.0
    """GPUs of an attention node; 0 computes on the CPU."""
    num_cpus: float = 1.0
    """CPUs that an attention node claims of the cluster; its kernels use so many threads."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and activations; auto is bfloat16 on a GPU, else float32."""
    max_num_seqs: int = 64
    """Sequences in a batch of one attention node."""
    max_num_batched_tokens: int = 1024
    """Tokens computed in one step."""
    max_model_len: int | None = None
    """Longest prompt plus output; the model's positions when left out."""
    kv_cache_tokens: int = 65536
    """Tokens that the KV cache of one attention node holds."""
    max_queue: int = 256
    """Generations that may wait beyond those in the batches; more are answered with 429."""
    deadline_s: float = 30.0
    """How long a request waits for a node that is down before it is answered with 503."""
    transport: TransportName = "tcp"
    """How rows travel from memory to attention nodes: by TCP, Arrow Flight, or Ray actor calls."""
    tls_cert: str | None = None
    """PEM certificate chain of the nodes, for mutual TLS between them; the files are at these paths on every node."""
    tls_key: str | None = None
    """PEM private key of that certificate."""
    tls_ca: str | None = None
    """PEM certificates of the authorities that sign the nodes' certificates."""
    tls_name: str = ""
    """Name in the nodes' certificates; left out, each carries the address that it is reached by."""
    token_file: str | None = None
    """A file whose first line is the token that memory nodes ask for."""
    follow_versions: float = 0.0
    """Go to a newer table version when there is one, looking every so many seconds; 0 stays with the first."""
    max_attention_replicas: int | None = None
    """As many attention nodes as this where requests wait, and `attention_replicas` at least; as many when left out."""
    scale_down_after_s: float = 60.0
    """How long fewer attention nodes must have been enough before one ends; it finishes what it computes first."""

    def __post_init__(self) -> None:
        least = {
            "memory_nodes": 0,
            "replication": 1,
            "attention_replicas": 1,
            "port": 0,
            "pinned_bands": 0,
            "speculative_rows": 0,
            "num_gpus": 0,
            "num_cpus": 0,
            "max_num_seqs": 1,
            "max_num_batched_tokens": 1,
            "kv_cache_tokens": 32,
            "max_queue": 0,
        }
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ValueError(f"{option(name)} is {getattr(self, name)}; it must be at least {bound}")
        if not self.checkpoint.strip():
            raise ValueError("--checkpoint is empty; give a path or a URL")
        if not self.deadline_s > 0:
            raise ValueError(f"--deadline-s is {self.deadline_s}; it must be positive")
        if not 0.0 <= self.cache_share <= 1.0:
            raise ValueError(f"--cache-share is {self.cache_share}; it must be in [0, 1]")
        if self.cache_bytes is not None and self.cache_bytes < 0:
            raise ValueError(f"--cache-bytes is {self.cache_bytes}; it must not be negative")
        if self.port > 65535:
            raise ValueError(f"--port is {self.port}; it must be in [0, 65535]")
        if self.cache_policy == "frequency" and self.cache_counts is None:
            raise ValueError("--cache-policy frequency keeps the most frequent tokens: give --cache-counts")
        if self.gateway_node and self.gateway_resource:
            raise ValueError("--gateway-node and --gateway-resource are both given; give one of them")
        self._check_key()
        is_open = self.security.is_open
        if self.transport == "ray" and not is_open:
            raise ValueError("--transport ray has no TLS or token of its own: use RAY_USE_TLS, or --transport tcp")
        self._check_table()
        self.check_tiers(self.deadline_s)
        self._check_changes()

    def _check_changes(self) -> None:
        """What may change while it serves."""
        if not self.follow_versions >= 0 or not self.scale_down_after_s >= 0:
            given = self.follow_versions, self.scale_down_after_s
            raise ValueError(f"--follow-versions and --scale-down-after-s are {given}; they must not be negative")
        if self.follow_versions and (self.table is None or self.table_version is not None):
            raise ValueError("--follow-versions follows the latest version: give --table, and no --table-version")
        most = self.max_attention_replicas
        if most is not None and most < self.attention_replicas:
            raise ValueError(
                f"--max-attention-replicas is {most}, below --attention-replicas, {self.attention_replicas}"
            )

    def _check_key(self) -> None:
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("--api-key and --api-key-file are both given; give one of them")
        if self.api_key is not None and not (self.api_key and self.api_key.isascii()):
            raise ValueError("--api-key must be ASCII text that is not empty; leave it out to ask for none")

    def _check_table(self) -> None:
        """Refuse what would have no effect."""
        if self.table is None and self.table_version is not None:
            raise ValueError("--table-version without --table: give the table's URL")
        if self.table is None and self.memory_nodes > 1:
            raise ValueError(f"--memory-nodes is {self.memory_nodes} without --table: give the table's URL")
        if self.num_partitions:
            if self.keep == "mapped":
                check_mappable(str(self.table))
            return
        if self.rows == "store" and self.table is not None:
            if self.memory_nodes > 1:
                raise ValueError(f"--memory-nodes is {self.memory_nodes} with --rows store, which has none")
            self.refuse(_OF_MEMORY_NODES, "with --rows store, which has no memory nodes")
            return
        cause = "without --table: give its URL" if self.table is None else "with --memory-nodes 0: give 1 or more"
        self.refuse(_OF_MEMORY_NODES | _OF_CACHES | {"rows"}, cause)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ServeConfig:
        """The configuration that a config file's `args` state.

        Raises:
            ValueError: an unknown setting, by name, or a value that does not fit.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown settings: {', '.join(unknown)}; known ones: {', '.join(sorted(known))}")
        if "checkpoint" not in values:
            raise ValueError("the setting 'checkpoint' is missing")
        try:
            return TypeAdapter(cls).validate_python(dict(values))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = "".join(f"{part}: " for part in fault["loc"])
            raise ValueError(f"{where}{fault['msg'].removeprefix('Value error, ')}") from error

    @property
    def name(self) -> str:
        """What requests call the model."""
        return self.model_name or self.checkpoint.rstrip("/").replace(":", "/").rsplit("/", 1)[-1]

    @property
    def security(self) -> Security:
        """How memory nodes and their clients prove who they are."""
        return Security(**{name: getattr(self, name) for name in _SECURITY})

    @property
    def num_partitions(self) -> int:
        """Partitions on memory nodes; 0 where attention nodes have the rows or read them themselves."""
        return 0 if self.table is None or self.rows == "store" else self.memory_nodes

    @property
    def max_open(self) -> int:
        """Generations that may run or wait at once."""
        return (self.max_attention_replicas or self.attention_replicas) * self.max_num_seqs + self.max_queue

    @property
    def device(self) -> str:
        """Torch device of an attention node."""
        return "cuda" if self.num_gpus > 0 else "cpu"


def settled(config: ServeConfig) -> ServeConfig:
    """`config` as other processes can use it: the key read from its file, paths made absolute.

    Raises:
        ValueError: the key's file cannot be read, or its first line is no key.
    """
    changes: dict[str, Any] = {}
    for name in ("checkpoint", "table", "cache_counts", "cache_state"):
        url = getattr(config, name)
        if url and not urlsplit(url).scheme:
            changes[name] = str(Path(url).absolute())
    for name in ("tls_cert", "tls_key", "tls_ca", "token_file"):
        if path := getattr(config, name):
            changes[name] = str(Path(path).absolute())
    if config.api_key_file is not None:
        changes |= {"api_key": _first_line(config.api_key_file), "api_key_file": None}
    return replace(config, **changes)


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().partition("\n")[0].strip()
    except (OSError, ValueError) as error:
        raise ValueError(f"--api-key-file {path} cannot be read: {error}") from error


def max_model_len(config: ServeConfig, shape: ModelConfig) -> int:
    """Longest prompt plus output: what was asked for, or what model and KV cache allow.

    Raises:
        ValueError: more was asked for than the model has positions.
    """
    positions = shape.max_position_embeddings
    if config.max_model_len is None:
        return min(positions, config.kv_cache_tokens)
    if config.max_model_len > positions:
        raise ValueError(f"--max-model-len is {config.max_model_len}; the model has {positions} positions")
    return config.max_model_len


def model_info(config: ServeConfig, shape: ModelConfig) -> ModelInfo:
    """What the API tells and checks of the model."""
    start = shape.bos_token_id if shape.bos_token_id is not None else shape.eos_token_id
    return ModelInfo(
        name=config.name,
        vocab_size=shape.vocab_size,
        max_model_len=max_model_len(config, shape),
        start_token_id=start,
        created=int(time.time()),
    )
