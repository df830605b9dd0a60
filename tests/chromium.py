"""A headless Chromium, told what to do over a pipe (DevTools protocol), and pictures of a page by it.

To make those of the docs: `.venv/bin/python tests/chromium.py report.html docs/report`.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 60.0
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # it needs rights that containers do not give; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
)
PICTURES = {"desktop": (1280, 1420, "light"), "phone": (360, 1420, "light"), "dark": (1280, 1420, "dark")}
"""Name -> width, height, colour scheme."""


def found_program() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """One open page. Between `open` and the next, `events` holds what the browser reported of it."""

    def __init__(self, sent: int, heard: int) -> None:
        self.sent, self.heard, self.rest, self.count = sent, heard, b"", 0
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self.count += 1
        session = {} if self.session is None else {"sessionId": self.session}
        message = {"id": self.count, "method": method, "params": parameters, **session}
        os.write(self.sent, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def open(self, page: Path, width: int, height: int = 800, scheme: str = "light", media: str = "screen") -> None:
        """Show a file and wait until it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, which can be written as JSON."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            code = {"Tab": 9, "Enter": 13}[key]
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def complaints(self) -> list[str]:
        """Errors, warnings and console output since the page was opened."""
        found = []
        for event in self.events:
            about = event.get("params", {})
            if event.get("method") == "Log.entryAdded":
                found.append(about["entry"]["text"])
            elif event.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                found.append(json.dumps(about))
        return found

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened."""
        sent = (event for event in self.events if event.get("method") == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_S
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.heard], [], [], max(end - time.monotonic(), 0))
            assert ready, f"Chromium said nothing for {PATIENCE_S:g} s"
            part = os.read(self.heard, 1 << 20)
            assert part, "Chromium ended"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)


@contextlib.contextmanager
def chromium(program: str) -> Iterator[Chromium]:
    """Start one with a profile of its own, and end it."""
    pipes = [os.pipe(), os.pipe()]
    # Not 3 or 4, which is what Chromium calls them: one redirection would close the other.
    read, write = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (pipes[0][0], pipes[1][1]))
    os.close(pipes[0][0])
    os.close(pipes[1][1])
    sent, heard = pipes[0][1], pipes[1][0]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{read} 4>&{write}', program, *FLAGS, f"--user-data-dir={folder}"]
        process = subprocess.Popen(command, pass_fds=(read, write), stderr=subprocess.DEVNULL)
        os.close(read)
        os.close(write)
        try:
            yield Chromium(sent, heard)
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE_S)
            os.close(sent)
            os.close(heard)


def main(page: Path, folder: Path) -> None:
    program = found_program()
    assert program, f"no Chromium here (looked for {', '.join(NAMES)}): apt-get install chromium"
    folder.mkdir(parents=True, exist_ok=True)
    with chromium(program) as browser:
        for name, (width, height, scheme) in PICTURES.items():
            browser.open(page, width, height, scheme)
            path = folder / f"{name}.png"
            browser.screenshot(path)
            with Image.open(path) as image:
                few = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)  # half the bytes
            few.save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
