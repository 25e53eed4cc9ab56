"""Draw a page of TensorBoard as PNG with headless Chromium, driven by its DevTools: the page needs real time to load.

    tensorboard --logdir outputs --port 6006 &
    python benchmarks/screenshot.py 'http://127.0.0.1:6006/?darkMode=false#custom_scalars' seeds.png --seconds 20

It needs ``chromium`` and the package ``websockets``.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

STARTING = 30.0  # [s] for Chromium


class Page:
    """A page of a browser, by its DevTools.

    Args:
        socket: that its address answers on.
    """

    def __init__(self, socket: ClientConnection):
        self.socket, self.numbers = socket, itertools.count(1)

    def ask(self, method: str, **values: Any) -> dict[str, Any]:
        """Call a method; returns its result."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": values}))
        while True:
            said = json.loads(self.socket.recv())
            if said.get("id") == number:
                if "error" in said:
                    raise RuntimeError(said["error"])
                return said["result"]

    def run(self, program: str) -> Any:
        """Run JavaScript in the page; returns its value."""
        return self.ask("Runtime.evaluate", expression=program, returnByValue=True, awaitPromise=True)["result"].get("value")

    def picture(self) -> bytes:
        """Return what the page shows, as PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot")["data"])


@contextmanager
def opened(width: int, height: int) -> Iterator[Page]:
    """Yield an empty page of a headless browser, which ends with the block.

    Args:
        width: of the page [pixels].
        height: of the page [pixels].

    Raises:
        RuntimeError: if there is no browser, or it does not start.
    """
    if (program := shutil.which("chromium")) is None:
        raise RuntimeError("there is no chromium on the path")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-unsafe-swiftshader"]
        places = [f"--user-data-dir={profile}", "--remote-debugging-port=0", f"--window-size={width},{height}", "about:blank"]
        quiet = subprocess.DEVNULL
        browser = subprocess.Popen([program, *flags, *places], stdout=quiet, stderr=quiet)
        try:
            file, deadline = Path(profile, "DevToolsActivePort"), time.monotonic() + STARTING
            while not (file.exists() and file.read_text().count("\n")):
                if time.monotonic() > deadline or browser.poll() is not None:
                    raise RuntimeError(f"{program} does not start")
                time.sleep(0.1)
            port = file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                (found,) = (each for each in json.load(answer) if each["type"] == "page")
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            with connect(found["webSocketDebuggerUrl"], max_size=2**27) as socket:
                page = Page(socket)
                page.ask("Emulation.setDeviceMetricsOverride", **metrics)
                yield page
        finally:
            browser.kill()
            browser.wait()


def main() -> None:
    """Open, wait, run, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("path", type=Path)
    parser.add_argument("--size", default="1400x900", help="of the page [pixels]")
    parser.add_argument("--seconds", type=float, default=20.0, help="to wait for the page, and after each program")
    parser.add_argument("--run", action="append", default=[], help="JavaScript to run in the page before it is drawn")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    with opened(width, height) as page:
        page.ask("Page.navigate", url=options.address)
        time.sleep(options.seconds)
        for program in options.run:
            print(page.run(program))
            time.sleep(options.seconds)
        options.path.write_bytes(page.picture())


if __name__ == "__main__":
    main()
