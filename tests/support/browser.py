"""Headless Chromium, driven by Playwright, which fails a test whose page reports an error."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def find_chromium() -> str:
    """Return the path of Chromium: $PLLAVA_CHROMIUM, which must exist, or the one on the PATH; else skip the test."""
    given = os.environ.get("PLLAVA_CHROMIUM")
    if given:
        assert Path(given).exists(), f"PLLAVA_CHROMIUM names {given}, which does not exist"
        return given
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("Chromium is not installed (apt-get install chromium), and PLLAVA_CHROMIUM is not set")
    return found


@contextmanager
def open_browser(*options: str) -> Iterator[Browser]:
    """Start Chromium, with more of its command-line options."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=[*OPTIONS, *options])
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Browser, **options: Any) -> Iterator[Page]:
    """A page of a new context with Playwright's `options`; errors on the console or in a script fail the test."""
    context = browser.new_context(**options)
    page = context.new_page()
    errors = []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert not errors, errors


def screenshot(page: Page, name: str, folder: Path) -> Path:
    """Save what a page shows as NAME.png in $PLLAVA_SCREENSHOTS or else in `folder`."""
    path = Path(os.environ.get("PLLAVA_SCREENSHOTS", folder)) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path)
    return path
