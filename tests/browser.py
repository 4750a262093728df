"""A real browser for the tests of pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    """The path of a Chromium: that of the variable STITCHKIT_CHROMIUM, or the first one found."""
    return os.environ.get("STITCHKIT_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def open_page(address: str) -> Iterator[tuple[Any, list[str]]]:
    """A page in a headless Chromium, and the errors in it so far; skips where there is none.

    Everything that the page asks for elsewhere than at its own address counts as gone wrong.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if (path := find_browser()) is None:
        pytest.skip("there is no Chromium; install one, or name it in STITCHKIT_CHROMIUM")
    wrong: list[str] = []
    own = "/".join(address.split("/")[:3])
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("request", lambda asked: None if asked.url.startswith(own) else wrong.append(asked.url))
            page.goto(address)
            yield page, wrong
        finally:
            browser.close()
