"""A headless Chromium that opens reports, and what it had to complain of."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LAPTOP, PHONE = (1440, 900), (390, 844)


def chromium() -> Iterator[Any]:
    """A browser of playwright, for a fixture. Where there is none the test is skipped with the reason, except in CI."""
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        reason = (
            "no Chromium on this machine: apt-get install chromium, or name one in the environment variable CHROMIUM"
        )
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page, what it wrote on the console as an error or a warning, and what it asked a network or a disk for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def clean(self) -> bool:
        """Whether it complained of nothing and asked for nothing but itself."""
        return not self.complaints and len([url for url in self.requests if not url.startswith("data:")]) == 1

    def overflow(self) -> int:
        """How many pixels it is wider than its window."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        return width

    def milliseconds(self) -> float:
        """From the start of loading to the end of drawing."""
        found: float = self.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        return found


@contextmanager
def opened(browser: Any, file: Path, size: tuple[int, int] = LAPTOP, scheme: str = "light") -> Iterator[Opened]:
    """The page in `file`, drawn."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, accept_downloads=True
    )
    page = context.new_page()
    found = Opened(page=page)
    page.on("console", lambda message: found.complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("request", lambda request: found.requests.append(request.url))
    page.goto(file.resolve().as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    page.wait_for_function("performance.getEntriesByType('navigation')[0].loadEventEnd > 0")
    yield found
    context.close()
