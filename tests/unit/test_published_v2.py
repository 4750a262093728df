"""Released files of SN-Netv2: each key works, or a line says why it does not."""

import pytest

from stitchkit.errors import InputError
from stitchkit.settings import published_v2
from stitchkit.settings.flags import resolve
from stitchkit.settings.published_v1 import RECIPE_KEYS
from stitchkit.settings.stitch_config import StitchConfig
from tests.support import ROOT

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
        "no_repeated_aug has no effect: as in the released code, which repeats each image 3 times; set aug_repeats in "
        "'recipe'",
        "pretrained_deit has no effect: timm has the weights of these files; give an anchor a 'checkpoint' for your "
        "own",
    ]


def test_the_keys_of_the_sampler_have_their_settings_names():
    for key in ("flops_gap", "flops_sampling_k"):
        assert RECIPE_KEYS[key] == key


def test_every_published_key_is_known():
    known = {*StitchConfig.further_keys, *StitchConfig.__pydantic_fields__}
    assert RELEASED.keys() | {"flops_gap", "flops_sampling_k", "low_rank"} <= known


TWO = {"anchors": ["deit_tiny_patch16_224", "deit_small_patch16_224"]}


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
        ({"no_repeated_aug": True}, {"aug_repeats": 3.0}),
        ({"no_repeated_aug": True, "recipe": {"aug_repeats": 0}}, {"aug_repeats": 0.0}),
        ({"opt": "fusedlamb"}, {"opt": "lamb"}),
        ({"opt": "adamw"}, {"opt": "adamw"}),
        ({"eval_crop_ratio": 0.875, "drop": 0.1}, {"crop_pct": 0.875, "drop": 0.1}),
        ({"snnet_name": "snnet_v2", "min_lr": 0}, published_v2._DEFAULTS | {"min_lr": 0.0}),
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
    """As its refusal says: the same number of routes, with the cheaper anchor for the one that is left out."""
    config = StitchConfig.parse(TWO | {"rule": "two_way", "max_switches": 1, "directions": "up"})
    assert str(config.make_rule()).startswith("TwoWay(max_switches=1, directions='up'")


@pytest.mark.parametrize("flag", ["drop_path", "drop_connect"])
def test_a_flag_replaces_the_rates_of_the_configuration(flag):
    recipe, _ = resolve({"stitch_config": "deit3_s_l", "data_dir": "x", flag: 0.1})
    assert recipe.model.anchor_drop_path is None
    assert resolve({"stitch_config": "deit3_s_l", "data_dir": "x"})[0].model.anchor_drop_path == [0.05, 0.4]


def test_the_rate_of_learning_is_the_published_one_for_any_batch():
    recipe, _ = resolve({"stitch_config": "deit3_s_l", "data_dir": "x", "batch_size": 8, "epochs": 1})
    assert (recipe.optim.lr, recipe.optim.opt, recipe.schedule.min_lr) == (3e-5, "lamb", 1e-5)
