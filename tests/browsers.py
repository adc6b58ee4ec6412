"""Headless Chromium, driven by Selenium; where it is absent, the tests that ask for it skip."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optional import needs

PATIENCE = 60.0
"""Seconds that a page is given on a busy machine."""


class Browser:
    """One window. ``driver`` is Selenium's."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.resize(1400)

    def resize(self, width: int, height: int = 1000) -> None:
        """The inside of the window, in CSS pixels: below 500 a real window cannot be made."""
        shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)

    def prefer(self, scheme: str) -> None:
        """Light or dark paper."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def open(self, page: Path) -> None:
        """Show a file, and wait until it says that it is ready."""
        self.driver.get(page.as_uri())
        self.wait(lambda: self.run("return document.documentElement.dataset.ready"), "ready")

    def run(self, script: str, *given: Any) -> Any:
        """What a piece of JavaScript returns."""
        return self.driver.execute_script(script, *given)

    def all(self, css: str) -> list[Any]:
        """Every element of a CSS selector."""
        return self.driver.find_elements("css selector", css)

    def one(self, css: str) -> Any:
        """The element of a CSS selector."""
        (found,) = self.all(css)
        return found

    def press(self, element: Any) -> None:
        """Click where the element is, brought into view."""
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def wait(self, until: Callable[[], Any], what: str) -> Any:
        """What ``until`` gives once that is true."""
        end = time.monotonic() + PATIENCE
        while not (found := until()):
            assert time.monotonic() < end, f"not {what} after {PATIENCE} seconds: {self.said()}"
            time.sleep(0.05)
        return found

    def unreadable(self) -> tuple[Any, ...]:
        """What ``layout.js`` finds: pixels by which the page scrolls sideways, elements outside of
        the window, of small letters, of faint ones."""
        return tuple(self.run((Path(__file__).parent / "layout.js").read_text("utf-8")))

    def said(self) -> list[str]:
        """What the console has been told since the last call, of any level."""
        return [f"{e['level']}: {e['message']}" for e in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Skips where there is no Chromium with its driver."""
    webdriver = needs("selenium.webdriver")
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in programs.items() if path is None]:
        pytest.skip(f"no {' and no '.join(missing)}: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_argument("--headless=new")
    options.add_argument("--disable-dev-shm-usage")  # containers have little
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # root has none
    service = webdriver.ChromeService(programs["chromedriver"])
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
