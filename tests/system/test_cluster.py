"""Addresses and numbers of a Ray cluster: what cannot be is refused in one line, within seconds."""

from __future__ import annotations

import http.server
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from featcache.errors import DependencyError, InputError
from featcache.system.cluster import ClusterSettings, cluster


@pytest.mark.parametrize("address", ["", "nowhere", "a b:1", "host:port", "host:", ":6379", "host:6379/x", "a\nb:1"])
def test_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="must be named by HOST:PORT, 'auto' or 'local'"):
        ClusterSettings(address)


def test_address_of_rays_client_says_what_to_name() -> None:
    with pytest.raises(InputError, match="name its head, port 6379"), cluster("ray://head:10001"):
        pass


@pytest.mark.ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "127.0.0.1:99999"])
def test_address_where_nothing_answers_is_refused(address: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'featcache[ray]'")
    started = time.monotonic()
    with pytest.raises(InputError, match=rf"must answer at '{address}'"), cluster(address):
        pass
    assert time.monotonic() - started < 15


@pytest.mark.ray
def test_server_of_another_kind_is_refused() -> None:
    """A web server answers, but not as the head of a cluster does."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'featcache[ray]'")

    class Silent(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match="another kind of server"), cluster(f"127.0.0.1:{server.server_port}"):
            pass
        server.shutdown()


def test_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DependencyError, match=r"pip install 'featcache\[ray\]'"), cluster("local"):
        pass


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("local", 0, 0.0), "actors must be at least 1, got 0"),
        (("local", None, 1.5), "whole number, or a part of one between 0 and 1, got 1.5"),
        (("local", None, -1.0), "got -1.0"),
        (("local", None, float("nan")), "got nan"),
        ((None, 2, 0.0), "need a cluster to be in: name it with --ray"),
        ((None, None, 1.0), "need a cluster to be in"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(arguments: tuple[Any, ...], what: str) -> None:
    with pytest.raises(InputError, match=what):
        ClusterSettings.of(*arguments)


def test_no_cluster_is_none() -> None:
    assert ClusterSettings.of(None, None, 0.0) is None


@pytest.mark.parametrize(
    ("machines", "settings", "expected"),
    [
        ([{"CPU": 2.0}], ClusterSettings("local"), (1, 2)),
        ([{"CPU": 8.0}, {"CPU": 4.0}, {}], ClusterSettings("local"), (3, 4)),
        ([{"CPU": 96.0}], ClusterSettings("local"), (3, 32)),
        ([{"CPU": 8.0}, {"CPU": 4.0}], ClusterSettings("local", actors=2), (2, 4)),
        ([{"CPU": 8.0}, {"CPU": 4.0}], ClusterSettings("local", actors=1), (1, 8)),
        ([{"CPU": 2.0}], ClusterSettings("local", actors=16), (16, 1)),
        ([], ClusterSettings("local", actors=16), (16, 1)),
        ([{}], ClusterSettings("local"), (1, 1)),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}], ClusterSettings("local", gpus_per_actor=0.5), (6, 1)),
        ([{"CPU": 8.0, "GPU": 2.0}], ClusterSettings("local", gpus_per_actor=2.0), (1, 1)),
    ],
)
def test_work_is_placed_by_what_the_machines_have(
    machines: list[dict[str, float]], settings: ClusterSettings, expected: tuple[int, int]
) -> None:
    """An actor for each machine, of the smallest one's processors; more or fewer where that is asked for."""
    nodes = [{"Alive": True, "Resources": machine} for machine in machines]
    nodes.append({"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}})
    assert settings.actors_and_processors(SimpleNamespace(nodes=lambda: nodes)) == expected
