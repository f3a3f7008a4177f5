"""A real browser for the tests; tests that are marked ``NEEDED`` skip where there is none."""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")
NEEDED = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and CHROMEDRIVER),
        reason="no chromium or chromedriver: apt-get install chromium chromium-driver",
    ),
]
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1600,1200",
)


class Browser:
    """A headless Chromium.

    Args:
        profile: a folder of its own.
        logged: keep a log of the network, for ``requests``.
    """

    def __init__(self, profile: Path, *, logged: bool = False) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        if logged:
            options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
        self.driver.set_page_load_timeout(60)

    def open(self, address: str) -> None:
        self.driver.get(address)

    def find(self, path: str) -> list:
        """Visible elements of an XPath."""
        from selenium.common.exceptions import StaleElementReferenceException

        try:
            return [element for element in self.driver.find_elements("xpath", path) if element.is_displayed()]
        except StaleElementReferenceException:
            return []

    def see(self, *texts: str, seconds: float = 30.0) -> str:
        """The page's text, once all of these are in it."""
        from selenium.common.exceptions import StaleElementReferenceException

        deadline = time.monotonic() + seconds
        shown = ""
        while time.monotonic() < deadline:
            try:
                shown = self.driver.find_element("tag name", "body").text
            except StaleElementReferenceException:
                continue
            if all(text in shown for text in texts):
                return shown
            time.sleep(0.2)
        raise AssertionError(f"not on the page after {seconds:g} s: {[t for t in texts if t not in shown]}\n{shown}")

    def click(self, path: str, seconds: float = 30.0) -> None:
        """Click the first visible element of an XPath as soon as nothing covers it."""
        from selenium.common.exceptions import WebDriverException

        deadline = time.monotonic() + seconds
        while True:
            try:
                if found := self.find(path):
                    found[0].click()
                    return
            except WebDriverException:
                pass
            if time.monotonic() > deadline:
                raise AssertionError(f"cannot be clicked: {path}\n{self.see('')}")
            time.sleep(0.2)

    def press(self, path: str, text: str, seconds: float = 30.0) -> None:
        """Click where the first visible element of an XPath lies until a text is gone: an open menu takes one click."""
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver import ActionChains

        deadline = time.monotonic() + seconds
        while text in (shown := self.see("")):
            assert time.monotonic() < deadline, f"still there after {seconds:g} s: {text}\n{shown}"
            with contextlib.suppress(IndexError, WebDriverException):
                ActionChains(self.driver).click(self.find(path)[0]).perform()
            again = time.monotonic() + 3
            while text in self.see("") and time.monotonic() < again:
                time.sleep(0.2)

    def shot(self, name: str) -> None:
        """A screenshot, where UI_SCREENSHOTS names a folder for them."""
        if folder := os.environ.get("UI_SCREENSHOTS"):
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last call, as the browser's network log has them."""
        found = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [each["params"]["request"]["url"] for each in found if each["method"] == "Network.requestWillBeSent"]
