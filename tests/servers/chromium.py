"""Chromium without a window."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver

from tests.databases import unavailable
from tests.host import BROWSER

_OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync --window-size=1280,1000"
)


@contextmanager
def open_browser(folder: Path, *arguments: str) -> Iterator[webdriver.Chrome]:
    """Start a browser that does not say that it is headless: such browsers are bots.

    :param folder: where its profile is written.
    :param arguments: more options of the command line.
    """
    driver = shutil.which("chromedriver")
    if driver is None:
        unavailable("There is no chromedriver: install Debian's chromium and chromium-driver.")
    options = webdriver.ChromeOptions()
    for argument in (*_OPTIONS.split(), f"--user-agent={BROWSER}", f"--user-data-dir={folder / 'profile'}", *arguments):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def set_screen(browser: webdriver.Chrome, width: int, scheme: str, *, height: int = 900) -> None:
    """Change the size of the screen, in pixels, and the colours that its user prefers.

    :param scheme: ``light`` or ``dark``.
    """
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
