"""The table format: arrays of codes whose rows a reader finds by arithmetic, and manifests that name them.

A leaf: nothing here knows of models, torch or Ray. `open_table` reads; `write_shard`, `finish_table`, `publish` write.
"""

from tolbuild.table.arrays import ArrayRef, ObjectSum
from tolbuild.table.coding import RowCoding
from tolbuild.table.errors import (
    FormatError,
    IdentityError,
    ObjectExistsError,
    StoreError,
    TableConflictError,
    TableCorruptError,
    TableNotFoundError,
    ToLError,
)
from tolbuild.table.layout import BLOCK_ROWS, RowLayout, ShardedLayout
from tolbuild.table.manifest import Band, LayerStats, Manifest
from tolbuild.table.parquet import ParquetLayout
from tolbuild.table.publish import latest_version, list_versions, publish, read_manifest
from tolbuild.table.reader import Table, open_table
from tolbuild.table.receipts import LayerTally, ShardReceipt, finished_shards
from tolbuild.table.spec import BandSpec, TableSpec
from tolbuild.table.store import Credentials, Store, open_store
from tolbuild.table.writer import LayerArrays, finish_table, write_shard

__all__ = [
    "BLOCK_ROWS",
    "ArrayRef",
    "Band",
    "BandSpec",
    "Credentials",
    "FormatError",
    "IdentityError",
    "LayerArrays",
    "LayerStats",
    "LayerTally",
    "Manifest",
    "ObjectExistsError",
    "ObjectSum",
    "ParquetLayout",
    "RowCoding",
    "RowLayout",
    "ShardReceipt",
    "ShardedLayout",
    "Store",
    "StoreError",
    "Table",
    "TableConflictError",
    "TableCorruptError",
    "TableNotFoundError",
    "TableSpec",
    "ToLError",
    "finish_table",
    "finished_shards",
    "latest_version",
    "list_versions",
    "open_store",
    "open_table",
    "publish",
    "read_manifest",
    "write_shard",
]
