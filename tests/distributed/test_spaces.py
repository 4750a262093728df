"""Law 8 for traced networks and two-way routes: two ranks are killed and resumed, and end as two that were not."""

import json
import signal

import pytest
import torch

from tests.distributed.forks import end, kill_once_there
from tests.distributed.ranks import run_on_two_ranks
from tests.distributed.subjects import BUSY, equal
from tests.networks import TRACED
from tests.support import FLAGS, SPACES, mostly_full

TRAINED = [family for family in SPACES if (family in TRACED or "two-way" in family) and "headless" not in family]


@pytest.mark.parametrize("family", mostly_full(TRAINED, quick=["NLC, 5 prefix tokens", "vits, two-way, of low rank"]))
def test_law_8_two_ranks_killed_and_resumed(family, images, tmp_path):
    config = tmp_path / "space.json"
    config.write_text(json.dumps(SPACES[family]))
    common = ["train", images, "--stitch_config", config, *FLAGS, *BUSY, "--epochs", "3", "--output", tmp_path]
    last = tmp_path / "killed/last.pth.tar"
    killed = kill_once_there([*common, "--experiment", "killed"], last, ranks=2)
    assert end(killed) == [-signal.SIGKILL] * 2
    assert torch.load(last, weights_only=True)["epoch"] < 2
    run_on_two_ranks([[*common, "--experiment", "killed", "--resume", last], [*common, "--experiment", "unbroken"]])
    one, other = (torch.load(tmp_path / name / "last.pth.tar", weights_only=True) for name in ("killed", "unbroken"))
    for state in ("state_dict", "state_dict_ema", "optimizer", "epoch"):
        assert equal(one[state], other[state]), state
