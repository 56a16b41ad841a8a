"""The feature cache: a manifest, a store and the samples that refer to its rows; copied, listed, read by torch.

`StoreReader` is what `FeatureCache.reader` gives, so that who reads a cache needs to know no store.
"""

from featcache.cache.cache import FeatureCache, borrow_cache, open_cache
from featcache.store import StoreReader

__all__ = ["FeatureCache", "StoreReader", "borrow_cache", "open_cache"]
