"""Unbroken runs, which those that are stopped, killed and resumed must end like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from stitchkit.cli import main
from tests.distributed.forks import end, start
from tests.distributed.subjects import SUBJECTS, Subject


class Unbroken(Protocol):
    """Gives the folder of a run that nothing stopped."""

    def __call__(self, subject: Subject, *flags: str, ranks: int = 1) -> Path: ...


@pytest.fixture(scope="session")
def unbroken(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """The folder of an unbroken run of a subject with these flags; each is run once for all tests."""
    folder, found = tmp_path_factory.mktemp("unbroken"), dict[object, Path]()

    def run(subject: Subject, *flags: str, ranks: int = 1) -> Path:
        place = folder / f"{len(found)}"
        if (subject, flags, ranks) not in found:
            command = [*subject.start(images, folder), *flags, *subject.place(folder, place.name)]
            assert end(start(command, ranks=ranks)) == [0] * ranks
            found[subject, flags, ranks] = place
        return found[subject, flags, ranks]

    return run


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    """An SN-Net, then a job."""
    return SUBJECTS[request.param]


@pytest.fixture
def trained(subject: Subject, images: Path, tmp_path: Path) -> Callable[..., int]:
    """Train the subject under a name, on other images where they are given; gives the exit status."""

    def run(name: str, *flags: object, data: Path = images) -> int:
        return main([*map(str, [*subject.start(data, tmp_path), *subject.place(tmp_path, name), *flags])])

    return run
