"""What all workers of a pytest run share: images and trained pico networks, each made once."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from stitchkit.cli import main
from tests.support import FLAGS, write_config, write_images

Factory = pytest.TempPathFactory


def shared_folder(factory: Factory, name: str, make: Callable[[Path], object], *key: object) -> Path:
    """The folder that `make` fills, once in a pytest run; tests only read it, and copy what they change.

    Args:
        name: Name of the folder.
        key: What decides the content, such as the flags of a command; each key has a folder of its own.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # whose folder is within that of the run
        base = base.parent
    place = base / "once" / hashlib.sha256(repr((name, key)).encode()).hexdigest()[:12]
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / "lock"):
        folder, done = place / name, place / "done"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def shared_images(factory: Factory) -> Path:
    """The image folder of the fixture `images`."""
    return shared_folder(factory, "images", write_images)


def trained_snnet(factory: Factory, *flags: str, **changes: object) -> Path:
    """A folder with a pico SN-Net that `train` trained on `images`: `config.json`, and the run in `run`.

    Args:
        flags: Further flags of the command, behind `FLAGS`.
        changes: Changes of the pico configuration.
    """
    images = shared_images(factory)

    def make(folder: Path) -> None:
        config = write_config(folder / "config.json", **changes)
        place = ["--output", str(folder), "--experiment", "run"]
        assert main(["train", str(images), "--stitch_config", str(config), *FLAGS, *flags, *place]) == 0

    return shared_folder(factory, "trained", make, flags, changes)
