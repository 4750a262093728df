"""The kinds of sweeps: which jobs are made from a file."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import torch
import yaml

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.sweep import plan as by_dataset
from stitchkit.assembly.sweep.cluster import LocalPool
from stitchkit.assembly.sweep.config import load_sweep
from stitchkit.assembly.sweep.report.tables import sweep_report
from stitchkit.assembly.sweep.worker import SweepJob
from stitchkit.assembly.train.checkpoint import JobCheckpoints
from stitchkit.assembly.train.job import job_paths, open_job
from stitchkit.assembly.train.metrics import planned_columns
from stitchkit.assembly.train.result import read_metadata, update_metadata
from stitchkit.assembly.train.run import _begin, run_job
from stitchkit.cli import main
from stitchkit.distributed import World
from stitchkit.errors import InputError
from tests.distributed.forks import hold_lock
from tests.jobs import job_config, write_job
from tests.results import write_result
from tests.support import ROOT


def data_sets(folder, *names, **changes):
    """The file of a pico sweep over data sets, which are in a file of their own, as in the published files."""
    content = {**job_config("unused"), **changes}
    del content["train_config"]["dataset"]
    (folder / "sets.yml").write_text(yaml.safe_dump([*names]))
    path = write_job(folder, content, "many.yml")
    path.write_text(f"{path.read_text()}datasets: !include sets.yml\n")
    return path


def test_a_job_for_each_data_set(tmp_path):
    sweep = load_sweep(data_sets(tmp_path, "cifar100", "./fish"), epochs=1)
    assert [job.name for job in sweep.jobs] == ["train-many-cifar100", "train-many-fish"]
    assert [job.metadata for job in sweep.jobs] == [
        {"arch": "many", "dataset": "cifar100"},
        {"arch": "many", "dataset": "fish"},
    ]
    configs = [JobConfig.parse(job.config) for job in sweep.jobs]
    assert [config.train_config.dataset for config in configs] == ["cifar100", "./fish"]
    assert {config.train_config.epochs for config in configs} == {1}
    assert sweep.seeds == (None,)


def test_weights_of_a_sweep_are_relative_to_its_file(tmp_path):
    """With data sets and without."""
    (tmp_path / "w.pth").touch()
    (tmp_path / "sweeps").mkdir()
    part = {"Net": {"model_name": "resnet18", "ckp_path": "../w.pth"}}
    content = {"model": part, "train_config": {"epochs": 1}, "datasets": ["a"]}
    [job] = load_sweep(write_job(tmp_path / "sweeps", content)).jobs
    assert job.config["model"]["Net"]["ckp_path"] == str(tmp_path / "w.pth")
    alone = {"model": part, "train_config": {"epochs": 1, "dataset": "a"}}
    [job] = load_sweep(write_job(tmp_path / "sweeps", alone)).jobs
    assert job.config["model"]["Net"]["ckp_path"] == str(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (["a", "./a"], {}, "two jobs would have the folder 'train-many-a'"),
        ([], {}, "datasets is []; its length must be at least 1"),
        ([1], {}, "datasets[0] is 1; it must be text"),
        (["a"], {"train_config": {"epochs": 1, "dataset": "b"}}, "datasets: train_config names data too"),
        (["a"], {"seeds": [1, 2, 1]}, "seeds: it has 1 twice"),
        (["a"], {"test_only": True, "pretrained": False}, "test_only needs trained weights, but pretrained is false"),
        (["a"], {"sedes": [1]}, "sedes: unknown key 'sedes'; did you mean 'seeds'?"),
    ],
)
def test_mistakes_in_a_sweep_over_data_sets(tmp_path, names, changes, message):
    path = data_sets(tmp_path, *names)
    content = yaml.safe_load(path.read_text().replace("!include sets.yml", str(names))) | changes
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError) as error:
        load_sweep(path)
    assert message in str(error.value)
    assert f"'{path}'" in str(error.value)


def test_replicates_of_one_job(tmp_path, images, capsys):
    path = write_job(tmp_path, job_config(str(images)), "one.yml")
    assert load_sweep(path, seed=7).seeds == (7,)
    assert load_sweep(path, seeds=[1, 2]).seeds == (1, 2)
    assert load_sweep(write_job(tmp_path, {**job_config("d"), "seeds": [3, 4]})).seeds == (3, 4)
    flags = ["sweep", "-c", str(path), "-o", str(tmp_path / "out"), "--seeds", "1", "2", "--dry-run"]
    assert main(flags) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 jobs: 1 with each of the seeds 1, 2; 0 combinations left out"


def test_runs_with_several_seeds_add_to_the_facts_of_their_job_at_once(tmp_path):
    """They begin together, and one must not take the other's draft."""
    path = tmp_path / "metadata.yml"

    def add(seed):
        for _ in range(50):
            update_metadata(path, {"arch": "one", "num_params": 3}, writer=f"result-{seed}")

    with ThreadPoolExecutor() as pool:
        [*pool.map(add, [1, 2, 3])]
    assert read_metadata(path) == {"arch": "one", "num_params": 3}
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.full
def test_replicates_run_and_are_reported_together(tmp_path, images):
    path, out = write_job(tmp_path, job_config(str(images), epochs=1), "one.yml"), tmp_path / "out"
    command = ["sweep", "-c", str(path), "-o", str(out), "--no-pretrained", "--jobs", "2"]
    assert main([*command, "--seeds", "1", "2"]) == 0
    assert {file.name for file in (out / "train-one").glob("*.pkl")} == {"result-1.pkl", "result-2.pkl"}
    assert main([*command, "--seed", "3"]) == 0
    header, row = (out / "summary.csv").read_text().splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True))["num_seeds"] == "3"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, images):
    """A folder of two jobs with checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    for name, rate in (("one", 0.01), ("two", 0.5)):
        config = job_config(str(images), epochs=1, optimizer_args={"lr": rate}) | {"save_checkpoints": True}
        config["assembly"][0]["Subnet"]["frozen"] = False
        run_job(JobConfig.parse({**config, "pretrained": False, "save_dir": str(folder / name)}))
    return folder


@pytest.fixture
def tuned(tmp_path, trained):
    """Copies of the two jobs, and the file that crosses them."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    files = [str(tmp_path / name / "config.yml") for name in ("one", "two")]
    return write_job(tmp_path, {"ft_configs": files, "seed": 5}, "cross.yml")


def test_every_head_on_every_encoder(tuned, tmp_path):
    sweep = load_sweep(tuned, workers=0)
    assert sweep.seeds == (5,)
    pairs = [(job.metadata["head_dataset"][-1], job.metadata["encoder_dataset"][-1]) for job in sweep.jobs]
    assert pairs == [(head, encoder) for head in "12" for encoder in "e12"]  # `base` is before fine-tuning
    mixed = JobConfig.parse(sweep.jobs[2].config)
    assert mixed.test_only
    assert mixed.load_from == {
        name: str(tmp_path / job / "checkpoint.pth") for name, job in (("encoder", "two"), ("head", "one"))
    }
    job = open_job(mixed, World(0, 1, torch.device("cpu")), None, job_paths(mixed, None))
    _begin(job, JobCheckpoints(tmp_path))
    one, two = (torch.load(tmp_path / name / "checkpoint.pth")["state_dict"] for name in ("one", "two"))
    for name, value in job.network.state_dict().items():
        assert torch.equal(value, (one if name.startswith("head.") else two)[name]), name


def test_a_data_set_with_the_name_of_another_encoder(tuned, tmp_path):
    """Its jobs would share folders, of which those done first would count for both."""
    for name, data in (("one", "base"), ("two", "cifar10")):
        path = tmp_path / name / "config.yml"
        content = yaml.safe_load(path.read_text())
        content["train_config"]["dataset"] = data
        path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="two jobs would have the folder 'test-cross-head-base-encoder-base'"):
        load_sweep(tuned)


def test_a_tuned_job_with_several_seeds_is_refused(tuned, tmp_path):
    for seed in (1, 2):
        (tmp_path / f"one/result-{seed}").mkdir()
        shutil.copy(tmp_path / "one/checkpoint.pth", tmp_path / f"one/result-{seed}")
    (tmp_path / "one/checkpoint.pth").unlink()
    with pytest.raises(InputError, match=r"ft_configs\[0\]: .* was trained with several seeds"):
        load_sweep(tuned)


def test_the_report_of_heads_by_encoders(tmp_path):
    for head in "ab":
        for encoder in ("base", "a", "b"):
            metadata = {"arch": "cross", "head_dataset": head, "encoder_dataset": encoder}
            write_result(tmp_path, f"{head}-{encoder}", metadata, [0.5 if head == encoder else 0.1], epochs=[0])
    table = pd.read_csv(sweep_report(tmp_path)[2])
    cells = table.pivot(index="head_dataset", columns="encoder_dataset", values="test_accuracy")
    assert cells.to_dict("index") == {
        "a": pytest.approx({"base": 10, "a": 50, "b": 10}), "b": pytest.approx({"base": 10, "a": 10, "b": 50})
    }  # fmt: skip


def test_mistakes_in_heads_by_encoders(tmp_path):
    path = write_job(tmp_path, {"ft_configs": [str(tmp_path / "none.yml")]})
    with pytest.raises(InputError, match=r"line 2: ft_configs\[0\]: '.*' is not a file; name the config.yml"):
        load_sweep(path)
    write_job(tmp_path, job_config("d"), "none.yml")
    with pytest.raises(InputError, match=r"there is no checkpoint.pth beside '.*'; set save_check"):
        load_sweep(path)


def search(folder, images, **changes):
    """The file of a pico search, whose job is in a file of its own."""
    write_job(folder, job_config(str(images), epochs=1), "base.yml")
    content = {
        "program": "src/hypertrain.py",
        "method": "bayes",
        "metric": {"name": "Avg Test Accuracy", "goal": "maximize"},
        "parameters": {
            "lr": {"values": [0.1, 0.01]},
            "weight_decay": {"min": 0.01, "max": 0.1},
            "epochs": {"value": 1},
        },
        "job": "base.yml",
    }
    return write_job(folder, content | changes, "search.yml")


class Measured:
    """Runs trials without training: the accuracy is the learning rate, or what is made of it."""

    def __init__(self, folder, accuracy=float):
        self.folder, self.accuracy, self.rounds = folder, accuracy, []

    def all(self, sweep, at_once=None):
        for jobs in sweep.rounds(self.folder, at_once):
            self.rounds.append([job.name for job in jobs])
            for job in jobs:
                rate = job.config["train_config"]["optimizer_args"]["lr"]
                write_result(self.folder, job.name, job.metadata, [self.accuracy(rate)])
        return self.rounds


def test_a_search_of_the_usual_length_learns_from_its_results(tmp_path):
    sweep = load_sweep(search(tmp_path, "d", parameters={"lr": {"min": 0.0, "max": 1.0}}), seeds=[1])
    tried = []
    for name, accuracy in (("high", float), ("low", lambda rate: 1 - rate)):
        (folder := tmp_path / name).mkdir()
        Measured(folder, accuracy).all(sweep)
        tried.append(pd.read_csv(folder / "search-trials.csv")["lr"])
    high, low = tried
    assert len(high) == len(low) == 10
    assert high[:3].tolist() == low[:3].tolist()  # drawn before there is anything to learn
    assert high[3:].mean() > low[3:].mean() + 0.2


def test_a_search_goes_through_its_trials(tmp_path, caplog):
    caplog.set_level("INFO")
    sweep = load_sweep(search(tmp_path, "d"), run_cap=3, seeds=[1])
    [first] = sweep.jobs
    assert first.name == "trial-0-base"
    train = first.config["train_config"]
    assert train["epochs"] == 1
    assert train["optimizer_args"].keys() == {"lr", "weight_decay"}
    assert Measured(tmp_path).all(sweep) == [["trial-0-base"], ["trial-1-base"], ["trial-2-base"]]
    table = pd.read_csv(tmp_path / "search-trials.csv")
    assert table["Avg Test Accuracy"].tolist() == table["lr"].tolist()
    assert f"Avg Test Accuracy {table['lr'].max():g}: lr {table['lr'].max()}" in caplog.text
    assert "bayes runs one trial at a time; --jobs N runs N" in caplog.text  # without a limit
    sweep_report(tmp_path)
    summary, results = pd.read_csv(tmp_path / "summary.csv"), pd.read_csv(tmp_path / "results.csv")
    assert summary["param/lr"].tolist() == results["param/lr"].tolist() == table["lr"].tolist()
    assert results["lr"].unique().tolist() == [0.1]  # that of the epoch
    assert Measured(tmp_path).all(sweep) == []  # it is done
    other = load_sweep(search(tmp_path, "d", parameters={"lr": {"values": [0.5, 0.6]}}), run_cap=4, seeds=[1])
    with pytest.raises(InputError, match="parameters: the search began with others"):
        next(other.rounds(tmp_path, None))
    journal = tmp_path / "search.journal"
    for damage in ("[1]\n", "{}\n{\n", journal.read_text().replace('"directions":[2]', '"directions":[]')):
        journal.write_text(damage)
        with pytest.raises(InputError, match=r"the journal of the search, (is damaged|line 2 is not JSON)"):
            next(sweep.rounds(tmp_path, None))


@pytest.mark.full
def test_a_search_whose_journal_was_cut_off_continues(tmp_path, caplog):
    """optuna appended to the unfinished line, and could never read the journal again."""
    sweep = load_sweep(search(tmp_path, "d"), run_cap=3, seeds=[1])
    journal = tmp_path / "search.journal"
    assert Measured(tmp_path).all(load_sweep(search(tmp_path, "d"), run_cap=1, seeds=[1])) == [["trial-0-base"]]
    with journal.open("ab") as file:
        file.write(b'{"op_code":5,"worker_id":"a')
    assert Measured(tmp_path).all(sweep) == [["trial-1-base"], ["trial-2-base"]]
    assert f"the last line of '{journal}' is dropped: an interrupted program left it unfinished" in caplog.messages
    lines = journal.read_bytes().splitlines()
    journal.write_bytes(b"\n".join([lines[0], b"{", *lines[1:]]) + b"\n")
    with pytest.raises(InputError, match=r"the journal of the search, line 2 is not JSON: '{'; move it away"):
        next(sweep.rounds(tmp_path, None))


def test_two_commands_do_not_run_one_search(tmp_path):
    sweep = load_sweep(search(tmp_path, "d"), run_cap=1, seeds=[1])
    with hold_lock(tmp_path / ".search.lock"), pytest.raises(InputError, match=f"another run writes to '{tmp_path}'"):
        next(sweep.rounds(tmp_path, None))
    assert not (tmp_path / "search.journal").exists()
    assert Measured(tmp_path).all(sweep) == [["trial-0-base"]]


def test_an_interrupted_search_tries_the_same_as_an_unbroken_one(tmp_path):
    sweep = load_sweep(search(tmp_path, "d"), run_cap=4, seeds=[1])
    tables = []
    for name in ("whole", "broken"):
        (folder := tmp_path / name).mkdir()
        if name == "broken":
            next(rounds := sweep.rounds(folder, 2))
            rounds.close()
        Measured(folder).all(sweep, at_once=2)
        tables.append(pd.read_csv(folder / "search-trials.csv"))
    assert tables[0].equals(tables[1])
    assert len(tables[0]) == 4


def test_a_grid_in_one_round_and_a_trial_that_fails(tmp_path):
    path = search(
        tmp_path, "d", method="grid", parameters={"lr": {"values": [0.1, 0.2]}, "batch_size": {"values": [4, 8]}}
    )
    sweep = load_sweep(path, seeds=[1])
    assert [tuple(job.columns.values())[1:3] for job in sweep.jobs] == [
        ("0.1", "4"), ("0.1", "8"), ("0.2", "4"), ("0.2", "8")
    ]  # fmt: skip
    rounds = sweep.rounds(tmp_path, None)
    for job in next(rounds)[1:]:
        write_result(tmp_path, job.name, job.metadata, [0.5])
    (tmp_path / "trial-0-base").mkdir()
    failure = SweepJob(tmp_path / "trial-0-base", 1).failure
    failure.touch()
    assert [*rounds] == []
    assert pd.read_csv(tmp_path / "search-trials.csv")["state"].tolist() == ["failed", *["complete"] * 3]
    [again] = next(rounds := sweep.rounds(tmp_path, None))  # which is listed, or retried
    failure.unlink()
    write_result(tmp_path, again.name, again.metadata, [0.9])
    assert [*rounds] == []
    assert pd.read_csv(tmp_path / "search-trials.csv")["state"].tolist() == ["complete"] * 4


def test_a_failed_trial_is_listed_again_and_retried_on_request(tmp_path, images, monkeypatch):
    path = search(tmp_path, images, method="grid", parameters={"lr": {"values": [0.1, 0.2, 0.3]}})
    out, started = tmp_path / "out", []

    def run(pool, jobs):
        for job in jobs:
            started.append(job.path.name)
            if started == ["trial-1-base"]:
                job.fail("out of luck")
            else:
                write_result(out, job.path.name, {"arch": "search"}, [0.5])
            yield job

    monkeypatch.setattr(LocalPool, "run", run)
    command = ["sweep", "-c", str(path), "-o", str(out), "--seeds", "1", "--no-pretrained"]
    assert main([*command, "--only", "2"]) == 2
    assert main([*command, "--only", "1-2"]) == 2  # numbers are those of the plan, whatever has run
    assert main(command) == 2
    assert main([*command, "--retry-failed"]) == 0
    assert started == [f"trial-{number}-base" for number in (1, 0, 2, 1)]


_TOP = {"metric_fn": "topk_accuracy", "metric_fn_args": {"topk": [1, 2]}, "output": "head"}


@pytest.mark.parametrize(
    ("train", "changes"),
    [
        (
            {"model_ema": True, "aux_losses": [{"output": "head"}]},
            {"metrics": [{"metric_fn": "cross_entropy"}, _TOP]},
        ),
        pytest.param({}, {"eval_checkpoints": False}, marks=pytest.mark.full),
        pytest.param({}, {"test_only": True, "pretrained": True}, marks=pytest.mark.full),
    ],
)
def test_the_columns_of_a_result_are_known_before(tmp_path, images, train, changes):
    content = {**job_config(str(images), epochs=1, max_steps=1, **train), "pretrained": False, **changes}
    content["assembly"][0]["Subnet"]["pretrained"] = False
    config = JobConfig.parse({**content, "save_dir": str(tmp_path)})
    written = pd.read_pickle(run_job(config)).columns
    assert {*planned_columns(config)} - {"GPU Mem"} == {*written}


def test_the_sample_search():
    sweep = load_sweep(ROOT / "configs/sweeps/search.yml")
    assert [job.name for job in sweep.jobs] == [f"trial-{number}-datasets-digits" for number in range(4)]


def test_a_grid_of_fewer_trials(tmp_path):
    path = search(tmp_path, "d", method="grid", parameters={"lr": {"values": [0.1, 0.2, 0.3]}})
    assert [job.columns["lr"] for job in load_sweep(path, run_cap=2).jobs] == ["0.1", "0.2"]


def test_the_published_command_of_a_search(tmp_path, monkeypatch, caplog):
    command = ["${program}", "--config=${envvar:CONFIG}", "--hardware=${envvar:HARDWARE}", "--conda=x"]
    path = search(tmp_path, "d", job=None, command=command, program="train.py", name="first")
    monkeypatch.setenv("CONFIG", str(tmp_path / "base.yml"))
    assert load_sweep(path).jobs[0].name == "trial-0-base"
    assert [record.message for record in caplog.records] == [
        f"'{path}': these have no effect: name, program, --hardware=${{envvar:HARDWARE}}, --conda=x; a search is "
        "called like its file; set --cluster, --gpus and --setup for its jobs"
    ]


def test_a_trial_keeps_what_its_job_says_of_the_optimizer(tmp_path):
    [job] = load_sweep(search(tmp_path, "d", parameters={"weight_decay": {"value": 0.5}})).jobs
    assert job.config["train_config"]["optimizer_args"] == {"lr": 0.01, "weight_decay": 0.5}


def test_the_network_of_a_search_is_built_once(tmp_path, monkeypatch):
    built = []
    check = by_dataset.check_network
    monkeypatch.setattr(by_dataset, "check_network", lambda *args, **named: built.append(1) or check(*args, **named))
    path = search(tmp_path, "d", method="grid", parameters={"lr": {"values": [0.1, 0.2, 0.3]}})
    Measured(tmp_path).all(load_sweep(path, seeds=[1]))
    assert len(built) == 1


def test_a_search_does_not_try_other_data_sets_in_place_of_those_of_its_sweep(tmp_path):
    data_sets(tmp_path, "cifar100")
    path = search(tmp_path, "d", job="many.yml", parameters={"dataset": {"values": ["digits"]}})
    with pytest.raises(InputError, match=r"parameters.dataset: '.*many.yml' names data sets too; remove one"):
        load_sweep(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"job": None}, "job is missing; name the file of the job"),
        (
            {"job": None, "command": ["--config=${envvar:NO_SUCH}"]},
            "command: the variable NO_SUCH names no job; set it",
        ),
        ({"method": "magic"}, "method: unknown value 'magic'"),
        ({"method": "grid"}, "parameters.weight_decay: a grid needs values"),
        (
            {"parameters": {"seed": {"values": [1, 2]}}},
            "parameters.seed: all trials run with the same seeds",
        ),
        ({"parameters": {"lr": {"value": -1.0}}}, "AdamW documents what it takes"),
        ({"parameters": {"lr": {"min": 1}}}, "parameters.lr: it has min; set value, values, or min and max"),
        ({"parameters": {"lr": {"min": 1, "max": 0}}}, "parameters.lr: min is 1 and max 0; min must be lower"),
        (
            {"metric": {"name": "Test Acuracy"}},
            "no column of the results ends with 'Test Acuracy'",
        ),
        ({"parameters": {"lr": {"min": -1e308, "max": 1e308}}}, "lr.min is -1e+308; it must be at least -1e+09"),
        ({"run_cap": 1001}, "a search has at most 1000 trials"),
        ({"method": "grid", "parameters": {f"p{n}": {"values": [*range(9)]} for n in range(9)}}, "at most 1000 trials"),
        ({"metrics": 1}, "metrics: unknown key 'metrics'; did you mean 'metric'?"),
    ],
)
def test_mistakes_in_a_search(tmp_path, changes, message):
    with pytest.raises(InputError) as error:
        load_sweep(search(tmp_path, "d", **changes))
    assert message in str(error.value)


def test_flags_of_another_kind(tmp_path):
    path = write_job(tmp_path, job_config("d"), "one.yml")
    with pytest.raises(InputError, match="--trials requires a search, whose file has parameters; omit it"):
        load_sweep(path, run_cap=3)
    with pytest.raises(InputError, match="--seeds has no effect on heads by encoders"):
        load_sweep(write_job(tmp_path, {"ft_configs": [str(path)]}), seeds=[1])


@pytest.mark.full
def test_a_search_runs_and_is_resumed(tmp_path, images, caplog):
    caplog.set_level("INFO")
    command = ["sweep", "-c", str(search(tmp_path, images)), "-o", str(tmp_path / "out"), "--no-pretrained"]
    assert main([*command, "--trials", "1"]) == 0
    assert main([*command, "--trials", "2"]) == 0
    assert "best is trial" in caplog.text
    assert {job.name for job in (tmp_path / "out").glob("trial-*")} == {"trial-0-base", "trial-1-base"}
