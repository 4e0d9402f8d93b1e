"""As much of the W3C WebDriver protocol as a test of one page needs, over ChromeDriver."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1200,1000"
).split()


def why_no_browser() -> str | None:
    """Return why there is no browser, or None."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"no {program}: apt-get install chromium chromium-driver"
    return None


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Browser:
    """A headless Chromium; close it with `close`."""

    def __init__(self) -> None:
        port = free_port()
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._base = f"http://127.0.0.1:{port}"
        wait_for(lambda: self._ask("GET", "/status")["ready"], 60)
        options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={self._profile.name}"]}
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        self._base += "/session/" + self._ask("POST", "/session", capabilities=capabilities)["sessionId"]

    def _ask(self, method: str, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self._base + path, data, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)["value"]

    def open(self, address: str) -> None:
        """Go to a page."""
        self._ask("POST", "/url", url=address)

    def find(self, css: str) -> str:
        """Return an element's id."""
        return str(self._ask("POST", "/element", using="css selector", value=css)[ELEMENT])

    def type(self, css: str, text: str) -> None:
        """Type text into an element."""
        self._ask("POST", f"/element/{self.find(css)}/value", text=text)

    def click(self, css: str) -> None:
        """Click an element."""
        self._ask("POST", f"/element/{self.find(css)}/click")

    def run(self, script: str) -> Any:
        """Return what a script returns."""
        return self._ask("POST", "/execute/sync", script=script, args=[])

    def screenshot(self) -> str:
        """Return the window as a PNG in base64."""
        return str(self._ask("GET", "/screenshot"))

    def close(self) -> None:
        """End the browser and its driver."""
        try:
            self._ask("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(30)
            self._profile.cleanup()


def wait_for(condition: Any, seconds: float) -> Any:
    """Return the first true value of `condition`; errors before count as not yet.

    Raises:
        TimeoutError: there was none.
    """
    end = time.monotonic() + seconds
    last: Exception | None = None
    while time.monotonic() < end:
        try:
            if value := condition():
                return value
        except (OSError, KeyError) as error:
            last = error
        time.sleep(0.2)
    raise TimeoutError(f"still not so after {seconds} s") from last
