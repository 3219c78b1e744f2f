"""A real browser that a test drives: Chromium without a window, by its own protocol over a pipe."""

import base64
import contextlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.helpers.waiting import wait_until

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")


class Browser:
    """One page of a browser.

    Args:
        send, receive: file descriptors of the pipes, on which messages are JSON that ends in a zero byte.
    """

    def __init__(self, send: int, receive: int) -> None:
        self.send, self.receive, self.unread, self.asked, self.session = send, receive, b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the protocol.

        Raises:
            RuntimeError: the browser answers with an error.
        """
        self.asked += 1
        message = {"id": self.asked, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.send, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.asked:
            pass  # an event
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.unread:
            read = os.read(self.receive, 1 << 20)
            if not read:
                raise RuntimeError("the browser has ended")
            self.unread += read
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def open(self, url: str, width: int = 1280, height: int = 1000) -> None:
        """Open an address in a window of so many CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url="about:blank")  # an address that differs behind the # alone is not loaded again
        self.call("Page.navigate", url=url)

    def value(self, script: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def text(self) -> str:
        """The text that can be seen, as it is laid out: nothing that is hidden or folded away."""
        return self.value("document.body ? document.body.innerText : ''")

    def seen(self, *wanted: str) -> str:
        """The visible text, once everything that is wanted is in it.

        Raises:
            TimeoutError: it does not appear; with the text that is there.
        """
        try:
            wait_until(lambda: all(word in self.text() for word in wanted), f"{wanted} in the browser", 90, every=0.3)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; to be seen: {self.text()[:2000]!r}") from None
        return self.text()

    def screenshot(self, path: Path) -> None:
        """A PNG of the whole page."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, ended at the end."""
    assert BROWSER
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    command = shlex.join([BROWSER, *OPTIONS, f"--user-data-dir={profile}"])
    running = subprocess.Popen(
        [
            "bash",
            "-c",
            f"exec {command} 3<&{their_in} 4>&{their_out}",
        ],  # the descriptors that the browser reads and writes
        pass_fds=(their_in, their_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(their_in)
    os.close(their_out)
    try:
        yield Browser(our_out, our_in)
    finally:
        running.terminate()
        running.wait(30)
        os.close(our_out)
        os.close(our_in)
