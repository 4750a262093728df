"""Released files of SN-Netv2: each key works, or a line says why it does not."""

from typing import NamedTuple

import pytest

from stitchkit.errors import InputError
from stitchkit.measure.ledger import read_rows
from stitchkit.model.create import read_config
from stitchkit.settings.by_name import make_recipe
from stitchkit.settings.flags import resolve
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.training.samplers import CostBins, create_sampler
from tests.support import ROOT


class Blocks(NamedTuple):
    """As much of an anchor as a rule asks for."""

    label: str
    depths: tuple[int, ...]
    stitched_stages: tuple[int, ...] = (0,)


RELEASED = {
    "anchors": ["deit_small_patch16_LS", "deit_large_patch16_LS"],
    "batch_size": 64,
    "snnet_name": "snnet_v2",
    "data_path": "/data2/datasets/imagenet",
    "data_set": "IMNET",
    "exp_name": "stitch_s_l_v2_lora_r_64_50_ep",
    "input_size": 224,
    "num_workers": 10,
    "lr": 0.00003,
    "warmup_lr": 1e-7,
    "epochs": 50,
    "weight_decay": 0.02,
    "sched": "cosine",
    "eval_crop_ratio": 1.0,
    "reprob": 0.0,
    "smoothing": 0.1,
    "warmup_epochs": 5,
    "drop": 0.0,
    "seed": 0,
    "opt": "fusedlamb",
    "mixup": 0,
    "anchor_drop_path": [0.05, 0.4],
    "cutmix": 1.0,
    "color_jitter": 0.3,
    "unscale_lr": True,
    "no_repeated_aug": True,
    "ThreeAugment": True,
    "src": True,
    "lora_r": 64,
    "pretrained_deit": "../pretrained_weights",
}
"""config/deit_stitching_snnetv2_s_l.json of the released code."""
OF_THE_AUTHORS = {"data_dir", "dataset", "experiment", "img_size"}
"""Settings that follow from keys about the authors' own machine, or that say what is so anyway."""
SIZES = {"deit3_s_l": ("small", "large"), "deit3_s_b": ("small", "base"), "deit3_b_l": ("base", "large")}
RATES = {"small": 0.05, "base": 0.15, "large": 0.4}


@pytest.mark.parametrize("name", SIZES)
def test_the_released_files_are_our_configurations(name, caplog):
    sizes = SIZES[name]
    released = StitchConfig.parse(
        RELEASED
        | {"anchors": [f"deit_{size}_patch16_LS" for size in sizes]}
        | {"anchor_drop_path": [RATES[size] for size in sizes]}
    )
    ours = StitchConfig.load(ROOT / f"configs/{name}.json")
    assert released.to_dict() | {"source": ours.source} == ours.to_dict()
    assert {key: value for key, value in released.recipe.items() if key not in OF_THE_AUTHORS} == ours.recipe
    assert [line.message for line in caplog.records] == [
        "no_repeated_aug has no effect, as in the released code, which repeats each image 3 times; set aug_repeats in "
        "'recipe'",
        "pretrained_deit has no effect: timm has the weights of these files; give an anchor a 'checkpoint' for your "
        "own",
    ]


@pytest.mark.parametrize("published", [False, True])
def test_the_configuration_draws_from_the_published_bins(published, shared):
    content = RELEASED if published else ROOT / "configs/deit3_s_l.json"
    config = read_config(content)
    costs = {row["cfg_id"]: row["flops"] for row in read_rows(shared / "published/snnetv2_deit3_s_l.jsonl")}
    sampler = create_sampler([*costs], costs.__getitem__, make_recipe(config.recipe).stitch, 0, (0, 1))
    assert isinstance(sampler, CostBins)
    assert [len(members) for members in sampler.bins] == [1, *[12] * 11, 1]


def test_low_rank_says_that_the_updates_are_not_trained(caplog):
    StitchConfig.parse(TWO | {"low_rank": True, "lora_r": 4})
    assert [line.message for line in caplog.records] == [
        "low_rank trains neither the stitching layers nor their updates of rank lora_r, as in the released code; "
        "remove it to train them"
    ]


def test_every_published_key_is_known():
    known = {*StitchConfig.further_keys, *StitchConfig.__pydantic_fields__}
    assert RELEASED.keys() | {"flops_gap", "flops_sampling_k", "low_rank"} <= known


TWO = {"anchors": ["deit_tiny_patch16_224", "deit_small_patch16_224"]}
BY_NAME = {
    "amp": True,
    "aug_repeats": 3.0,
    "flops_gap": 1.0,
    "min_lr": 1e-5,
    "opt_eps": 1e-8,
    "train_interpolation": "bicubic",
}
"""What the released code sets by default."""


@pytest.mark.parametrize(
    ("keys", "recipe"),
    [
        ({"ThreeAugment": True}, {"aa": "3a"}),
        ({"ThreeAugment": False, "src": False, "unscale_lr": False, "low_rank": False, "no_repeated_aug": False}, {}),
        ({"src": True}, {"train_crop_mode": "src"}),
        ({"unscale_lr": True, "lr": 1e-3}, {"lr": 1e-3}),
        ({"unscale_lr": True}, {}),
        ({"unscale_lr": False, "lr": 1e-3}, {"lr_base": 1e-3, "lr_base_size": 512, "lr_base_scale": "linear"}),
        ({"low_rank": True}, {"stitch_lr_scale": 0.0}),
        ({"no_repeated_aug": True}, {}),
        ({"no_repeated_aug": True, "recipe": {"aug_repeats": 2}}, {"aug_repeats": 2.0}),
        ({"flops_gap": 2.0, "flops_sampling_k": 5.0}, {"flops_gap": 2.0, "flops_sampling_k": 5.0}),
        ({"opt": "fusedlamb"}, {"opt": "lamb"}),
        ({"opt": "adamw"}, {"opt": "adamw"}),
        ({"eval_crop_ratio": 0.875, "drop": 0.1}, {"crop_pct": 0.875, "drop": 0.1}),
        ({"snnet_name": "snnet_v2"}, BY_NAME),
        ({"snnet_name": "snnet_v2", "min_lr": 0, "flops_gap": 2.0}, BY_NAME | {"min_lr": 0.0, "flops_gap": 2.0}),
    ],
)
def test_a_key_sets_what_it_says(keys, recipe):
    assert StitchConfig.parse(TWO | keys).recipe == recipe


def test_the_name_of_the_network_means_rule_and_rank():
    config = StitchConfig.parse(TWO | {"snnet_name": "snnet_v2"})
    assert (config.rule, config.max_switches, config.layer, config.lora_r) == ("two_way", 2, "lowrank", 64)
    assert [anchor.name for anchor in config.anchors] == TWO["anchors"], "your own stay"
    plain = StitchConfig.parse(TWO | {"snnet_name": "snnet_v2", "lora_r": 0, "max_switches": 3})
    assert (plain.layer, plain.max_switches) == ("linear", 3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"snnet_name": "snnet_v1"}, '^snnet_name is \'snnet_v1\', whose cheapest route .*"directions": "up" instead$'),
        ({"snnet_name": "snnet"}, "^snnet_name is 'snnet'; it must be 'snnet_v2'$"),
        (
            {"snnet_name": "snnet_v2", "data_set": "CIFAR"},
            "^data_set is 'CIFAR'; the only known published name is IMNET",
        ),
        ({"src": 1}, "^src is 1; it must be true or false$"),
        ({"unscale_lr": True, "lr": "x"}, "^lr is 'x'; "),
        ({"anchor_drop_path": [1.0]}, r"^anchor_drop_path\[0\] is 1.0; it must be at most 0.99"),
        ({"ThreeAugmen": True}, "did you mean 'ThreeAugment'"),
    ],
)
def test_a_key_that_cannot_be_is_refused_in_one_line(keys, message):
    with pytest.raises(InputError, match=message):
        StitchConfig.parse(TWO | keys)


def test_what_the_first_version_means_instead():
    """As its refusal says: its 13 routes, but for the cheapest, in whose place is the cheaper anchor."""
    config = StitchConfig.parse(TWO | {"rule": "two_way", "max_switches": 1, "directions": "up"})
    space = config.space_of([Blocks("s", (12,)), Blocks("l", (24,))])
    routes = ["s[0:12]", "l[0:24]", *(f"s[0:{cut}] > l[{2 * cut}:24]" for cut in range(1, 12))]
    assert sorted(stitch.name for stitch in space.stitches.values()) == sorted(routes)


@pytest.mark.parametrize("flag", ["drop_path", "drop_connect"])
def test_a_flag_replaces_the_rates_of_the_configuration(flag):
    recipe, _ = resolve({"stitch_config": "deit3_s_l", "data_dir": "x", flag: 0.1})
    assert recipe.model.anchor_drop_path is None
    assert resolve({"stitch_config": "deit3_s_l", "data_dir": "x"})[0].model.anchor_drop_path == [0.05, 0.4]


def test_the_rate_of_learning_is_the_published_one_for_any_batch():
    recipe, _ = resolve({"stitch_config": "deit3_s_l", "data_dir": "x", "batch_size": 8, "epochs": 1})
    assert (recipe.optim.lr, recipe.optim.opt, recipe.schedule.min_lr) == (3e-5, "lamb", 1e-5)
