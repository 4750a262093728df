"""A real browser for the tests of pages, and a page that `stitchkit serve` shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    """The path of a Chromium: that of the variable STITCHKIT_CHROMIUM, or the first one found."""
    return os.environ.get("STITCHKIT_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def running_browser() -> Iterator[Any]:
    """A headless Chromium; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if (path := find_browser()) is None:
        pytest.skip("there is no Chromium; install one, or name it in STITCHKIT_CHROMIUM")
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(address: str, browser: Any = None) -> Iterator[tuple[Any, list[str]]]:
    """A page in a browser, by default one of its own, and the errors in the page so far.

    Everything that the page asks for elsewhere than at its own address counts as gone wrong.
    """
    wrong: list[str] = []
    own = "/".join(address.split("/")[:3])
    with running_browser() if browser is None else nullcontext(browser) as opened:
        page = opened.new_page(viewport={"width": 1280, "height": 900})
        try:
            page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("request", lambda asked: None if asked.url.startswith(own) else wrong.append(asked.url))
            page.goto(address)
            yield page, wrong
        finally:
            page.close()


@contextmanager
def serving(flags: Iterable[object], folder: Path = ROOT) -> Iterator[str]:
    """`stitchkit serve` in a process of its own; gives its address once it is up."""
    command = [sys.executable, "-W", "ignore", "-m", "stitchkit", "serve", *map(str, flags)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stdout:
                if found := re.search(r"the page is (http://127\.0\.0\.1:\d+)", line):
                    yield found[1]
                    break
            else:
                pytest.fail(process.stderr.read())
        finally:
            process.terminate()
