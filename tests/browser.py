"""A real headless browser for tests: Debian's chromium with software rendering, through playwright."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

ARGUMENTS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox", "--headless"]
ARGUMENTS += ["--disable-background-networking", "--no-first-run"]


@contextmanager
def open_page(width: int = 900, height: int = 640) -> Iterator:
    """A page of a fresh browser; the test is skipped, with the reason, where there is no browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here")
    with playwright.sync_playwright() as client:
        browser = client.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(120_000)
        yield page
        browser.close()


def picture(page) -> np.ndarray:
    """What the page shows, (H,W,3) in [0,1]."""
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), np.float32) / 255


def wait_for(page, condition, seconds: float = 120.0):
    """What `condition()` says once it is true; the page goes on living meanwhile."""
    for _ in range(int(seconds * 5)):
        found = condition()
        if found:
            return found
        page.wait_for_timeout(200)
    raise AssertionError(f"not within {seconds} s: {condition.__name__}")
