"""A headless Chromium with one page, spoken to over the pipe of its own debugging protocol: no driver is needed."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featcache.formats.web.browser import find_chromium

_FLAGS = (
    "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-default-apps", "--mute-audio", "--hide-scrollbars", "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--no-sandbox", "--force-device-scale-factor=1",
    "--disable-dev-shm-usage", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip
_PATIENCE = 30.0


class Page:
    """The page of a running Chromium. `problems`: what its scripts, or its policy, complained of."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in = to_browser, from_browser
        self._buffer, self._number = b"", 0
        self.problems: list[str] = []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = None
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._send(f"{domain}.enable")

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + _PATIENCE
        while True:
            answer = self._read(end)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return dict(answer["result"])
            self._note(answer)

    def _read(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(end - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser has ended"
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(text))

    def _note(self, event: dict[str, Any]) -> None:
        values = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(values["exceptionDetails"])[:600])
        elif event.get("method") == "Log.entryAdded" and values["entry"]["level"] == "error":
            self.problems.append(f"{values['entry']['text']} {values['entry'].get('url', '')}")

    def open(self, url: str, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme])
        self._send("Page.navigate", url=url)

    def before_scripts(self, script: str) -> None:
        """Let a script run in each page that is opened from now on, before its own."""
        self._send("Page.addScriptToEvaluateOnNewDocument", source=script)

    def run(self, script: str) -> Any:
        """Return the value of an expression, awaited, in the page."""
        answer = self._send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 20.0) -> Any:
        """Return the value of an expression as soon as it is a true one."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, (script, self.run("document.body.innerText")[:1500], self.problems)
            time.sleep(0.03)
        return value

    def key(self, key: str, *, control: bool = False, shift: bool = False) -> None:
        """Press a key as a person does."""
        modifiers = 2 * control + 8 * shift
        code = ord(key.upper()) if len(key) == 1 else {"Enter": 13, "Escape": 27}.get(key, 0)
        text = {"text": key} if len(key) == 1 and not control else {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self._send(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, modifiers=modifiers,
                **(text if kind == "keyDown" else {}),
            )  # fmt: skip

    def hold(self, selector: str) -> None:
        """Press the mouse on an element, and keep it pressed until `release`."""
        self._mouse("mousePressed", *self._middle(selector))

    def release(self, selector: str) -> None:
        """Let the mouse go on an element."""
        self._mouse("mouseReleased", *self._middle(selector))

    def drag(self, selector: str, corners: list[tuple[float, float]]) -> None:
        """Draw on an element with the mouse; `corners`: shares of its width and height, in [0, 1]."""
        left, top, width, height = self.run(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)}); one.scrollIntoView();"
            " const box = one.getBoundingClientRect(); return [box.left, box.top, box.width, box.height]; })()"
        )
        places = [(left + x * width, top + y * height) for x, y in corners]
        self._mouse("mousePressed", *places[0])
        for place in places[1:]:
            self._mouse("mouseMoved", *place)
        self._mouse("mouseReleased", *places[-1])

    def _middle(self, selector: str) -> tuple[float, float]:
        x, y = self.run(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)}); one.scrollIntoView();"
            " const box = one.getBoundingClientRect();"
            " return [box.left + box.width / 2, box.top + box.height / 2]; })()"
        )
        return x, y

    def _mouse(self, kind: str, x: float, y: float) -> None:
        self._send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def accessible(self) -> list[dict[str, Any]]:
        """Return what a screen reader is told of: each element's role, name, and whether it can have the focus."""
        nodes = self._send("Accessibility.getFullAXTree")["nodes"]
        found = []
        for node in nodes:
            if node.get("ignored"):
                continue
            properties = {one["name"]: one["value"].get("value") for one in node.get("properties", [])}
            name = node.get("name", {}).get("value", "")
            found.append({"role": node["role"]["value"], "name": name, "focusable": properties.get("focusable", False)})
        return found

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._send("Page.captureScreenshot", format="png")["data"]))


def _pipe() -> tuple[int, int]:
    """Return both ends of a pipe, numbered beyond the two that the protocol asks for."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


@contextmanager
def chromium() -> Iterator[Page]:
    """Give the page of a browser, which is ended after the block."""
    program = find_chromium()
    assert program is not None
    read_here, browser_writes = _pipe()
    browser_reads, write_here = _pipe()
    with tempfile.TemporaryDirectory(prefix="featcache-chromium-", ignore_cleanup_errors=True) as profile:

        def connect() -> None:  # the protocol's own numbers
            os.dup2(browser_reads, 3)
            os.dup2(browser_writes, 4)

        process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, close_fds=False,
            preexec_fn=connect, pass_fds=(),
        )  # fmt: skip
        os.close(browser_reads)
        os.close(browser_writes)
        try:
            yield Page(write_here, read_here)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(read_here)
            os.close(write_here)
