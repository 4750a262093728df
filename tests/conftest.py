"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.once import shared_images
from tests.support import SHARED


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Pico models are slower on several threads, and sums keep one order on one; in commands that tests start too."""
    before = torch.get_num_threads()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure latencies in a moment and take them for reliable, where a test does not depend on them."""
    for name, value in {"_ROUNDS": 2, "_SECONDS": 0.0, "_LIMIT_SECONDS": 0.0, "LIMIT_PERCENT": float("inf")}.items():
        monkeypatch.setattr(f"stitchkit.measure.latency.{name}", value)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with 4 classes, 64 images to train and 20 to validate; a test that changes images copies them."""
    return shared_images(tmp_path_factory)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Published figures and reference logits, which are not part of the project."""
    if not SHARED.is_dir():
        pytest.skip("the published references are not beside this checkout")
    return SHARED
