"""A folder that somebody else made is not a way out of it: links under names that are written, and experiments."""

import ast
import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

import stitchkit
from stitchkit.assembly.sweep.cluster import create_cluster
from stitchkit.assembly.sweep.worker import SweepJob
from stitchkit.cli import main
from stitchkit.distributed import World
from stitchkit.engine.tracking import Tracking
from stitchkit.errors import InputError
from stitchkit.files import fresh_folder, opened, own_folder, replacing, write_text
from stitchkit.settings.recipe import Recipe
from tests.composing import FLAGS as COMPOSING, write_colours, write_pico_nets
from tests.jobs import job_config, write_job
from tests.results import about, write_result
from tests.source_code import FILES, name_of
from tests.support import FLAGS, ROOT, mostly_full, pico_config, pico_snnet, skip_uncut_job, write_config, write_sweep

opening = []
"""Where the names of files go that are opened to be written, while a test looks."""


def watch(event, arguments):
    if not opening or event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    if isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        opening[-1].add(os.fsdecode(arguments[0]))


sys.addaudithook(watch)


def _state(path):
    """What of a file or folder changes when it is written, and does not when it is read."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def written(folder):
    """Names that are written right in a folder, those too that are gone at the end, with their drafts."""
    names, seen = set(), set()
    before = {path.name: _state(path) for path in folder.iterdir()}
    opening.append(seen)
    try:
        yield names
    finally:
        opening.pop()
    left = {path.name for path in folder.iterdir() if before.get(path.name) != _state(path)}
    parts = (Path(path).relative_to(folder).parts for path in seen if Path(path).is_relative_to(folder))
    found = {name.removesuffix(".tmp") for name in left | {part[0] for part in parts if part}}
    names |= found | {f"{name}.tmp" for name in found}


class Planted:
    """Links to outside of a folder, under names in it.

    Args:
        folder: Where the links are.
        names: Theirs.
        outside: Where they lead, each to a copy of what was under its name.
        dangling: They lead to nothing.
    """

    def __init__(self, folder, names, outside, *, dangling):
        self.folder, self.outside, self.dangling = folder, outside, dangling
        self.saved = outside.with_name("saved")
        outside.mkdir()
        shutil.copytree(folder, self.saved)
        for name in names:
            place, victim = folder / name, outside / name
            if place.is_dir() or name == "tensorboard":
                victim.mkdir()
                shutil.rmtree(place, ignore_errors=True)
            else:
                victim.write_bytes(place.read_bytes() if place.exists() else b"untouched")
                place.unlink(missing_ok=True)
            place.symlink_to(victim)
        self.names = set(names)
        self.before = {} if dangling else self.content()
        if dangling:
            shutil.rmtree(outside)
            outside.mkdir()

    def content(self):
        return {
            path: (path.is_file() and path.read_bytes(), path.stat().st_mtime_ns) for path in self.outside.iterdir()
        }

    def check(self):
        assert self.content() == self.before

    def take_out(self, name):
        """Do as the message says: remove the link."""
        self.names.remove(name)
        (self.folder / name).unlink(missing_ok=True)
        if (self.saved / name).is_file():
            shutil.copy(self.saved / name, self.folder / name)


# What ends a run for a file that it names in another way.
BLOCKED = {"already contains a run": "last.pth.tar"}


def survive(command, planted, capsys):
    """Run a command until it is through; each time that it ends before, take out the link that it names."""
    refused = []
    while True:
        status = main(command)
        line = capsys.readouterr().err
        planted.check()
        if status == 0:
            return refused
        assert status == 2, line
        assert [part for part in line.splitlines() if "error" in part] == line.splitlines()[-1:], line
        named = [name for name in planted.names if f"{planted.folder / name}'" in line]
        named = named or [name for text, name in BLOCKED.items() if text in line and name in planted.names]
        assert named, line
        refused += named
        for name in named:
            planted.take_out(name)


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """A run of one epoch, and its configuration."""
    place = tmp_path_factory.mktemp("trained")
    config = write_config(place / "pico.json")
    command = ["train", images, "--stitch_config", config, *FLAGS, "--epochs", "1", "--output", place]
    assert main([*map(str, command)]) == 0
    return place / "pico", config


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a pico SN-Net."""
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save({"state_dict": pico_snnet().state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    """A ledger of two stitches."""
    path = tmp_path_factory.mktemp("ledger") / "stitches_res.txt"
    rows = [
        {"cfg_id": n, "stitch": name, "flops": 10 + n, "acc1": 5.0 + n} for n, name in enumerate(("ti[0:3]", "s[0:3]"))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Images and networks to compose."""
    place = tmp_path_factory.mktemp("colours")
    nets = write_pico_nets(place)
    return write_colours(place / "images", train=7, validation=5), nets


def train(folder, request):
    images, (_, config) = request.getfixturevalue("images"), request.getfixturevalue("trained")
    more = ["--save-images", "--log-tensorboard", "--checkpoint-interval", "3"]
    return [
        "train", images, "--stitch_config", config, *FLAGS, *more, "--output", folder.parent,
        "--experiment", folder.name,
    ]  # fmt: skip


def go_on(folder, request):
    shutil.copytree(request.getfixturevalue("trained")[0], folder, dirs_exist_ok=True)
    return [*train(folder, request), "--resume", "auto"]


def evaluate(folder, request):
    run, _ = request.getfixturevalue("trained")
    return [*train(folder, request), "--eval", "--latency", "--resume", run / "last.pth.tar"]


def job(folder, request):
    config = write_job(folder.parent, job_config(request.getfixturevalue("images"), epochs=1))
    return ["job", "-c", config, "-o", folder, "--no-pretrained", "--save-checkpoints"]


def sweep_report(folder, request):
    for name in ("one", "two"):
        write_result(folder, name, about(1, 1, "linear_no_downsample", 10), [0.5, 0.6], seed=1)
    return ["sweep", "--report", folder]


def profile(folder, request):
    return ["profile", "--stitch_config", request.getfixturevalue("trained")[1], "--output", folder / "costs.txt"]


def convert(folder, request):
    (_, config), weights = request.getfixturevalue("trained"), request.getfixturevalue("weights")
    return ["convert", weights, folder / "net.safetensors", "--stitch_config", config]


def pareto(folder, request):
    return ["pareto", request.getfixturevalue("ledger"), "--plot", folder / "front.svg"]


def report(folder, request):
    return ["report", request.getfixturevalue("ledger"), "-o", folder / "page.html", "--plot", folder / "front.png"]


def exporting(suffix):
    def export(folder, request):
        (_, config), weights = request.getfixturevalue("trained"), request.getfixturevalue("weights")
        return [
            "export",
            "--stitch_config",
            config,
            "--resume",
            weights,
            "--cfg_id",
            "1",
            "-o",
            folder / f"net{suffix}",
        ]

    return export


def compose(folder, request):
    images, nets = request.getfixturevalue("colours")
    return ["compose", "--data", images, "--nets", nets, *COMPOSING, "--top", "1", "-o", folder / "composed"]


def demo_data(folder, request):
    return ["demo-data", "digits", folder / "digits"]


COMMANDS = {
    "train": train,
    "train --resume auto": go_on,
    "train --eval": evaluate,
    "job": job,
    "sweep --report": sweep_report,
    "profile": profile,
    "convert": convert,
    "pareto": pareto,
    "report": report,
    "export .safetensors": exporting(".safetensors"),
    "export .onnx": exporting(".onnx"),
    "export .pt2": exporting(".pt2"),
    "compose": compose,
    "demo-data": demo_data,
}

# What must be among the names that a command is seen to write; were it not, the test would look at too little.
LEAST = {
    "train": {
        *(
            "args.yaml",
            "summary.csv",
            "losses.csv",
            "fit.csv",
            "last.pth.tar",
            "previous.pth.tar",
            ".train.lock",
            "log.txt",
        ),
        *(".launcher", "last.pth.tar.tmp", "args.yaml.tmp", "train-batch-1.jpg", "tensorboard", "model_best.pth.tar"),
    },
    "train --resume auto": {"summary.csv", "summary.csv.tmp", "last.pth.tar", "checkpoint-1.pth.tar", ".train.lock"},
    "train --eval": {
        *("eval_args.yaml", "stitches_res.txt", "stitches_res.yaml", "stitches_res.txt.part0", ".eval.lock"),
        *("stitches_res.txt.tmp", "stitches_res.txt.part0.tmp", "stitches_res.hits", "per_class.csv"),
    },
    "job": {"config.yml", "metadata.yml", "result.pkl", "result.csv", "checkpoint.pth", "result.pkl.tmp"},
    "sweep --report": {"results.csv", "results.parquet", "summary.csv"},
    "demo-data": {"digits", "digits.unfinished"},
}


WHERE = ("to a file", "to nothing")
# A command writes each of its files in one way, which meets links of both kinds in the commands with the most files.
BOTH = ("train", "train --eval", "job", "sweep --report")
LINKS = [(name, where) for name in COMMANDS for where in (WHERE if name in BOTH else WHERE[:1])]
# Each way of writing once; other formats of an export, and compositions, take seconds.
QUICK = [
    ("train --eval", "to nothing"),
    *((name, "to a file") for name in ("job", "profile", "demo-data")),
]


@pytest.mark.parametrize(("name", "where"), mostly_full(LINKS, quick=QUICK))
def test_no_command_writes_through_a_link(name, where, request, short_timing, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")  # as if torchrun had started it
    folders = [tmp_path / "clean/run", tmp_path / "planted/run"]
    commands = []
    for folder in folders:
        folder.mkdir(parents=True)
        commands.append([*map(str, COMMANDS[name](folder, request))])
    with written(folders[0]) as names:
        assert main(commands[0]) == 0
    assert LEAST.get(name, set()) < names
    capsys.readouterr()
    planted = Planted(folders[1], names, tmp_path / "outside", dangling=where == "to nothing")
    survive(commands[1], planted, capsys)


def test_a_folder_that_is_a_link_is_written_to(request, tmp_path):
    """People link `outputs` to a larger disk."""
    (tmp_path / "disk/runs").mkdir(parents=True)
    (tmp_path / "outputs").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/run").symlink_to(tmp_path / "disk/runs")
    assert main([*map(str, train(tmp_path / "outputs/run", request))]) == 0
    assert (tmp_path / "disk/runs/last.pth.tar").is_file()


@pytest.fixture(scope="module")
def swept(images, tmp_path_factory):
    """The folder of a sweep of one job, and the command that made it."""
    place = tmp_path_factory.mktemp("swept")
    path = write_sweep(place, images, stitchers=["linear_no_downsample"], save_checkpoints=True)
    skip_uncut_job(path, place / "out")
    command = ["sweep", "-c", str(path), "-o", str(place / "out"), "--device", "cpu"]
    assert main(command) == 0
    return place / "out/train-pico-gap-1,1-adapter-linear_no_downsample", command


@pytest.mark.full
@pytest.mark.parametrize("dangling", [False, True], ids=WHERE)
def test_a_sweep_refuses_links_in_the_folders_of_its_jobs(swept, tmp_path, dangling, capsys):
    """Before any job is started: jobs are other processes, and submitit names files by the numbers of these."""
    folder, command = swept
    names = {path.name for path in folder.iterdir()}
    assert {"config.yml", "metadata.yml", "log-3.txt", "submitit", "result-3", "result-3.csv", "result-3.pkl"} <= names
    for name in sorted({*names, "result-3.failed", "result-3.slurm", "config.yml.tmp"} - {"result-3.pkl"}):
        out = tmp_path / name / "out"
        shutil.copytree(folder.parent, out)
        here = out / folder.name
        (here / "result-3.pkl").unlink()
        planted = Planted(here, [name], tmp_path / name / "outside", dangling=dangling)
        assert main([*command[:4], str(out), *command[5:]]) == 2
        assert f"error: '{here / name}' is a symbolic link, and none is written through" in capsys.readouterr().err
        planted.check()


def test_the_folder_of_a_job_of_a_sweep_is_its_own(images, tmp_path, capsys):
    config = write_sweep(tmp_path, images, stitchers=["linear_no_downsample"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train-pico-gap-1,1-adapter-linear_no_downsample").symlink_to(tmp_path / "elsewhere")
    assert main(["sweep", "-c", str(config), "-o", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "is a symbolic link" in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists()


def test_the_folders_of_submitit_and_of_figures_are_their_own(tmp_path):
    for name in ("submitit", "tensorboard", "wandb"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    pool = create_cluster("local", folder=tmp_path, jobs=1, gpus=0)
    for made in (
        lambda: next(pool.run([SweepJob(tmp_path)])),
        lambda: Tracking(tmp_path, World(0, 1, torch.device("cpu")), {}, board=0),
        lambda: Tracking(tmp_path, World(0, 1, torch.device("cpu")), {}, options={}),
    ):
        with pytest.raises(InputError, match="is a symbolic link"):
            made()
    assert not (tmp_path / "elsewhere").exists()


def test_the_names_of_pictures_are_not_paths(tmp_path, capsys):
    """What a folder says of a job begins them."""
    (tmp_path / "out").mkdir()
    write_result(tmp_path / "out", "one", about(1, 1, "finetune", 10) | {"arch": "../evil"}, [0.5])
    assert main(["sweep", "--report", str(tmp_path / "out")]) == 2
    assert "has arch '../evil'; it must be a name without '/'" in capsys.readouterr().err
    assert not list(tmp_path.glob("evil*"))


def test_a_folder_for_the_hub(tmp_path):
    model = stitchkit.HubSNNet(pico_config())
    model.ledger = [{"cfg_id": 0, "flops": 1, "acc1": 2.0}]
    (tmp_path / "clean").mkdir()
    with written(tmp_path / "clean") as names:
        model.save_pretrained(tmp_path / "clean")
    assert {"README.md", "config.json", "model.safetensors", "stitches_res.txt"} < names
    for dangling in (False, True):
        place = tmp_path / str(dangling)
        (place / "hub").mkdir(parents=True)
        planted = Planted(place / "hub", names - {"README.md.tmp"}, place / "outside", dangling=dangling)
        with pytest.raises(InputError, match=r"README\.md' is a symbolic link"):
            model.save_pretrained(place / "hub")
        planted.take_out("README.md")
        model.save_pretrained(place / "hub")
        planted.check()


def test_files_and_folders_of_our_own(tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("untouched")
    for name in ("link", "link.tmp"):
        (tmp_path / name).symlink_to(victim)
    for mode in ("a", "w", "r+b", "a+"):
        with pytest.raises(InputError, match="link' is a symbolic link, and none is written through; remove it"):
            opened(link, mode)
    with pytest.raises(RuntimeError), replacing(link):
        raise RuntimeError
    assert link.is_symlink(), "an error leaves what was there"
    (tmp_path / "link.tmp").symlink_to(victim)
    write_text(link, "new")
    assert (link.is_symlink(), link.read_text(), victim.read_text()) == (False, "new", "untouched")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/kept").touch()
    (tmp_path / "unfinished").symlink_to(tmp_path / "folder")
    with pytest.raises(InputError, match="unfinished' is a symbolic link"):
        own_folder(tmp_path / "unfinished")
    assert list(fresh_folder(tmp_path / "unfinished").iterdir()) == []
    assert (tmp_path / "folder/kept").exists()


OUTSIDE = ("../../x", "a/../../x", "ABSOLUTE", "..", ".", "a/..", "x\0y")


@pytest.mark.parametrize("experiment", OUTSIDE)
@pytest.mark.parametrize("where", ["exp_name", "recipe", "file", "flag"])
def test_an_experiment_is_a_folder_inside_the_output(where, experiment, images, tmp_path, capsys):
    place = tmp_path / "here/there"
    place.mkdir(parents=True)
    experiment = experiment.replace("ABSOLUTE", str(tmp_path / "x"))
    changes = {"exp_name": {"exp_name": experiment}, "recipe": {"recipe": {"experiment": experiment}}}
    config = write_config(place / "pico.json", **changes.get(where, {}))
    (place / "run.yaml").write_text(yaml.safe_dump({"experiment": experiment}))
    given = {"file": ["-c", place / "run.yaml"], "flag": ["--experiment", experiment]}.get(where, [])
    before = sorted(tmp_path.rglob("*"))
    command = ["train", images, "--stitch_config", config, *FLAGS, *given, "--output", place / "outputs"]
    assert main([*map(str, command)]) == 2
    line = capsys.readouterr().err
    assert line.startswith("stitchkit: error: experiment ")
    assert "is not a folder inside --output" in line
    assert line.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_an_experiment_may_lie_deeper(trained, images, tmp_path):
    _, config = trained
    command = ["train", images, "--stitch_config", config, *FLAGS, "--epochs", "1", "--output", tmp_path]
    assert main([*map(str, [*command, "--experiment", "a/b"])]) == 0
    assert (tmp_path / "a/b/last.pth.tar").is_file()


def test_a_model_names_no_folder_outside(images, tmp_path, capsys):
    (tmp_path / "outputs").mkdir()
    assert main(["train", str(images), "--model", "..", *FLAGS, "--output", str(tmp_path / "outputs")]) == 2
    assert "is not a folder inside --output" in capsys.readouterr().err


def test_a_stitch_configuration_does_not_say_where_runs_are_written(images, tmp_path, capsys):
    config = write_config(tmp_path / "pico.json", recipe={"output": str(tmp_path / "other")})
    command = ["train", images, "--stitch_config", config, *FLAGS, "--output", tmp_path / "outputs"]
    assert main([*map(str, command)]) == 2
    line = capsys.readouterr().err
    assert "cannot set 'output'" in line
    assert "remove it and give --output" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pico.json"]


def test_the_settings_of_a_run_say_where_it_is(trained):
    """`-c args.yaml` is a person's choice."""
    folder, _ = trained
    assert yaml.safe_load((folder / "args.yaml").read_text())["output"] == str(folder.parent)
    command = ["train", "-c", folder / "args.yaml", "--eval", "--eval-stitches", "0", "--resume", "auto"]
    assert main([*map(str, command)]) == 0
    assert (folder / "stitches_res.txt").is_file()
    assert Recipe().run.output == "outputs"


# Methods and functions that write a file which is given by its name.
METHODS = {"write_text", "write_bytes", "savefig", "to_csv", "to_pickle", "to_parquet", "touch", "symlink_to", "save"}
FUNCTIONS = {
    *("os.truncate", "os.link", "os.symlink", "shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.copytree"),
    *("shutil.move", "save_file", "save_image", "update_summary", "np.save", "np.savez", "onnx.save"),
    *("SummaryWriter", "wandb.init", "submitit.LocalExecutor", "submitit.SlurmExecutor"),
}

# Where something else than a draft is written, and why that is right.
WRITES = {
    "stitchkit/data/prepare.py shutil.copyfile": "into a fresh folder",
    "stitchkit/data/prepare.py ?.write_bytes": "into a fresh folder",
    "stitchkit/data/prepare.py ?.save": "into a fresh folder",
    "stitchkit/assembly/sweep/cluster.py submitit.LocalExecutor": "into a new folder",
    "stitchkit/assembly/sweep/cluster.py submitit.SlurmExecutor": "into a new folder",
    "stitchkit/cli.py os.open": "the null device",
    "stitchkit/networks/weights.py archive.open": "to read",
    "stitchkit/ship/stitch_files.py draft.write_bytes": "callers give it a draft, and publish that",
    "stitchkit/ship/stitch_files.py torch.export.save": "callers give it a draft, and publish that",
    "stitchkit/ship/stitch_files.py program.save": "callers give it a draft, and publish that",
    "stitchkit/data/demo.py image.save": "into a fresh folder",
    "stitchkit/data/demo.py ?.write_text": "into a fresh folder",
    "stitchkit/ship/predict_maps.py ?.save": "into a fresh folder",
    "stitchkit/measure/evaluate.py unfinished.save": "our own",
    "stitchkit/training/train.py checkpoints.save": "our own",
    "stitchkit/engine/tracking.py SummaryWriter": "into a folder that is not a link; names contain the time",
    "stitchkit/engine/tracking.py wandb.init": "into a folder that is not a link; names contain the time",
    "stitchnet/compose.py net.save": "our own",
}

PRODUCT = [path for path in FILES if path.relative_to(ROOT).parts[0] not in ("benchmarks", "studies")]


def mode_of(call, place):
    """The mode that a file is opened with; one that is not written out may be any."""
    given = [word.value for word in call.keywords if word.arg == "mode"] or call.args[place : place + 1]
    if not given:
        return "r"
    return given[0].value if isinstance(given[0], ast.Constant) else "w"


def is_writing(call):
    """Whether a call writes a file that it is given by its name."""
    name = name_of(call.func)
    if name in ("open", "io.open", "os.fdopen"):
        return not {*"wax+"}.isdisjoint(mode_of(call, 1))
    if name == "os.open":
        return ast.unparse(call.args[1]) != "os.O_RDONLY"
    last = name.rpartition(".")[2]
    if last == "open" and not name[0].isupper():  # of a path, not of a class such as Image
        return not {*"wax+"}.isdisjoint(mode_of(call, 0))
    return name in FUNCTIONS or (isinstance(call.func, ast.Attribute) and last in METHODS)


def drafts(tree):
    """Names that a function gives to drafts, and to files that are opened in a safe way."""
    found = set()
    for node in ast.walk(tree):
        for item in node.items if isinstance(node, ast.With) else ():
            source = item.context_expr
            if not isinstance(source, ast.Call) or not isinstance(item.optional_vars, ast.Name):
                continue
            name = name_of(source.func)
            if name in ("replacing", "opened") or name.split(".")[0] in found:
                found.add(item.optional_vars.id)
    return found


def unsafe_writes(text):
    """Calls that write a file by its name, and not as a draft."""
    tree = ast.parse(text)
    for function in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))]:
        own = drafts(function)
        inner = [node for node in ast.walk(function) if isinstance(node, ast.FunctionDef) and node is not function]
        passed = {node for one in inner for node in ast.walk(one)}
        for node in ast.walk(function):
            if node in passed or not isinstance(node, ast.Call) or not is_writing(node):
                continue
            places = [node.func, *node.args]
            named = {getattr(part, "id", None) for place in places for part in ast.walk(place)}
            if not named & own:
                yield name_of(node.func)


def test_files_are_written_in_one_way():
    """A new way to write a file is a draft, or stands above with its reason."""
    found = {
        f"{path.relative_to(ROOT)} {name}"
        for path in PRODUCT
        for name in unsafe_writes(path.read_text())
        if path.relative_to(ROOT) != Path("stitchkit/files.py")
    }
    assert found == WRITES.keys()


@pytest.mark.parametrize(
    "text",
    [
        "open(path, 'w')",
        "open(path, mode='ab')",
        "path.open('r+b')",
        "path.write_text(text)",
        "figure.savefig(path)",
        "os.open(path, os.O_RDWR)",
        "torch.save(state, path)",
        "with replacing(path) as draft:\n    path.write_text(text)",
        "def one():\n    with replacing(path) as draft:\n        pass\ndef two(draft):\n    draft.write_text(text)",
    ],
)
def test_such_a_write_would_be_found(text):
    assert len(list(unsafe_writes(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "open(path)",
        "path.open('rb')",
        "Image.open(path)",
        "os.open(path, os.O_RDONLY)",
        "with replacing(path) as draft, draft.open('wb') as file:\n    torch.save(state, file)",
    ],
)
def test_such_a_call_is_left_alone(text):
    assert not list(unsafe_writes(text))
