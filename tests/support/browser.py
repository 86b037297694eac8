"""Use the report's page in a real browser, like a person."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@contextmanager
def browser() -> Iterator[Any]:
    """Start Chromium without a window; skips the test if it, its driver or selenium is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not CHROMIUM or not DRIVER:
        pytest.skip("Chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield started
    started.quit()


class Reader:
    """Use the page like a person: `js` runs a script in it, `press` types keys, `until` waits for a script's result."""

    def __init__(self, driver: Any, page: Path) -> None:
        self.driver, self.page = driver, page

    def open(self, fragment: str = "", width: int = 1280, height: int = 900, scheme: str = "light") -> Reader:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get("about:blank")
        self.logs("browser"), self.logs("performance")
        self.driver.get(self.page.as_uri() + fragment)
        self.until("return document.documentElement.dataset.ready")
        self.until("return document.querySelector('#detail .pair')")
        return self

    def logs(self, kind: str) -> list[dict[str, Any]]:
        return self.driver.get_log(kind)

    def js(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def until(self, script: str) -> Any:
        deadline = time.monotonic() + 20
        while not (found := self.js(script)):
            assert time.monotonic() < deadline, f"never came true: {script}"
            time.sleep(0.01)
        return found

    def press(self, keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(keys)

    def shown_id(self) -> str:
        return self.js("return document.getElementById('detail').dataset.id")

    def count(self) -> str:
        return self.js("return document.getElementById('count').textContent")

    def pick(self, name: str, text: str) -> int:
        """Choose the option of a filter whose text contains `text`; return the number in the option."""
        return self.js(
            "const select = document.getElementById(arguments[0]);"
            "const option = [...select.options].find((o) => o.text.includes(arguments[1]));"
            "select.value = option.value; select.dispatchEvent(new Event('change'));"
            "return Number(option.text.split(': ').pop().replaceAll(',', ''))",
            name,
            text,
        )

    def search(self, text: str) -> None:
        self.js(
            "const field = document.getElementById('search'); field.value = arguments[0];"
            "field.dispatchEvent(new Event('input'))",
            text,
        )


def problems_said(reader: Reader) -> list[str]:
    return [entry["message"] for entry in reader.logs("browser")]


def requested(reader: Reader) -> list[str]:
    events = (json.loads(entry["message"])["message"] for entry in reader.logs("performance"))
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith("data:")]
