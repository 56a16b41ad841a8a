"""The feature cache: a manifest, a store and the samples that refer to its rows; copied, listed, read by torch."""

from featcache.cache.cache import FeatureCache, borrow_cache, open_cache

__all__ = ["FeatureCache", "borrow_cache", "open_cache"]
