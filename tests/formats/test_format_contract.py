"""Every format of ours does what `TargetContract` says."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from featcache.formats import Target, find_target, target_names
from featcache.testing.formats import TargetContract


@pytest.mark.target
class TestInstalledTargets(TargetContract):
    """Formats whose tools are not on this machine are skipped with what they need."""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _installed_tools(cls) -> Iterator[None]:
        """Look for tools where the user installed them, not in the tests' private folder."""
        with pytest.MonkeyPatch.context() as patch:
            if "featcache-tests-home" in os.environ.get("FEATCACHE_HOME", ""):
                patch.delenv("FEATCACHE_HOME")
            yield

    @pytest.fixture(scope="class", params=target_names())
    @classmethod
    def target(cls, request: pytest.FixtureRequest) -> Target:
        return find_target(request.param)
