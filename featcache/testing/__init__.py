"""Contract tests for those who add a part of their own: import a class, say how yours is made, let pytest run the laws.

    featcache.testing.store      `StoreContract`: what every store of feature rows must do
    featcache.testing.engines    `EngineContract`: what every inference engine must do
    featcache.testing.heads      `HeadContract`: what every kind of head must do
    featcache.testing.formats    `TargetContract`: what every device format must do

These modules import pytest, and are for tests: nothing else in the package imports them.
"""
