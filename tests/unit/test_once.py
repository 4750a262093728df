"""What workers share is made once, and again where making it failed."""

import multiprocessing

import pytest

from tests.once import shared_folder


def make(base, attempts):
    """As a worker: note the attempt in a file, and fill the folder."""

    class Factory:
        def getbasetemp(self):
            return base / "worker"

    def fill(folder):
        with attempts.open("a") as file:
            file.write("made\n")
        (folder / "net").write_text("weights")

    assert (shared_folder(Factory(), "trained", fill, "--lr", 1) / "net").read_text() == "weights"


def test_workers_make_a_folder_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=make, args=(tmp_path, tmp_path / "attempts")) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "attempts").read_text() == "made\n"
    [folder] = (tmp_path / "once").glob("*/trained")
    assert (folder / "net").exists(), "beside the folders of the workers"


def test_what_failed_is_made_again_and_each_key_has_a_folder(tmp_path_factory):
    def fail(folder):
        (folder / "half").touch()
        raise ValueError("no space")

    with pytest.raises(ValueError, match="no space"):
        shared_folder(tmp_path_factory, "failing", fail, 1)
    folder = shared_folder(tmp_path_factory, "failing", lambda folder: (folder / "whole").touch(), 1)
    assert [file.name for file in folder.iterdir()] == ["whole"]
    assert shared_folder(tmp_path_factory, "failing", fail, 1) == folder
    assert shared_folder(tmp_path_factory, "failing", lambda folder: None, 2) != folder
