"""Every number in a file has two limits, whoever wrote it; and no file makes this machine ask a server."""

import importlib
import io
import json
import os
import pkgutil
import re
import tarfile

import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from pydantic import TypeAdapter

import stitchkit
import stitchnet
from stitchkit.assembly.parts.network import check_network
from stitchkit.assembly.parts.pretrained import WholeNetwork
from stitchkit.assembly.parts.spec import NetworkSpec, PartSpec
from stitchkit.data.loader_processes import workers_for
from stitchkit.data.timm_readers import num_names, open_timm
from stitchkit.distributed import World
from stitchkit.errors import InputError
from stitchkit.networks.create import create_anchor, load_model
from stitchkit.networks.trained_with import TrainedWith
from stitchkit.settings.by_name import checked_of_file, make_recipe
from stitchkit.settings.combinations import check
from stitchkit.settings.files import read_settings_file
from stitchkit.settings.schema import Settings
from stitchkit.settings.stitch_config import AnchorSpec
from stitchkit.ship.description import build
from stitchkit.training.checkpoint import FORMAT, check_header
from stitchkit.training.optim import create_schedule
from tests.commands import refused
from tests.jobs import job_config, write_job
from tests.support import mostly_full, pico_config, write_config


def all_settings(kind=Settings):
    """All schemas, also those of parts of jobs."""
    for inner in kind.__subclasses__():
        yield inner
        yield from all_settings(inner)


def endless(schema, place):
    """The places of numbers in a JSON Schema that have no limit below or above."""
    if isinstance(schema, list):
        for number, item in enumerate(schema):
            yield from endless(item, f"{place}[{number}]")
    if not isinstance(schema, dict):
        return
    if schema.get("type") in ("integer", "number") and not schema.keys() >= {"minimum", "maximum"}:
        yield place
    for key, item in schema.items():
        if key != "default":
            yield from endless(item, f"{place}.{key}")


def test_every_number_in_a_schema_has_two_limits():
    for package in (stitchkit, stitchnet):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "__main__" not in module.name:
                importlib.import_module(module.name)
    open_ended = {
        place
        for kind in all_settings()
        if kind.__module__.split(".")[0] in ("stitchkit", "stitchnet")
        for place in endless(TypeAdapter(kind).json_schema(), kind.__name__)
    }
    # The number of a GPU, and values of a search, which are checked as settings of the jobs that have them.
    allowed = re.compile(r"\.device\.|\.values?\.|\b(in|out)_format\b|\$defs")
    assert not sorted(place for place in open_ended if not allowed.search(place))


SETTINGS = [
    {"seed": 2**32},
    {"seed": 18446744073709551616},
    {"epochs": 10**25},
    {"epochs": 1e25},
    {"lr_cycle_mul": 1e308},
    {"lr_cycle_mul": 1000, "lr_cycle_limit": 10**6},
    {"flops_sampling_k": 1e-320},
    {"validation_batch_size": 1e25},
    {"validation_batch_size": 10**25},
    {"workers": 10**6},
    {"aug_splits": 1_000_000},
    {"recount": 10**9},
    {"img_size": 99_999},
    {"input_size": [3, 10**6, 10**6]},
    {"opt_kwargs": {"eps": 10**400}},
    {"opt_kwargs": {"eps": {"a": [float("nan")]}}},
    {"model_kwargs": {"mlp_ratio": 1e9}},
    {"model_kwargs": {"embed_dim": 10**9}},
    {"model_kwargs": {"img_size": 99_999}},
    {"model_kwargs": {"depth": 1_000_000}},
    {"model_kwargs": {"block_args": [[{"mid": 10**9}]]}},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_number_beyond_its_limit_is_refused(settings):
    with pytest.raises(InputError) as error:
        checked_of_file(settings)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("text", ["seed: 010", "lr: 1:30:00", "lr: 1:30.5", "seed: -0_10", "hflip: 00.5"])
def test_numbers_that_yaml_1_1_reads_otherwise_are_refused(text, tmp_path):
    path = tmp_path / "a.yml"
    path.write_text(f"a: 1\n{text}\n")
    with pytest.raises(InputError, match=r"line 2: .* is another number in YAML 1.1 than in 1.2; write"):
        read_settings_file(path)


def test_numbers_and_texts_that_only_look_like_those_are_read(tmp_path):
    path = tmp_path / "a.yml"
    path.write_text("a: 0.5\nb: 0\nc: '010'\nd: '1:30'\ne: 0x1f\nf: 1_000\ng: 2026-01-01\nh: 0e3\ni: 10.0\nj: -0.0\n")
    assert [*read_settings_file(path).values()][:6] == [0.5, 0, "010", "1:30", 31, 1000]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a{0..99999999}.tar", 10**8),
        ("{a,b}" * 30, 2**30),
        ("{{a,b}{c,d}}.tar", 4),
        ("p{2.{5..7},3.{2,3}}", 5),
        ("x", 1),
        ("a{07..10}", 4),
        (r"{a\},b}", 2),
        (r"\{a,b\}", 1),
    ],
)
def test_the_names_of_a_pattern_are_counted_before_they_are_made(pattern, names):
    assert num_names(pattern) == names


@pytest.mark.parametrize("split", ["a{0..99999999}.tar", "{a,b}" * 30 + ".tar", "{a,{b,c}}" * 600 + ".tar"])
def test_patterns_of_too_many_shards_are_refused(split, tmp_path):
    with pytest.raises(InputError, match="names more than 1,000,000 shards"):
        open_timm("wds/x", root=str(tmp_path), split=split)


def test_more_loader_processes_than_cores_can_serve_are_refused(monkeypatch):
    monkeypatch.setattr("stitchkit.data.loader_processes.usable_cores", lambda: 2)
    with pytest.raises(InputError, match="--workers is 150, and this machine has 2 cores; give at most 32"):
        workers_for([], 150, World(0, 1, torch.device("cpu")))
    assert workers_for([], 32, World(0, 1, torch.device("cpu"))) == 32


@pytest.mark.parametrize(
    "arguments",
    [{"depth": 1_000_000}, {"embed_dim": 10**7}, {"mlp_ratio": 1e9}, {"img_size": 99_999}, [1], {"depth": 1e400}],
    ids=str,
)
def test_the_folder_of_a_model_has_the_limits_of_kwargs(arguments, tmp_path):
    config = {
        "architecture": "vit_tiny_patch16_224",
        "pretrained_cfg": {"num_classes": 4},
        "model_args": arguments,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError):
        stitchkit.create_model(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    "description",
    [
        {"pretrained_cfg": {"num_classes": 10**8}},
        {"pretrained_cfg": {"num_classes": 4}, "num_classes": 10**8},
        {"num_classes": 10**8},
        {"pretrained_cfg": {"num_classes": -5}},
        {"pretrained_cfg": {"input_size": [3, 99_999, 99_999], "fixed_input_size": True}},
        {"pretrained_cfg": {"input_size": [10**7, 224, 224]}},
        {"pretrained_cfg": {"input_size": None}},
        {"pretrained_cfg": [1]},
    ],
    ids=str,
)
def test_so_has_its_description_of_weights(description, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", **description}))
    with pytest.raises(InputError, match=r"sets (num_classes|in_chans) to|input_size|pretrained_cfg is \[1\]"):
        stitchkit.create_model(f"local-dir:{tmp_path}")


def test_the_folder_of_a_model_is_built(tmp_path):
    config = {
        "architecture": "vit_tiny_patch16_224",
        "pretrained_cfg": {"num_classes": 4},
        "model_args": {"depth": 1, "embed_dim": 12},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert len(stitchkit.create_model(f"local-dir:{tmp_path}").blocks) == 1


def test_a_model_larger_than_the_memory_is_refused_before_it_is_built():
    kwargs = {"embed_dim": 60_000, "num_heads": 60, "depth": 100}
    spec = AnchorSpec("vit_tiny_patch16_224", label="a", kwargs=kwargs)
    with pytest.raises(InputError, match=r"has [\d,]+ GiB of weights, and this machine [\d,]+ GiB of memory"):
        create_anchor(spec, pretrained=False)


def test_models_of_torchvision_have_the_same_limits():
    with pytest.raises(InputError, match="sets mlp_ratio to 1e"):
        load_model("torchvision/vit_b_16", pretrained=False, mlp_ratio=1e9)
    with pytest.raises(InputError, match=r"has [\d,]+ GiB of weights, and this machine"):
        load_model("torchvision/resnet50", pretrained=False, width_per_group=60_000)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr_cycle_mul": 1000, "lr_cycle_limit": 1000}, "timm cannot compute this schedule"),
        ({"lr_k_decay": 1000}, "timm cannot compute this schedule"),
        ({"sched": "step", "decay_rate": 1e9, "decay_epochs": 1, "epochs": 300}, "timm cannot compute this schedule"),
        ({"lr_cycle_decay": 1e9, "lr_cycle_limit": 1000, "epochs": 2}, "timm cannot compute this schedule"),
        ({"lr_cycle_mul": 0.5, "cooldown_epochs": 300, "warmup_epochs": 0}, "timm cannot compute this schedule"),
        ({"lr_cycle_mul": 2, "lr_cycle_limit": 40}, "at most 1,000,000 are trained"),
        ({"epochs": 10**9}, "at most 1,000,000 are trained"),
    ],
    ids=str,
)
@pytest.mark.parametrize("on_updates", [False, True])
def test_a_schedule_that_cannot_be_computed_is_refused(settings, words, on_updates):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(InputError, match=words):
        create_schedule(make_recipe({**settings, "sched_on_updates": on_updates}), optimizer, updates_per_epoch=10)


def test_noise_that_would_be_drawn_for_ever_is_refused():
    noise = {"lr_noise": [0.0], "lr_noise_std": 1e9, "lr_noise_pct": 1e-6}
    with pytest.raises(InputError, match=r"--lr-noise-std is 1000000000\.0, and noise beyond --lr-noise-pct 1e-06"):
        check(make_recipe({"model": "resnet18", "data_dir": "x", **noise}))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (["BaseBlock", {"SimpleAdapter": {"in_format": ["img", [8, 10**9, 10**9]]}}], "does not suit img"),
        (["BaseBlock", {"Function": {"name": "relu", "in_format": ["img", [10**5, 10**5]]}}], "numbers for each image"),
        (["BaseBlock", {"Function": {"name": "interpolate", "size": [10**5, 10**5]}}], "numbers for each image"),
        (["BaseBlock", {"ClassifierHead": {"pooled_size": [8192, 8192], "num_classes": 10**5}}], "GiB of weights, and"),
    ],
    ids=str,
)
def test_parts_of_a_job_multiply_within_limits(parts, words):
    parts = [{"BaseBlock": {"channels": 8}} if part == "BaseBlock" else part for part in parts]
    spec = NetworkSpec(tuple(PartSpec.parse(part, "assembly") for part in parts))
    with pytest.raises(InputError, match=words):
        check_network(spec, num_classes=3, input_size=(3, 32, 32))


@pytest.mark.parametrize("size", [[3, 99_999, 99_999], [10**6, 8, 8], [3, 0, 8], [3, 8], "x"], ids=str)
def test_sizes_in_checkpoints_have_limits(size):
    content = {"format": FORMAT, "state_dict": {}, "optimizer": {}, "opt": "sgd", "epoch": 0, "stitch_config": None}
    content |= {"metric": 1.0, "history": {0: 1.0}}
    check_header({**content, "input_size": [3, 8, 8], "num_classes": 4}, None, "a.pth")
    for wrong in ({"input_size": size}, {"num_classes": 10**6}):
        with pytest.raises(InputError, match=r"'a.pth' is damaged: (input_size|num_classes)"):
            check_header({**content, **wrong}, None, "a.pth")
    assert TrainedWith.read({"input_size": size}, "a.pth").input_size is None
    assert TrainedWith.read({"input_size": [3, 8, 8]}, "a.pth").input_size == (3, 8, 8)


def write_shards(folder, **changes):
    """A folder with a shard of one image, and what its `_info.json` says of it."""
    with tarfile.open(folder / "a.tar", "w") as shard:
        for suffix, content in (("png", png()), ("cls", b"0")):
            member = tarfile.TarInfo(f"0.{suffix}")
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    split = {"num_samples": 1, "filenames": ["a.tar"], "shard_lengths": [1], "name": "train", **changes}
    (folder / "_info.json").write_text(json.dumps({"splits": {"train": split}}))


def png():
    """An image as a file."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_samples": 10**30},
        {"num_samples": "x"},
        {"num_samples": -1},
        {"filenames": "a.tar"},
        {"filenames": [1]},
        {"filenames": ["a.tar"] * 1_000_001},
        {"filenames": ["../a.tar"]},
        {"filenames": ["/a.tar"]},
        {"shard_lengths": [10**30]},
        {"shard_lengths": [0.5]},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_what_a_stream_says_of_itself_has_limits(changes, tmp_path):
    write_shards(tmp_path)
    assert len(open_timm("wds/x", root=str(tmp_path), split="train").reader.split_info.filenames) == 1
    write_shards(tmp_path, **changes)
    with pytest.raises(InputError):
        open_timm("wds/x", root=str(tmp_path), split="train")


def test_a_pipe_in_place_of_what_a_stream_says_makes_nobody_wait(tmp_path):
    os.mkfifo(tmp_path / "_info.json")
    with pytest.raises(InputError, match=r"_info\.json' is not a file"):
        open_timm("wds/x", root=str(tmp_path), split="train")


ABOUT = {
    "format": "stitchkit stitch 1", "stitch": "a[0:3]", "stitched_final_norm": True, "bn_eps": None,
    "anchors": [{"name": "vit_tiny_patch16_224", "label": "a", "kwargs": {"depth": 1, "embed_dim": 12}}],
    "input": {"input_size": [3, 224, 224]},
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"bn_eps": "x"}, {"bn_eps": -1}, *({"input": {"input_size": size}} for size in ([3, 1e9, 1e9], "x", [3], None))],
    ids=str,
)
def test_descriptions_of_exports_have_limits(change):
    with pytest.raises(InputError, match=r"^its description is damaged"):
        build({**ABOUT, **change})


@pytest.fixture
def no_server(monkeypatch, tmp_path):
    """No connection can be made, and each attempt is counted; nothing was ever downloaded."""
    asked = []

    def connect(*given, **_):
        asked.append(given)
        raise OSError("no server may be asked")

    for place in ("socket.getaddrinfo", "socket.create_connection", "socket.socket.connect"):
        monkeypatch.setattr(place, connect)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    assert not asked, "a server was asked"


EVIL = "hf-hub:evil/model"
_ADVICE = "run hf download evil/model, or type the name as --model or --anchors"


def of_hub(folder):
    """A stitch configuration, a file of settings, and a job, each with a model on the Hub."""
    anchors = [EVIL, "vit_tiny_patch16_224"]
    config = write_config(folder / "net.json", **{**pico_config(), "anchors": anchors})
    recipe, teacher = folder / "recipe.yml", folder / "teacher.yml"
    recipe.write_text(f"model: '{EVIL}'\n")
    teacher.write_text("model: resnet18\ndistillation_type: soft\nteacher_model: hf_hub:evil/model\n")
    content = {"model": {"Net": {"model_name": EVIL}}, "train_config": job_config("digits")["train_config"]}
    job = write_job(folder, content)
    return config, recipe, teacher, job


def test_no_file_makes_a_command_ask_a_server(images, no_server, capsys):
    config, recipe, teacher, job = of_hub(no_server)
    for command in (
        ["train", images, "--stitch_config", config, "--dry-run"],
        ["train", images, "--stitch_config", config, "--no-pretrained"],
        ["train", images, "-c", recipe, "--dry-run"],
        ["train", images, "-c", teacher, "--dry-run"],
        ["profile", "--stitch_config", config],
        ["job", "-c", job, "-o", no_server / "out", "--no-pretrained"],
        ["job", "-c", job, "-o", no_server / "out", "--dry-run"],
    ):
        assert _ADVICE in refused(capsys, *command), command


def test_a_checkpoint_and_python_ask_no_server_either(no_server):
    content = {**pico_config(), "anchors": [EVIL, "vit_tiny_patch16_224"]}
    for read in (stitchkit.StitchConfig.parse, stitchkit.create_snnet, stitchkit.HubSNNet):
        with pytest.raises(InputError, match=_ADVICE):
            read(content)


def cached(folder):
    """A model on the Hub with its description alone in the cache; the description, and its folder."""
    folder /= "cache/models--good--model"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0" * 40)
    config = {
        "architecture": "vit_tiny_patch16_224",
        "pretrained_cfg": {"num_classes": 4},
        "model_args": {"depth": 2, "embed_dim": 12},
    }
    (snapshot / "config.json").write_text(json.dumps(config))
    return config, snapshot


def test_no_file_makes_a_command_fetch_the_weights_of_a_model_whose_description_is_cached(images, no_server, capsys):
    _, snapshot = cached(no_server)
    name, advice = "hf-hub:good/model", "whose weights are not in this machine's cache"
    anchors = {"anchors": [name, {"name": name, "label": "b"}]}
    with pytest.raises(InputError, match=advice):
        stitchkit.create_snnet({**pico_config(), **anchors}, pretrained=True)
    for content in ({"model": name, "pretrained": True}, {"teacher_model": name}):
        with pytest.raises(InputError, match=advice):
            checked_of_file(content)
    with pytest.raises(InputError, match=advice):
        WholeNetwork(model_name=name, num_classes=4)
    recipe = no_server / "recipe.yml"
    recipe.write_text(f"model: '{name}'\n")
    assert advice in refused(capsys, "train", images, "-c", recipe, "--pretrained", "--dry-run")
    stitchkit.StitchConfig.parse({**pico_config(), **anchors, "recipe": {"pretrained": False}})
    (snapshot / "model.safetensors").write_text("")
    stitchkit.StitchConfig.parse({**pico_config(), **anchors})


def test_what_is_fetched_has_the_limits_of_a_folder(monkeypatch, tmp_path):
    config, snapshot = cached(tmp_path)
    config["model_args"]["depth"] = 10**6
    (snapshot / "config.json").write_text(json.dumps(config))

    def fetch(*_, **__):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("stitchkit.networks.hub_weights.check_reachable", lambda _: None)
    monkeypatch.setattr("stitchkit.networks.hub_weights.hf_hub_download", fetch)
    with pytest.raises(InputError, match="more than 1000 blocks"):
        stitchkit.create_model("hf-hub:good/model")


def test_a_model_in_the_cache_is_built_without_a_server(no_server):
    config, snapshot = cached(no_server)
    assert checked_of_file({"model": "hf-hub:good/model"}) == {"model": "hf-hub:good/model"}
    assert len(stitchkit.create_model("hf-hub:good/model").blocks) == 2
    config["model_args"]["depth"] = 10**6
    (snapshot / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="more than 1000 blocks"):
        stitchkit.create_model("hf-hub:good/model")


@pytest.mark.parametrize("name", mostly_full([*timm.list_models()][::97], quick=timm.list_models()[:1]))
def test_no_size_of_timm_is_refused(name):
    with torch.device("meta"):
        stitchkit.create_model(name)
