"""A checkpoint that does not fit to the last key is refused in one line, before anything of it is used."""

import io
import itertools
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.train.checkpoint import resume
from stitchkit.assembly.train.job import job_paths, open_job
from stitchkit.cli import main
from stitchkit.distributed import World, init_world
from stitchkit.engine import checkpoint_files
from stitchkit.errors import InputError
from stitchkit.networks.weights import _content
from stitchkit.settings.flags import resolve
from stitchkit.training.checkpoint import Checkpoints, load_weights, restore
from stitchkit.training.run import TrainRun
from stitchkit.training.session import open_session
from stitchkit.training.train import _prepare
from tests.damage import damages
from tests.jobs import job_config, write_job
from tests.support import FLAGS, write_config

pytestmark = pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")

# What does no harm: what a run may have or not, where things lay, and what a job only reports.
FREE = re.compile(
    r"classes: (missing|empty)|(input_size|image): missing|within: (missing|nothing)|history(\.\d+: missing|: empty)"
    r"|optimizer\.state(\.\d+: missing|: empty)|stitch_config\.(source|anchors\.\d+\.(label|checkpoint)).*"
    r"|stitch_config\.(anchors\.\d+\.kwargs\.(img_size|num_classes).*|(stitch|nearest).*: missing)"
    r"|within.*\.(sums(\.\d+: missing|: empty)|buffers: empty|window\.losses: a tensor of three)"
    r"|rows.*|config.*"
)
# One damaged file in so many is tried, always the same ones.
EACH = [pytest.param(401, id="some"), pytest.param(23, id="many", marks=pytest.mark.full)]


def damaged(content, each):
    """Every so many-th damaged checkpoint, as it comes from a file."""
    for what, worse in itertools.islice(damages(content), 0, None, each):
        file = io.BytesIO()
        torch.save(worse, file)
        file.seek(0)
        yield what, file


def refusal(use, file):
    try:
        use(_content(file, Path("damaged.pth.tar")))
    except InputError as error:
        return str(error)
    return None


def assert_refused(files, use):
    """Each file is refused in one line, except those that do no harm; none ends in anything else."""
    count, accepted = 0, []
    for what, file in files:
        count += 1
        if (said := refusal(use, file)) is not None:
            assert "\n" not in said, what
            assert len(said) < 1500, what
        elif not FREE.fullmatch(what):
            accepted.append(what)
    assert not accepted, f"{len(accepted)} of {count}: {accepted[:40]}"
    return count


@pytest.fixture
def alone():
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("each", EACH)
@pytest.mark.usefixtures("alone")
def test_a_damaged_checkpoint_of_a_run_is_refused_at_every_place(images, tmp_path, monkeypatch, each):
    config = write_config(tmp_path / "pico.json")
    common = [images, "--stitch_config", config, *FLAGS, "--output", tmp_path, "--model-ema"]
    assert main(["train", *map(str, [*common, "--checkpoint-interval", "3", "--log-interval", "5"])]) == 0
    path = tmp_path / "pico/previous.pth.tar"
    content = torch.load(path, weights_only=True)
    assert content["within"]["ranks"][0]["position"]["window"]["routes"]
    flags = {"data_dir": str(images), "stitch_config": str(config), "resume": str(path), "model_ema": True}
    given = {"opt": "adamw", "lr": 1e-3, "batch_size": 8, "workers": 0, "epochs": 2, "device": "cpu", "hflip": 0.0}
    recipe, stitches = resolve({**flags, **given, "warmup_epochs": 0.0, "log_interval": 5, "pretrained": False})
    world = init_world("cpu")
    session = open_session(recipe, stitches, world, TrainRun())
    trainer = _prepare(session, Checkpoints(tmp_path, keep=1)).trainer

    def use(found):
        monkeypatch.setattr(checkpoint_files, "read_hashed", lambda _: (found, "digest"))
        load_weights(session)
        restore(found, recipe, trainer)

    use(content)
    assert assert_refused(damaged(content, each), use) * each > 6000


@pytest.mark.parametrize("within", [[], ["--model-ema", "--checkpoint-interval", "3", "--print-freq", "5"]])
@pytest.mark.parametrize("each", EACH)
def test_a_damaged_checkpoint_of_a_job_is_refused_at_every_place(images, tmp_path, monkeypatch, each, within):
    schedule = {"lr_scheduler": "OneCycleLR", "lr_scheduler_args": {"max_lr": 0.1, "total_steps": 9}}
    path = write_job(tmp_path, job_config(images, **schedule))
    out = tmp_path / "out"
    assert main(["job", "-c", str(path), "-o", str(out), "--no-pretrained", "--save-checkpoints", *within]) == 0
    content = torch.load(out / ("previous.pth" if within else "checkpoint.pth"), weights_only=True)
    assert ("within" in content) == ("state_dict_ema" in content) == bool(within)
    config = JobConfig.load(path, pretrained=False, save_dir=str(tmp_path / "again"), model_ema=bool(within))
    job = open_job(config, World(0, 1, torch.device("cpu")), path, job_paths(config, path))

    def use(found):
        monkeypatch.setattr("stitchkit.assembly.train.checkpoint.read_alike", lambda _: (found, "digest"))
        resume(job, "last.pth")

    use(content)
    assert assert_refused(damaged(content, each), use) * each > 800
