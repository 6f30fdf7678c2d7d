"""Headless Chromium through its driver, by the W3C WebDriver protocol: no package is needed."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's key of an element
QUIET = (  # else the browser itself looks for its maker's hosts
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--window-size=1360,1000", "--disable-domain-reliability"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
)


def missing() -> str | None:
    """What is not installed here; None where all is."""
    lacks = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(lacks)} not installed" if lacks else None


class Browser:
    """One tab; what it takes for a microphone plays the WAV file `spoken` once."""

    def __init__(self, driver: str, profile: Path, spoken: Path | None):
        self.driver = driver
        words = [*QUIET, f"--user-data-dir={profile}"]
        if spoken is not None:
            words.append(f"--use-file-for-fake-audio-capture={spoken}%noloop")
        options = {"binary": shutil.which("chromium"), "args": words}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL"}}
        made = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}}, "")
        self.session = f"/session/{made['sessionId']}"

    def ask(self, method: str, path: str, body: Any = None, session: str | None = None) -> Any:
        where = self.driver + (self.session if session is None else session) + path
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(where, data, {"Content-Type": "application/json"})
        request.method = method
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            said = json.load(error)["value"]["message"].partition("\n")[0]
            raise AssertionError(f"{method} {path}: {said}") from error

    def open(self, url: str) -> None:
        self.ask("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector: str) -> str:
        found = self.ask("POST", "/element", {"using": "css selector", "value": selector})
        return str(found[ELEMENT])

    def click(self, selector: str) -> None:
        self.ask("POST", f"/element/{self.find(selector)}/click", {})

    def give_file(self, selector: str, path: Path) -> None:
        self.ask("POST", f"/element/{self.find(selector)}/value", {"text": str(path)})

    def text(self, selector: str) -> str:
        return str(
            self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
        )

    def until(self, true: Callable[[], Any], limit_s: float = 60.0) -> Any:
        """What `true` gives once it is anything; raises AssertionError where it never is."""
        end = time.monotonic() + limit_s
        while not (found := true()):
            assert time.monotonic() < end, f"never came; the page says: {self.text('body')[:2000]}"
            time.sleep(0.1)
        return found

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.ask("GET", "/screenshot")))

    def devtools(self, command: str, arguments: dict[str, Any]) -> None:
        """Give Chromium a command of its own protocol."""
        self.ask("POST", "/goog/cdp/execute", {"cmd": command, "params": arguments})

    def addresses(self) -> set[str]:
        """Every address that the page has asked for since the last time."""
        events = self.ask("POST", "/se/log", {"type": "performance"})
        told = [json.loads(event["message"])["message"] for event in events]
        return {
            one["params"].get("request", one["params"])["url"]
            for one in told
            if one["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated")
        }


@contextmanager
def browser(profile: Path, spoken: Path | None = None) -> Iterator[Browser]:
    """A browser with a new profile, gone when the block ends; `spoken`: see Browser."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    made: Browser | None = None
    try:
        end = time.monotonic() + 30
        while made is None:
            try:
                made = Browser(f"http://127.0.0.1:{port}", profile, spoken)
            except ConnectionError:
                assert time.monotonic() < end, "chromedriver does not answer"
                time.sleep(0.1)
            except urllib.error.URLError as error:
                if not isinstance(error.reason, ConnectionError) or time.monotonic() > end:
                    raise
                time.sleep(0.1)
        made.open("about:blank")
        made.addresses()  # of the browser's own first page
        yield made
    finally:
        if made is not None:
            made.ask("DELETE", "")
        driver.terminate()
        driver.wait()
