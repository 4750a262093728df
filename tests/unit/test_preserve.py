"""The parts of `--preserve`: what is frozen, what is drawn, and what an anchor learns from its copy."""

import re

import pytest
import torch
from torch.nn import functional as F

import stitchkit
from stitchkit.errors import InputError
from stitchkit.settings.by_name import make_recipe
from stitchkit.settings.combinations import check
from stitchkit.settings.flags import resolve
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.checkpoint import check_header
from stitchkit.training.preserve import Replay, UntouchedAnchors, freeze, warn_of_guesses
from stitchkit.training.samplers import Uniform
from stitchkit.training.session import engine_settings
from stitchkit.training.task import create_task
from tests.support import pico_config, pico_images, pico_snnet, randomize, write_config

LABELS = torch.tensor([0, 3])


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
        assert model.trainable_stitches() == (cut if not wanted else [*model.space.ids])


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
    ways = {way: engine_settings(settings(preserve=way)).dist_bn for way in ("none", "frozen", "lora", "replay")}
    assert ways == {"none": "reduce", "frozen": "", "lora": "", "replay": "reduce"}


def test_anchors_are_drawn_almost_twice_as_often():
    model = pico_snnet()
    sampler, replay = Uniform(model.space.ids, lambda _: 0, StitchRecipe(), 3, ()), Replay(model)
    steps = range(4000)
    drawn = [replay.draw(sampler.draw, step, 1) for step in steps]
    assert drawn == [replay.draw(sampler.draw, step, 1) for step in steps], "a pure function of the step"
    share = len(model.views) / len(model.space)
    found = sum(cfg_id in replay.anchors for cfg_id in drawn) / len(steps)
    assert found == pytest.approx(2 * share - share**2, abs=0.03)
    assert 1.5 * share < found
    assert {*drawn} == {*model.space.ids}


def test_an_anchor_learns_from_its_copy_and_a_stitch_does_not():
    model = pico_snnet()
    recipe = settings(preserve="replay", distillation_alpha=0.3, distillation_tau=2.0)
    replay = Replay(model)
    task = create_task(
        model, recipe, torch.device("cpu"), sides=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, replay=replay
    )
    x = pico_images()
    before = [view.model(x).detach() for view in model.views.values()]
    randomize(model)  # as a training changes it
    task.train()
    assert not any(module.training for module in replay.modules())
    for cfg_id, wanted in enumerate(before):
        logits = model(x, cfg_id)
        p, q = torch.softmax(wanted / 2, 1), torch.softmax(logits / 2, 1)
        taught = (p * (p / q).log()).sum(1).mean() * 4
        assert taught > 0.01
        found = task(x, LABELS, cfg_id)["loss"]
        torch.testing.assert_close(found, 0.7 * F.cross_entropy(logits, LABELS) + 0.3 * taught)
    torch.testing.assert_close(task(x, LABELS, 5)["loss"], F.cross_entropy(model(x, 5), LABELS))
    task(x, LABELS, 0)["loss"].backward()
    assert all(weight.grad is None for weight in replay.parameters())
    assert not any("copies" in name for name in task.trainable_module.state_dict())


def test_copies_come_back_from_a_checkpoint():
    model = pico_snnet()
    untouched = UntouchedAnchors(Replay(model).copies, {"ti": 50.0})
    state = untouched.state()
    randomize(model)
    again = UntouchedAnchors(Replay(model).copies)
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
    check(settings(**given, preserve="replay"))


@pytest.mark.parametrize(("given", "rank"), [(0, 16), (4, 4)])
def test_the_updates_are_part_of_the_configuration(given, rank):
    config = stitchkit.StitchConfig.parse(pico_config(anchor_lora_r=given))
    assert config.with_updates(settings(preserve="frozen")) == config
    config = config.with_updates(settings(preserve="lora"))
    assert config.anchor_lora_r == config.to_dict()["anchor_lora_r"] == rank
    assert stitchkit.StitchConfig.parse(config.to_dict()).anchor_lora_r == rank


@pytest.mark.parametrize("preserve", ["none", "frozen", "replay"])
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


ADVICE = 'give -c with the args.yaml of its run, or write "anchor_lora_r": 4 into the stitch configuration'


@pytest.mark.parametrize(
    ("trained", "ours", "advice"),
    [
        (4, 0, f"was 4 and is None; {ADVICE}"),
        (4, 2, f"was 4 and is 2; {ADVICE}"),
        (0, 2, "was None and is 2; omit --preserve lora and anchor_lora_r"),
    ],
)
def test_another_rank_says_what_to_do_and_another_rule_that_it_is_not_enough(trained, ours, advice):
    content = {"stitch_config": stitchkit.StitchConfig.parse(pico_config(anchor_lora_r=trained)).to_dict()}
    for rule, end in (("window", f"configuration: anchor_lora_r {advice}"), ("proportional", advice.partition(";")[0])):
        config = stitchkit.StitchConfig.parse(pico_config(anchor_lora_r=ours, rule=rule))
        with pytest.raises(InputError, match=f"{re.escape(end)}$"):
            check_header(content, config, "a.pth")


def test_anchors_that_guess_are_warned_of(caplog):
    warn_of_guesses({"ti": 26.0, "s": 90.0}, 4)
    assert "a guess, which is right for 25.00 %: ti 26.00 %; train them for these classes first" in caplog.text
    caplog.clear()
    warn_of_guesses({"ti": 50.0, "s": 90.0}, 4)
    assert not caplog.text
