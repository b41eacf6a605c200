"""A real browser for pages, where one is installed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Browser:
    """Headless Chromium that writes down its console and what it asks the network for."""

    def __init__(self, chromium: str, chromedriver: str) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(chromedriver)
        self.driver = webdriver.Chrome(options=options, service=service)

    def open(self, path: Path, *, width: int = 1280, dark: bool = False) -> None:
        self.console()
        self.requests()
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.driver.get(path.resolve().as_uri())

    def command(self, name: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        """Result of the script; a refresh that waits for typing to end is waited for."""
        return self.driver.execute_script(script, *arguments)

    def settle(self) -> None:
        self.driver.execute_async_script("setTimeout(arguments[0], 250)")

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent.trim())",
            selector,
        )
        return found

    def click(self, selector: str, number: int = 0) -> None:
        self.run("document.querySelectorAll(arguments[0])[arguments[1]].click()", selector, number)

    def choose(self, selector: str, value: str) -> None:
        """Fill in a field as a person would have: value, then the event that says so."""
        self.run(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "for (const n of ['input', 'change']) e.dispatchEvent(new Event(n, {bubbles: true}))",
            selector,
            value,
        )
        self.settle()

    def console(self) -> list[str]:
        """What stands in the console since it was asked for last."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def requests(self) -> list[str]:
        """Addresses that were asked for since this was asked last, those within a page left out."""
        entries = self.driver.get_log("performance")  # type: ignore[no-untyped-call]
        events = [json.loads(entry["message"])["message"] for entry in entries]
        urls = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith("data:")]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium and its driver (Debian: apt install chromium chromium-driver); skips without."""
    pytest.importorskip("selenium", reason="selenium drives the browser")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("no chromium and chromedriver are installed to open pages in")
    made = Browser(chromium, chromedriver)
    yield made
    made.driver.quit()
