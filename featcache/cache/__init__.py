"""The feature cache: a manifest, a store and the samples that refer to its rows; copied, listed, read by torch."""

from featcache.cache.cache import FeatureCache, open_cache

__all__ = ["FeatureCache", "open_cache"]
