"""The feature store: rows of one or more named columns, keyed by 32-byte digests, kept on disk or in memory.

A store knows nothing of images. It is `lmdb` (one file, transactional), `zarr` (a legal Zarr v3 group of uncompressed
chunks) or, for tests, in memory; nothing outside this package knows which.
"""

from featcache.store.interface import (
    KEY_BYTES,
    Column,
    FeatureStore,
    Keys,
    Rows,
    StoreReader,
    StoreWriter,
    Values,
    VerifyReport,
)  # fmt: skip
from featcache.store.opening import check_kind_at, create_store, hold_store, open_store
from featcache.store.settings import DEFAULT_SETTINGS, StoreSettings

__all__ = [
    "DEFAULT_SETTINGS", "KEY_BYTES", "Column", "FeatureStore", "Keys", "Rows", "StoreReader", "StoreSettings",
    "StoreWriter", "Values", "VerifyReport", "check_kind_at", "create_store", "hold_store", "open_store",
]  # fmt: skip
