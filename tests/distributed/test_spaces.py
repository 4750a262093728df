"""Law 8 for the networks of every space: they resume from their state; two ranks are killed and resumed."""

import json
import signal
from pathlib import Path

import pytest
import torch

import stitchkit
from stitchkit.distributed import World
from stitchkit.engine.epochs import train_epochs
from stitchkit.engine.loop import Trainer
from stitchkit.engine.settings import EngineSettings
from stitchkit.engine.training_state import restore, training_state
from stitchkit.networks.weights import load_content
from stitchkit.training.objective import LabelLoss, Objective, Term
from stitchkit.training.task import StitchTask
from tests.distributed.forks import end, kill_once_there
from tests.distributed.pico_task import on_disk
from tests.distributed.ranks import run_on_two_ranks
from tests.distributed.subjects import BUSY, equal
from tests.support import FLAGS, SPACES, family_snnet, mostly_full

STATES = ("state_dict", "state_dict_ema", "optimizer", "epoch")
TRAINED = [family for family in SPACES if "headless" not in family]


class Task(StitchTask):
    """The routes in turn, from the last."""

    @property
    def num_routes(self):
        return max(self.network.space.ids) + 1

    @num_routes.setter
    def num_routes(self, _):
        """It would be 0 without a sampler."""

    def draw(self, step, rank):
        ids = [*self.network.space.ids]
        return (ids[-1 - step % len(ids)],)


def train(model, *, steps, start=None):
    """The checkpoints and the end of a training of so many steps, or of the rest of them from `start`."""
    size = model.input_size[-1]
    images = [torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(n)) for n in range(steps)]
    loader = type("Batches", (list,), {"dataset": None, "sampler": None})((x, torch.tensor([0, 3])) for x in images)
    trainer = Trainer(
        task=Task(model.train(), Objective(Term(LabelLoss(torch.nn.CrossEntropyLoss())))), loader=loader, folder=Path(),
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2), world=World(0, 1, torch.device("cpu")),
        settings=EngineSettings(seed=0, batch_size=2, model_ema=True, model_ema_decay=0.5, checkpoint_interval=2),
    )  # fmt: skip
    position, saved = None, []
    if start is not None:
        load_content(model, start, "file")
        position = restore(start, trainer, "file", otherwise="start again")
    save = lambda epoch, _, state: saved.append(on_disk(state))  # noqa: E731
    train_epochs(trainer, range(1), position, save=save, finish=lambda _: None)
    return saved, on_disk(training_state(trainer))


@pytest.mark.parametrize("family", mostly_full(TRAINED, quick=["NLC, 5 prefix tokens", "vits, two-way, of low rank"]))
def test_law_8_a_network_resumes_from_its_state(family):
    (start, *_), whole = train(family_snnet(family), steps=4)
    torch.manual_seed(9)
    _, resumed = train(stitchkit.create_snnet(SPACES[family]), steps=4, start=start)
    assert equal(resumed, whole)
    assert not equal(start["state_dict"], whole["state_dict"])


@pytest.mark.full
@pytest.mark.parametrize("family", ["NLC, 5 prefix tokens", "vits, two-way, of low rank"])
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
    for state in STATES:
        assert equal(one[state], other[state]), state
