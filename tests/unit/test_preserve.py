"""The parts of `--preserve`: what is frozen, what is drawn, and what an anchor learns from its copy."""

import re

import pytest
import torch

import stitchkit
from stitchkit.errors import InputError
from stitchkit.settings.by_name import make_recipe
from stitchkit.settings.combinations import check
from stitchkit.settings.flags import resolve
from stitchkit.training.checkpoint import check_header
from stitchkit.training.features import FeatureLoss
from stitchkit.training.preserve import UntouchedAnchors, freeze, trainable_stitches, warn_of_guesses
from stitchkit.training.session import engine_settings
from tests.support import pico_config, pico_images, pico_snnet, randomize, write_config


def settings(**changes):
    return make_recipe({"smoothing": 0.0, **changes})


def test_frozen_leaves_class_tokens_alone_and_the_published_way_does_not():
    for changes, wanted in (({"preserve": "frozen"}, set()), ({"fulltune": False}, {"cls_token"})):
        model = pico_snnet()
        freeze(model, settings(**changes).stitch)
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        assert {name.split(".")[2] for name in trained if name.startswith("anchors")} == wanted
        assert any(name.startswith("stitch_layers") for name in trained)
        cut = [cfg_id for cfg_id in model.space.ids if not model.space[cfg_id].is_anchor]
        assert trainable_stitches(model) == (cut if not wanted else [*model.space.ids])


def test_the_front_of_a_frozen_network_keeps_no_graph():
    model = pico_snnet().train()
    freeze(model, settings(preserve="frozen").stitch)
    seen = []
    for step in model.steps(3):
        module = model.module_of(step)
        module.register_forward_hook(lambda _, __, output, step=step: seen.append((step.kind, output.requires_grad)))
    model(pico_images(), 3)
    place = next(number for number, (kind, _) in enumerate(seen) if kind == "layer")
    assert [requires for _, requires in seen] == [False] * place + [True] * (len(seen) - place)


def test_statistics_that_stay_are_not_averaged_over_ranks():
    """The mean of equal numbers on three ranks may be another number."""
    ways = {way: engine_settings(settings(preserve=way)).dist_bn for way in ("none", "frozen", "lora")}
    assert ways == {"none": "reduce", "frozen": "", "lora": ""}


def test_copies_come_back_from_a_checkpoint():
    model = pico_snnet()
    recipe = settings(loss="features", preserve="none").stitch
    untouched = UntouchedAnchors(FeatureLoss(model, recipe).copies, {"ti": 50.0})
    state = untouched.state()
    randomize(model)
    again = UntouchedAnchors(FeatureLoss(model, recipe).copies)
    again.restore(state, "a.pth")
    assert again.alone == {"ti": 50.0}
    for key, value in untouched.copies.state_dict().items():
        assert torch.equal(again.copies.state_dict()[key], value)
    with pytest.raises(InputError, match=r"'a\.pth' lacks the copies of the anchors"):
        again.restore({"alone": {}}, "a.pth")
    with pytest.raises(InputError, match=r"'a\.pth' belongs to another configuration"):
        again.restore({"copies": {"0.pos_embed": torch.zeros(1)}}, "a.pth")


def test_two_ways_to_freeze_are_one_too_many():
    with pytest.raises(InputError, match="--no-fulltune and --preserve lora both decide"):
        check(settings(stitch_config="x", data_dir="y", preserve="lora", fulltune=False))


def test_a_run_that_trains_nothing_is_refused():
    given = {"stitch_config": "x", "data_dir": "y", "stitch_lr_scale": 0.0}
    with pytest.raises(InputError, match="--preserve frozen with --stitch-lr-scale 0 would train nothing"):
        check(settings(**given, preserve="frozen"))
    check(settings(**given, preserve="none"))


@pytest.mark.parametrize(("given", "rank"), [(0, 16), (4, 4)])
def test_the_updates_are_part_of_the_configuration(given, rank):
    config = stitchkit.StitchConfig.parse(pico_config(anchor_lora_r=given))
    assert config.with_updates(settings(preserve="frozen")) == config
    config = config.with_updates(settings(preserve="lora"))
    assert config.anchor_lora_r == config.to_dict()["anchor_lora_r"] == rank
    assert stitchkit.StitchConfig.parse(config.to_dict()).anchor_lora_r == rank


@pytest.mark.parametrize("preserve", ["none", "frozen"])
def test_updates_that_would_not_be_kept_from_the_anchors_are_refused(preserve, tmp_path):
    path = str(write_config(tmp_path / "pico.json", anchor_lora_r=4))
    given = {"stitch_config": path, "data_dir": "x", "preserve": preserve}
    message = f"^anchor_lora_r is 4, but --preserve is {preserve}; only --preserve lora trains updates of anchors: "
    with pytest.raises(InputError, match=message):
        resolve(given)
    for changes in ({"preserve": "lora"}, {"eval": True, "resume": "last.pth.tar"}):
        _, config = resolve(given | changes)
        assert config is not None
        assert config.anchor_lora_r == 4


@pytest.mark.parametrize(("trained", "ours"), [(4, 0), (4, 2), (0, 2)])
def test_another_rank_says_what_to_do(trained, ours):
    content = {"stitch_config": stitchkit.StitchConfig.parse(pico_config(anchor_lora_r=trained)).to_dict()}
    config = stitchkit.StitchConfig.parse(pico_config(anchor_lora_r=ours))
    change = f"anchor_lora_r is {ours or None} here, but {trained or None} in the checkpoint"
    advice = "use the settings of its run (-c RUN/args.yaml), or another checkpoint"
    with pytest.raises(InputError, match=f"{re.escape(f'configuration: {change}; {advice}')}$"):
        check_header(content, config, "a.pth")


def test_anchors_that_guess_are_warned_of(caplog):
    warn_of_guesses({"ti": 26.0, "s": 90.0}, 4)
    assert "a guess, which is right for 25.00 %: ti 26.00 %; train them for these classes first" in caplog.text
    caplog.clear()
    warn_of_guesses({"ti": 50.0, "s": 90.0}, 4)
    assert not caplog.text
