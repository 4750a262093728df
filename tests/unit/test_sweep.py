"""Sweeps: their configuration, plan and folders."""

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import yaml

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.parts.spec import PartSpec
from stitchkit.assembly.sweep.config import load_sweep
from stitchkit.assembly.sweep.kinds import gaps
from stitchkit.assembly.sweep.kinds.gaps import DEFAULT_GAPS, Gap, find_shapes, plan_gaps
from stitchkit.assembly.sweep.kinds.stitchers import DEFAULT_STITCHERS
from stitchkit.assembly.sweep.plan import choose, table
from stitchkit.assembly.sweep.worker import SweepJob
from stitchkit.cli import main
from stitchkit.errors import InputError
from stitchkit.networks.layout import Layout
from tests.commands import refused
from tests.support import ROOT, SWEEP, mostly_full, write_sweep

PUBLISHED = sorted(
    path for path in (ROOT / "configs/across-scales").glob("*.yml") if path.stem not in ("train", "digits")
)


@pytest.fixture(autouse=True, scope="module")
def networks_run_dry_once():
    """Twelve times a published sweep asks for the shapes of one of four networks; each is run dry once."""
    known = {}

    def shapes(pieces, image_size):
        key = repr([(piece.name, piece.arguments) for piece in pieces]), image_size
        if key not in known:
            known[key] = find_shapes(pieces, image_size)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stitchkit.assembly.sweep.kinds.gaps.find_shapes", shapes)
        yield


@cache
def planned(stem):
    jobs = plan_gaps(ROOT / f"configs/across-scales/{stem}.yml").jobs
    return {(job.metadata["first_deleted_block"], job.metadata["last_deleted_block"], job.metadata["adapter"]): job
            for job in jobs if job.metadata["adapter"]}  # fmt: skip


def part(job, number):
    [(name, values)] = job.config["assembly"][number].items()
    return name, values


@pytest.mark.full
def test_the_published_sweeps_and_what_does_not_apply():
    """The publication counts 83 of 720. Its check of `finetune` compares the ends of the kept pieces alone, so it lets
    two jobs of MobileNetV3 start whose pieces 4 and 6 do not fit together; here they do not apply either: 85."""
    counts = {path.stem: Counter(not job.applies for job in planned(path.stem).values()) for path in PUBLISHED}
    assert sum(count.total() for count in counts.values()) == 8 * 90
    assert {stem: count[True] for stem, count in counts.items()} == {
        "mobilenet-v3": 4, "resnet-50": 0, "swin-t": 0, "vit-s": 45,
        "resnet-50-swin-t": 9, "resnet-50-vit-s": 9, "vit-s-resnet-50": 9, "vit-s-swin-t": 9,
    }  # fmt: skip
    beyond = planned("mobilenet-v3")
    assert [gap for gap in DEFAULT_GAPS if not beyond[gap.first, gap.last, "finetune"].applies] == [
        Gap((1, 6), 3), Gap((3, 6), 2), Gap((5, 5), 0), Gap((5, 6), 1)
    ]  # fmt: skip
    assert (
        beyond[1, 6, "finetune"].note
        == "slice 6 takes img [112, 14, 14], but the previous slice returns img [80, 14, 14]"
    )


@pytest.mark.parametrize("name", mostly_full(["mobilenet-v3", "resnet-50", "swin-t", "vit-s"], quick=["mobilenet-v3"]))
def test_published_pieces_give_the_shapes_that_they_declare(name):
    content = yaml.safe_load((ROOT / f"configs/across-scales/pieces/{name}.yml").read_text())
    specs = [PartSpec.parse(value, f"stages[{number}]") for number, value in enumerate(content)]
    assert len(specs) == 8
    found = gaps.find_shapes(specs, (224, 224))
    gives = [Layout.parse(spec.arguments["out_format"]) for spec in specs[:-1]]
    assert None not in gives
    assert [shape.gives for shape in found] == [*gives, Layout("vector")]
    taken = [spec.arguments.get("in_format") for spec in specs[1:]]
    assert [shape.takes for shape in found[1:]] == [
        Layout.parse(own) if own else before for own, before in zip(taken, gives, strict=True)
    ]


def test_a_job_is_frozen_pieces_around_a_trainable_adapter():
    job = planned("resnet-50-swin-t")[1, 4, "downsample_then_linear"]
    assert job.name == "train-resnet-50-swin-t-gap-1,4-adapter-downsample_then_linear"
    assert [next(iter(value)) for value in job.config["assembly"]] == [
        "Subnet",
        *["SimpleAdapter"] * 2,
        *["Subnet"] * 3,
    ]
    assert [part(job, number)[1]["frozen"] for number in range(6)] == [True, False, False, True, True, True]
    assert part(job, 0)[1]["block_output"] == "layer1.0"
    assert part(job, 3)[1] == {
        "backend": "pytorch", "model_name": "swin_t", "block_input": "features.5", "block_output": "features.5",
        "in_format": ["bhwc", [384, 14, 14]], "out_format": ["bhwc", [384, 14, 14]], "frozen": True,
    }  # fmt: skip
    assert job.metadata == {
        "arch": "resnet-50-swin-t", "first_deleted_block": 1, "last_deleted_block": 4, "num_downsamples": 2,
        "adapter": "downsample_then_linear", "uncut": "",
    }  # fmt: skip
    assert JobConfig.parse(job.config).train_config.seed == 12345


def test_without_down_sampling_later_pieces_declare_no_size():
    job = planned("resnet-50-vit-s")[1, 6, "linear_no_downsample"]
    assert part(job, 3)[1]["in_format"] == ["img", [384, 56, 56]]
    assert (part(job, 4)[1]["in_format"], part(job, 4)[1]["out_format"]) == ("bert", "vector")


def test_finetune_keeps_the_pieces_that_down_sample_and_trains_all():
    job = planned("resnet-50")[1, 6, "finetune"]
    assert [part(job, number)[1]["block_input"] for number in range(5)] == [
        "x", "layer2.0", "layer3.0", "layer4.0", "layer4.1"
    ]  # fmt: skip
    assert not any(part(job, number)[1]["frozen"] for number in range(5))
    assert "adapter params" not in job.columns


def test_the_uncut_networks_are_tested_too():
    jobs = [job for job in plan_gaps(ROOT / "configs/across-scales/resnet-50-swin-t.yml").jobs if job.metadata["uncut"]]
    assert [job.name for job in jobs] == [f"test-resnet-50-swin-t-uncut-{name}" for name in ("source", "destination")]
    assert all(len(job.config["assembly"]) == 8 for job in jobs)
    assert all(JobConfig.parse(job.config).test_only for job in jobs)
    [alone] = [job for job in plan_gaps(ROOT / "configs/across-scales/swin-t.yml").jobs if job.metadata["uncut"]]
    assert alone.name == "test-swin-t-uncut-source"


def test_an_uncut_network_gets_images_as_its_weights_were_trained_with():
    """The publication normalises all images as ImageNet's; ViTs of timm's augreg weights were trained otherwise."""
    path = ROOT / "configs/across-scales/resnet-50-vit-s.yml"
    source, destination = (JobConfig.parse(job.config) for job in plan_gaps(path).jobs[:2])
    assert source.train_config.data_preprocessing["mean"] == [0.485, 0.456, 0.406]
    assert destination.train_config.data_preprocessing["mean"] == [0.5, 0.5, 0.5]
    given = plan_gaps(path, data_preprocessing={"mean": [0, 0, 0], "std": [1, 1, 1]})
    assert all(
        job.config["train_config"]["data_preprocessing"]["mean"] == [0, 0, 0] for job in given.jobs if job.config
    )


def test_mistakes_in_files_and_flags(tmp_path, capsys):
    files = {
        "datasets: [digits]\nsedes: [1]\ntrain_config: {epochs: 1}\n": "line 2: sedes: unknown key 'sedes'",
        "stages: []\ntrain_config: {dataset: digits, epoch: 1}\n": "line 2: train_config.epoch: unknown key",
        "stages: []\nepochs: 1\ntrain_config: {dataset: digits}\n": "line 2: epochs is at the wrong level; move it",
        "ft_configs: [a.yml]\nworker: 3\n": "line 2: worker: unknown key 'worker'; did you mean 'workers'",
        "job: a.yml\nparameters: {}\nmetod: grid\n": "line 3: metod: unknown key 'metod'; did you mean 'method'",
    }
    commands = {
        ("-c", "nowhere.yml"): "'nowhere.yml' cannot be read",
        ("-c", "x", "--hours", "3"): "--hours requires Slurm",
        ("--report", "nowhere"): "folder 'nowhere' does not exist",
    }
    for number, (text, words) in enumerate(files.items()):
        (tmp_path / f"{number}.yml").write_text(text)
        commands["-c", str(tmp_path / f"{number}.yml")] = words
    for flags, words in commands.items():
        assert main(["sweep", *flags]) == 2
        assert words in capsys.readouterr().err


def test_folders(tmp_path):
    job = planned("swin-t")[5, 6, "conv3x3_with_downsample"]
    place = job.write(tmp_path)
    assert place == tmp_path / "train-swin-t-gap-5,6-adapter-conv3x3_with_downsample"
    (place / "metadata.yml").write_text("num_params: 5\n")
    job.write(tmp_path)
    assert yaml.safe_load((place / "metadata.yml").read_text()) == {"num_params": 5, **job.metadata}
    assert JobConfig.load(place / "config.yml").to_dict() == JobConfig.parse(job.config).to_dict()


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    config = str(ROOT / "configs/across-scales/vit-s.yml")
    assert main(["sweep", "-c", config, "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 1 + 90 + 1
    assert lines[0].split() == ["job", "gap", "down", "stitcher", "adapter", "params"]
    assert lines[2].split() == ["2", "1,1", "0", "finetune", "-", "everything", "trains"]
    assert lines[3].split() == ["3", "1,1", "0", "linear_no_downsample", "149k"]  # 384 x 385, and two norms
    assert lines[5].split(maxsplit=5)[3:] == [
        "bottleneck_no_downsample", "-",
        "does not apply: a ResNet bottleneck needs an image-like side; both sides are sequences",
    ]  # fmt: skip
    assert lines[-1] == "46 jobs with seed 12345; 45 combinations left out"
    assert not (tmp_path / "out").exists()
    done = tmp_path / "out" / load_sweep(config).jobs[1].name
    done.mkdir(parents=True)
    (done / "result-12345.pkl").touch()
    assert main(["sweep", "-c", config, "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith(f"45 combinations left out; 1 done already in '{tmp_path / 'out'}'\n")


def test_shapes_that_are_not_declared_are_found_by_a_dry_run():
    declared = [PartSpec.parse(piece, f"stages[{number}]") for number, piece in enumerate(SWEEP["stages"])]
    bare = [
        replace(piece, arguments={**piece.arguments, "in_format": taken, "out_format": given})
        for piece, taken, given in zip(declared, ["img", *["bert"] * 3], [*["bert"] * 3, "vector"], strict=True)
    ]
    shapes = [(piece.takes, piece.gives) for piece in find_shapes(declared, (16, 16))]
    assert [(piece.takes, piece.gives) for piece in find_shapes(bare, (16, 16))] == shapes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stitchers": ["liner_no_downsample"]}, "stitchers[0]: unknown stitcher 'liner_no_downsample'; did you mean"),
        ({"stitchers": "finetune"}, "stitchers is 'finetune'; it must be a list"),
        (
            {"gaps": [{"blocks_to_drop": [2, 1], "num_downsamples": 0}]},
            "gaps[0]: blocks_to_drop is [2,1]; it must be [first, last] with 1 <= first <= last",
        ),
        ({"gaps": [{"blocks_to_drop": [1, 3], "num_downsamples": 0}]}, "gaps[0]: [1,3] leaves no slice of a network"),
        ({"gaps": [{"blocks_to_drop": [1, 1]}]}, "gaps[0].num_downsamples is missing"),
        (
            {"gaps": [{"blocks_to_drop": [1, 1], "num_downsamples": count} for count in (0, 1)]},
            "gaps: it has 1,1 twice; remove one of the two",
        ),
        ({"stitchers": ["finetune", "finetune"]}, "stitchers: it has finetune twice; remove one of the two"),
        ({"dest_stages": []}, "either stages, or src_stages and dest_stages"),
        (
            {"stages": [{"Subnet": {}, "Net": {}}]},
            "stages[0]: {'Net': {}, 'Subnet': {}} is not a part; write one class name",
        ),
        ({"assembly": SWEEP["stages"]}, "assembly: a sweep has slices in place of a network; remove it"),
        ({"epochs": 3}, "epochs is at the wrong level"),
        ({"train_config": {"epochs": -1, "dataset": "digits"}}, "train_config.epochs is -1"),
        ({"train_config": [1]}, "train_config is [1]; it must be settings by name"),
        (
            {"train_config": {"epochs": 1, "data_preprocessing": [1], "dataset": "d"}},
            "train_config.data_preprocessing is [1]",
        ),
    ],
)
def test_a_wrong_configuration_ends_with_its_file_and_place(tmp_path, changes, message):
    path = write_sweep(tmp_path, tmp_path, **changes)
    with pytest.raises(InputError) as error:
        plan_gaps(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_that_are_none_are_an_error_with_flags_too(tmp_path):
    path = write_sweep(tmp_path, tmp_path, train_config=[1])
    with pytest.raises(InputError, match=r"line \d+: train_config is \[1\]; it must be settings by name"):
        plan_gaps(path, epochs=1)


@pytest.mark.parametrize(
    ("piece", "changes", "message"),
    [
        (0, {"model_name": "nope"}, "stages[0].Subnet: "),
        (1, {"block_inptu": "blocks.1"}, "stages[1].Subnet.block_inptu: "),
        (1, {"block_input": "layer9.0"}, "stages[1].Subnet: "),
        (1, {"out_format": ["bert", [64, 16]]}, "stages[1].Subnet.out_format: it is bert [64, 16], but the slice "),
        (0, {"out_format": ["bert", [32, 4]]}, "stages[0].Subnet.out_format: it is bert [32, 4], but the slice "),
        (2, {"in_format": ["bert", 16]}, "stages[2].Subnet.in_format: it is bert [16], but the slice takes bert "),
        (1, {"out_format": "brt"}, "stages[1].Subnet.out_format: unknown format 'brt'"),
        (1, {"out_format": None}, "stages[1] has no out_format, which a sweep needs"),
    ],
)
def test_what_pieces_declare_is_compared_with_what_they_do(tmp_path, piece, changes, message):
    path = write_sweep(tmp_path, tmp_path)
    content = yaml.safe_load(path.read_text())
    content["stages"][piece]["Subnet"].update(changes)
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError) as error:
        plan_gaps(path)
    assert f"'{path}', line " in str(error.value)
    assert f": {message}" in str(error.value)


def test_what_both_networks_declare_is_compared_with_what_they_do(tmp_path):
    stages = yaml.safe_load(write_sweep(tmp_path, tmp_path).read_text())["stages"]
    wrong = [*stages[:2], {"Sbnet": stages[2]["Subnet"]}, stages[3]]
    path = write_sweep(tmp_path, tmp_path, src_stages=stages, dest_stages=wrong)
    content = yaml.safe_load(path.read_text())
    del content["stages"]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"line \d+: dest_stages\[2\]\.Sbnet: unknown key 'Sbnet'"):
        plan_gaps(path)


def test_flags_take_the_place_of_the_files_settings(tmp_path):
    config = plan_gaps(write_sweep(tmp_path, tmp_path), seed=7, epochs=1, data_path="data")
    assert config.seeds == (7,)
    assert {job.config["train_config"]["epochs"] for job in config.jobs} == {1}
    assert {job.config["data_path"] for job in config.jobs} == {"data"}


def test_the_digits_sweep_can_be_planned():
    jobs = plan_gaps(ROOT / "configs/across-scales/digits.yml").jobs
    assert all(job.applies for job in jobs)
    assert "does not apply" not in table(choose(jobs, []))
    assert DEFAULT_STITCHERS
    assert [part(jobs[-1], number)[1]["frozen"] for number in (0, 3, 4)] == ["statistics", False, True], "as measured"


def test_the_published_scripts_can_read_the_metadata_of_a_sweep():
    """They make an index of all values, which needs the same keys in every job, and no value that is none."""
    first, *others = [job.metadata for job in plan_gaps(ROOT / "configs/across-scales/digits.yml").jobs]
    assert {"arch", "first_deleted_block", "last_deleted_block", "num_downsamples", "adapter"} < first.keys()
    for about in others:
        assert {key: type(value) for key, value in about.items()} == {key: type(value) for key, value in first.items()}


@pytest.mark.parametrize("is_primary", [True, False])
def test_the_first_rank_alone_removes_checkpoints(tmp_path, monkeypatch, is_primary):
    """Another rank is done while the first may still save."""
    job = SweepJob(planned("swin-t")[5, 6, "conv3x3_with_downsample"].write(tmp_path))
    job.checkpoints.mkdir()
    monkeypatch.setattr("stitchkit.assembly.sweep.worker.run_job", lambda config, source: None)
    job._run(is_primary)
    assert job.checkpoints.exists() != is_primary


def test_the_first_reason_of_a_failure_stays(tmp_path):
    job = SweepJob(tmp_path)
    job.fail("the loss is nan")
    job.fail("connection closed by peer")
    assert job.state == "failed"
    assert job.failure.read_text() == "the loss is nan\n"


def test_only_some_jobs_of_a_plan(tmp_path):
    jobs = plan_gaps(write_sweep(tmp_path, tmp_path)).jobs
    assert [*choose(jobs, [])] == [1, 2, 3]
    assert [*choose(jobs, ["3", "1"])] == [1, 3]
    assert [*choose(jobs, ["2-9"])] == [2, 3]
    assert [*choose(jobs, ["*finetune", "test-*"])] == [1, 2]
    assert choose(jobs, [jobs[2].name]) == {3: jobs[2]}
    for wanted in ("4", "0", "finetune", "3-2"):
        with pytest.raises(InputError, match=rf"--only {wanted} chooses no job; the plan has the numbers 1 to 3"):
            choose(jobs, ["1", wanted])


def test_only_jobs_that_do_not_apply(tmp_path, capsys):
    config = ROOT / "configs/across-scales/vit-s.yml"
    assert main(["sweep", "-c", str(config), "--dry-run", "--only", "5", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["2", "5"]  # as in the whole plan
    assert lines[-1] == "1 job with seed 12345; 1 combination left out"
    assert "no job that --only chooses applies: a ResNet" in refused(capsys, "sweep", "-c", config, "--only", "5")
