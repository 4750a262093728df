"""The frame of a run: its folder, what it may overwrite, and what it resumes from."""

import pytest
import torch.distributed as dist

from stitchkit.engine.checkpoint_files import CheckpointFiles
from stitchkit.engine.checkpoint_schema import check, each, like, number, or_none, whole
from stitchkit.engine.recovery import check_unused, entered, find_resume
from stitchkit.errors import InputError


@pytest.fixture
def files(tmp_path):
    return CheckpointFiles(tmp_path, newest="last.pth", previous="previous.pth", kept="epoch-{}.pth")


def test_a_folder_is_entered_by_one_run_and_leaves_nothing_behind(tmp_path):
    lock = tmp_path / "run/.train.lock"
    with entered(lock, "cpu", flag="-o") as world:
        assert (world.rank, world.size) == (0, 1)
        assert lock.exists()
    assert not lock.parent.exists(), "a new folder without files is removed"
    assert not dist.is_initialized()


def test_a_process_group_of_the_caller_stays(tmp_path):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with entered(tmp_path / "run/.train.lock", "cpu", flag="-o") as world:
            assert (world.rank, world.size) == (0, 1)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_a_folder_that_cannot_be_made_is_named_with_its_flag(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"cannot be created: .*; choose another -o"),
        entered(tmp_path / "file/run/.train.lock", "cpu", flag="-o"),
    ):
        pass
    assert not dist.is_initialized()


def test_any_checkpoint_protects_a_folder_from_another_run(files, tmp_path):
    check_unused(files, None, flag="-o")
    (tmp_path / "epoch-3.pth").touch()
    for resume in (None, "elsewhere/epoch-3.pth"):
        with pytest.raises(InputError, match=r"already contains a run, whose checkpoint is '.*epoch-3.pth'; .* -o"):
            check_unused(files, resume, flag="-o")
    check_unused(files, str(tmp_path / "epoch-3.pth"), flag="-o")


def test_auto_needs_a_checkpoint_where_nothing_is_trained(files, tmp_path):
    with entered(tmp_path / ".lock", "cpu", flag="-o") as world:
        assert find_resume("auto", files, world) == (None, False)
        assert find_resume("given.pth", files, world, only="test") == ("given.pth", False)
        with pytest.raises(InputError, match="contains no checkpoint to test; name one with --resume FILE"):
            find_resume("auto", files, world, only="test")


def test_a_schema_is_an_example_with_rules_where_values_change():
    own = {"name": "a", "betas": [0.9, 0.99], "step": 3, "size": None}
    schema = like(own, {"step": whole(0)})
    check({**own, "step": 7}, schema, "state")
    for key, value in (("name", "b"), ("betas", [0.9]), ("step", -1), ("size", 1)):
        with pytest.raises(InputError, match=rf"^state\.{key}"):
            check({**own, key: value}, schema, "state")
    rows = each({"loss": or_none(number())})
    check([{"loss": None}, {"loss": 1}], rows, "rows")
    with pytest.raises(InputError, match=r"rows\[1\]\.loss is nan, not a finite number"):
        check([{"loss": 1.0}, {"loss": float("nan")}], rows, "rows")
