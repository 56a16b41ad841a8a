"""Who may ask the studio, what for, and how much at once; what no client may do to it."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st
from studio_client import Client, open_studio, studio_process


@pytest.fixture(scope="module")
def client(coloured: Path, tmp_path_factory: pytest.TempPathFactory):
    import shutil

    workspace = tmp_path_factory.mktemp("border") / "work"
    workspace.mkdir()
    shutil.copytree(coloured / "caches", workspace / "caches")
    with open_studio(workspace) as opened:
        opened.json("/api/datasets")
        yield opened


def test_every_answer_has_the_headers_that_close_the_page(client: Client) -> None:
    for path in ("/", "/api/datasets", "/assets/main.js", "/nothing", "/api/datasets/1/samples/0/picture"):
        headers = client.get_with_headers(path)[2]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'self'; frame-ancestors 'none'")
        assert "unsafe" not in headers["content-security-policy"]


def test_a_foreign_host_or_page_is_refused(client: Client) -> None:
    own = f"127.0.0.1:{client.port}"
    for host, origin, status in (
        ("evil.example", None, 403), (own, "http://evil.example", 403), (own, f"http://{own}", 200), (own, None, 200),
        (own, "null", 403), ("[", None, 403),
    ):  # fmt: skip
        headers = {"Host": host, **({"Origin": origin} if origin else {})}
        assert client.request("GET", "/api/datasets", headers=headers)[0] == status, (host, origin)
        if status == 403:
            assert client.request("POST", "/api/jobs", b"{}", headers)[0] == 403


def test_nothing_of_the_page_comes_from_elsewhere() -> None:
    import featcache.serve.studio.page as page

    here = Path(page.__file__).parent
    for file in [*(here / "assets").rglob("*.*"), *(here / "frame").rglob("*.*")]:
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text, file
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert forbidden not in text, (file, forbidden)


def test_both_languages_have_every_text_and_the_page_uses_no_other() -> None:
    import re

    import featcache.serve.studio.page as page

    assets = Path(page.__file__).parent / "assets"
    english, chinese = (json.loads((assets / "texts" / f"{name}.json").read_text("utf-8")) for name in ("en", "zh"))
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", chinese[key])), key
    used = {
        key for file in assets.glob("*.js") for key in re.findall(r"\bt\(\"([a-z0-9_]+)\"", file.read_text("utf-8"))
    }
    assert used <= english.keys()


def test_another_address_needs_a_token(coloured: Path, tmp_path: Path) -> None:
    with studio_process(tmp_path, "--host", "0.0.0.0") as (_process, client):
        assert client.get("/api/datasets")[0] == 401
        assert client.get("/")[0] == 401
        assert client.get("/?token=wrong")[0] == 401
    with open_studio(tmp_path, token="s3cret&") as client:
        assert client.request("GET", "/api/datasets", headers={"Authorization": "Bearer s3cret&"})[0] == 200
        status, _, headers = client.get_with_headers("/?token=s3cret%26")
        assert (status, headers["location"]) == (303, "/")
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie
        pair = cookie.partition(";")[0]
        assert client.request("GET", "/", headers={"Cookie": pair})[0] == 200
        foreign = {"Cookie": pair, "Origin": "http://evil.example"}
        assert client.request("POST", "/api/jobs", b"{}", foreign)[0] == 401


def test_from_elsewhere_only_the_workspace_is_read(tmp_path: Path) -> None:
    from serving import on_a_thread
    from studio_client import client_of

    from featcache.serve.studio.server import studio

    (tmp_path / "outside").mkdir()
    work = tmp_path / "work"
    with on_a_thread(lambda ready: studio(work, host="0.0.0.0", port=0, token="t", ready=ready)) as started:
        client = client_of(started.url)
        body = json.dumps({"kind": "build", "name": "x", "images": str(tmp_path / "outside")})
        headers = {"Authorization": "Bearer t", "Content-Type": "application/json"}
        status, answer, _ = client.request("POST", "/api/jobs", body, headers)
        assert (status, b"must lie in the workspace" in answer) == (400, True)
        for encoder in (str(tmp_path / "outside"), "../outside"):
            body = json.dumps({"kind": "build", "name": "x", "input": "text", "backbone": encoder})
            status, answer, _ = client.request("POST", "/api/jobs", body, headers)
            assert (status, b"an encoder must lie in the workspace" in answer) == (400, True)
        body = json.dumps({"kind": "build", "name": "x", "weights": "../outside"})
        status, answer, _ = client.request("POST", "/api/jobs", body, headers)
        assert (status, b"weights must lie in the workspace" in answer) == (400, True)


def test_class_names_are_text_and_nothing_else(client: Client) -> None:
    (entry,) = client.json("/api/datasets")
    address = f"/api/datasets/{entry['id']}/classes"
    for name in ("<script>alert(1)</script>", "__proto__", "../x", "constructor", "猫", "a,b;c"):
        assert client.send(address, name=name)[0] == 200
    for name in ("", " ", "a\u202eb", "a\nb", " a", "x" * 101, "\0"):
        status, answer = client.send(address, name=name)
        assert (status, "a class must have a name" in answer["error"]) == (400, True), name
    assert client.send(address, name="x" * 2000)[0] == 400
    assert client.post(address, b'{"name": "\\ud800"}', {"Content-Type": "application/json"})[0] == 400


def test_an_upload_that_is_cut_leaves_nothing(client: Client, tmp_path: Path) -> None:
    with open_studio(tmp_path / "work") as own:
        with socket.create_connection(("127.0.0.1", own.port)) as raw:
            raw.sendall(
                b"PUT /api/images/mine/file?path=a/b.png HTTP/1.1\r\n"
                b"Host: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nhalf"
            )
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert own.json("/api/jobs") == []
    assert list((tmp_path / "work" / "images").rglob("*")) == []  # no folder either


def test_bodies_are_bounded(client: Client) -> None:
    big = b'{"samples": [' + b"1," * 9_000_000 + b"1]}"
    try:
        status, answer = client.post("/api/datasets/1/samples", big, {"Content-Type": "application/json"})
        assert (status, "at most" in answer["error"]) == (413, True)
    except ConnectionError:
        pass  # the server has closed before it was all sent
    assert client.get("/api/datasets")[0] == 200


def test_events_tell_of_labels_and_of_the_head(client: Client) -> None:
    (entry,) = client.json("/api/datasets")
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=10)
    connection.request("GET", "/api/events")
    stream = connection.getresponse()
    assert stream.getheader("content-type", "").startswith("text/event-stream")
    stream.readline()
    client.send(f"/api/datasets/{entry['id']}/classes", name="seen")
    client.label(entry["id"], [0], "seen")
    missing = {"classes", "labels", "head"}
    while missing:  # or the time of the connection is up
        missing -= {stream.readline().decode().removeprefix("event: ").strip()}
    connection.close()


ANY = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**40), 2**70), st.floats(), st.text(max_size=20),
    st.lists(st.integers(-5, 200), max_size=4), st.dictionaries(st.text(max_size=5), st.integers()),
)  # fmt: skip


def _operations(document: dict) -> list[tuple[str, str, dict]]:
    return [
        (verb, path, operation)
        for path, verbs in sorted(document["paths"].items())
        for verb, operation in sorted(verbs.items())
        if path != "/api/events"
    ]


@hypothesis.settings(max_examples=150, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(data=st.data())
def test_whatever_is_asked_is_no_fault_of_the_server(client: Client, data: st.DataObject) -> None:
    """Paths, queries and bodies out of the description, and out of nowhere: never a 5xx, every refusal one line."""
    from urllib.parse import quote

    document = json.loads(client.get("/openapi.json")[1])
    verb, path, operation = data.draw(st.sampled_from(_operations(document)))
    values = {}
    queries = []
    for parameter in operation.get("parameters", []):
        value = data.draw(
            st.one_of(st.integers(-1, 95).map(str), st.text(max_size=12), st.sampled_from(["1", "train"]))
        )
        if parameter["in"] == "path":
            values[parameter["name"]] = quote(value, safe="", errors="replace") or "0"
        elif data.draw(st.booleans()):
            queries.append(f"{parameter['name']}={quote(value, safe='', errors='replace')}")
    address = path.format(**values) + (f"?{'&'.join(queries)}" if queries else "")
    body = None
    if "requestBody" in operation:
        names = ["samples", "label", "revision", "threshold", "name", "kind", "dataset", "formats", "l2", "images"]
        fixed = {"kind": st.sampled_from(["ship", "build", "x"]), "images": st.just("/nowhere/at/all")}
        chosen = data.draw(st.lists(st.sampled_from(names), unique=True))
        made = {name: data.draw(fixed.get(name, ANY)) for name in chosen}
        body = data.draw(st.one_of(st.just(json.dumps(made).encode()), st.binary(max_size=30)))
        if "/zip" in path or "/file" in path:
            body = data.draw(st.binary(max_size=40))
    status, answer, headers = client.request(
        verb.upper(), address, body, {"Content-Type": "application/json"} if body is not None else {}
    )
    assert status < 500 or (status == 503 and "retry-after" in headers), (verb, address, body, answer)
    if status >= 400:
        assert list(json.loads(answer)) == ["error"]
        assert len(json.loads(answer)["error"].splitlines()) == 1
