"""What a focus drops: never an anchor, never the front, and every sampler draws from what is left."""

import re
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from stitchkit.distributed import init_world
from stitchkit.errors import InputError
from stitchkit.settings.by_name import make_recipe
from stitchkit.settings.combinations import check
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.data import create_loaders, open_datasets
from stitchkit.training.focus import narrow, worth_training
from stitchkit.training.samplers import SAMPLERS, create_sampler
from tests.commands import refused
from tests.support import FLAGS, write_config

MODEL = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
IDS = (0, 1, 2, 4, 5, 6, 7, 8)
"""Numbers with a hole; 0 and 8 are anchors."""


def bits(*rights, images=400):
    """Networks with these numbers of right answers, on images of their own as far as there are any."""
    generator = np.random.default_rng(0)
    return np.stack([generator.permutation(np.arange(images) < right) for right in rights])


def worth(right, costs, **options):
    return worth_training(right, costs, **options)


def test_what_is_clearly_beaten_is_dropped_unless_it_always_stays():
    right = bits(200, 120, 300, 180)
    assert worth(right, [1, 2, 3, 4]) == [0, 2]
    assert worth(right, [1, 2, 3, 4], always=[3]) == [0, 2, 3]
    assert worth(right, [4, 3, 2, 1]) == [2, 3], "the costs decide who beats whom"


def test_what_cannot_be_told_from_the_front_stays():
    assert worth(bits(200, 204, 199), [1, 2, 3]) == [0, 1, 2]


def test_of_many_alike_the_front_stays_though_each_is_on_it_too_rarely():
    """Forty of one cost share the front among them, each with one set of images in forty."""
    right = bits(*[300] * 40, 10)
    right[7, np.flatnonzero(~right[7])[0]] = True
    kept = worth(right, [5] * 40 + [1])
    assert 7 in kept
    assert 40 in kept
    assert len(kept) < 10


class Answering(torch.nn.Module):
    """Two anchors and stitches by number, whose answers are written in advance; images are their own numbers."""

    def __init__(self, right):
        super().__init__()
        self.right, self.space = right, SimpleNamespace(num_anchors=2)

    def logits(self, images, cfg_id):
        found = torch.from_numpy(self.right[cfg_id])[images]
        return torch.stack([found, ~found], dim=1).float()  # the label is 0


def test_what_is_clearly_behind_on_an_easy_part_is_not_compared_with_the_others_again(monkeypatch, caplog):
    """Of 100 easy and 300 hard images: it has 75 of the easy ones right, and the others half of all."""
    caplog.set_level("INFO")
    right = np.zeros((4, 400), bool)
    right[:2, :100] = right[3, :100] = right[2, :75] = True
    right[0, 100:190] = right[1, 100:200] = right[3, 100:195] = True
    monkeypatch.setattr(
        "stitchkit.training.focus.OnePass",
        lambda network, routes: lambda images: {cfg_id: network.logits(images, cfg_id) for cfg_id in routes},
    )
    sampler = create_sampler(
        (0, 1, 2, 3), [1, 4, 3, 2].__getitem__, StitchRecipe(sampler="uniform", focus=1), 3, (0, 1)
    )
    first, rest = ([(part, torch.zeros(len(part), dtype=torch.long))] for part in torch.arange(400).split([100, 300]))
    narrow(Answering(right), sampler, first, rest, autocast=nullcontext)
    assert sampler.cfg_ids == (0, 1, 3)
    assert (
        "--focus: 1 of 4 stitches dropped, 1 clearly behind on 100 held-out images and 0 with a P(front) under 5 % on "
        "all 400: 2" in caplog.text
    )


def sampler_of(name):
    settings = StitchRecipe(sampler=name, focus=1, flops_gap=1e-8)
    return create_sampler(IDS, lambda cfg_id: 100 * cfg_id**2, settings, 3, (0, 8))


def draws(sampler, steps=range(400)):
    return [sampler.draw(step, 0) for step in steps]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_from_what_is_left(name):
    whole, sampler = draws(sampler_of(name)), sampler_of(name)
    before = {key: value.clone() for key, value in sampler.kept().items()}
    sampler.drop([])
    assert draws(sampler) == whole, "nothing is dropped, nothing changes"
    sampler.drop([1, 4, 7])
    sampler.drop([5, 99])
    drawn = {cfg_id for routes in draws(sampler) for cfg_id in routes}
    assert drawn == {0, 2, 6, 8} == {*sampler.cfg_ids}
    # A checkpoint keeps all of it: another sampler with the same tensors draws the same.
    other = sampler_of(name)
    assert other.kept().keys() == before.keys()
    for key, value in other.kept().items():
        value.copy_(sampler.kept()[key])
    assert draws(other) == draws(sampler)
    for key, value in other.kept().items():
        value.copy_(before[key])
    assert draws(other) == whole


def test_checkpoints_without_a_focus_keep_nothing_more():
    assert not create_sampler(IDS, int, StitchRecipe(sampler="uniform"), 3, (0, 8)).kept()


def test_bins_left_without_stitches_give_their_share_to_the_others():
    sampler = sampler_of("cost_bins")
    assert len(sampler.bins) == len(IDS), "each has its own"
    sampler.drop([1, 2, 4, 5])
    counts = Counter(routes[0] for routes in draws(sampler, range(4000)))
    assert counts.keys() == {0, 6, 7, 8}
    assert all(abs(count - 1000) < 150 for count in counts.values())


def test_importance_keeps_the_scores_of_those_that_stay():
    sampler = sampler_of("importance")
    sampler.observe([4, 6], lambda cfg_id: torch.tensor(float(cfg_id)))
    sampler.drop([4])
    assert sampler.scores() == pytest.approx({4: 4.0, 6: 6.0})
    assert sampler.kept().keys() == {"left", "sums", "counts"}


def test_a_sandwich_has_the_ends_of_what_is_left():
    sampler = create_sampler(IDS[1:-1], int, StitchRecipe(sampler="sandwich", focus=1), 3, (0, 8))
    assert sampler.ends == (7, 1), "without trained anchors"
    sampler.drop([7, 1, 2])
    assert sampler.ends == (6, 4)


@pytest.fixture(scope="module")
def world():
    yield init_world("cpu")
    dist.destroy_process_group()


@pytest.fixture
def loaders(images, world):
    def made(**settings):
        given = {"data_dir": str(images), "batch_size": 8, "workers": 0, "focus": 1, "hflip": 0.5} | settings
        recipe = make_recipe(given)
        shape = {"input_size": (3, 16, 16), "model_config": MODEL, "num_classes": 4}
        return create_loaders(open_datasets(recipe), recipe, world, **shape)

    return made


def names(loader):
    return [*map(loader.dataset._name, range(len(loader.dataset)))]


def test_held_out_images_are_of_all_classes_and_not_trained_on(loaders):
    found = loaders()
    parts = [names(loader) for loader in (found.train, *found.held_out)]
    assert [*map(len, parts)] == [58, 1, 5]
    assert len({name for part in parts for name in part}) == 64
    classes = Counter(re.search(r"[^/']+(?=/[^/]+$)", name)[0] for name in parts[1] + parts[2])
    assert sorted(classes.values()) == [1, 1, 2, 2]
    again, other = loaders(), loaders(seed=1)
    assert [names(loader) for loader in again.held_out] == parts[1:]
    assert [names(loader) for loader in other.held_out] != parts[1:]
    assert [len(loader.dataset) for loader in loaders(focus_images=4).held_out] == [1, 3]
    assert not loaders(focus=0).held_out


def test_held_out_images_are_prepared_as_for_validation(loaders):
    found = loaders()
    kinds = [[type(step).__name__ for step in loader.dataset.transform.transforms] for loader in found.held_out]
    assert kinds[0] == kinds[1] == [type(step).__name__ for step in found.validation.dataset.transform.transforms]
    assert "RandomHorizontalFlip" in str(found.train.dataset.transform)
    # Two sets over one folder: the labels are those of their own images.
    for loader in (found.train, *found.held_out):
        for number, (_, label) in enumerate(loader.dataset):
            assert label == loader.dataset.dataset.reader.samples[loader.dataset._numbers[number]][1]


def test_too_few_images_are_an_error(loaders):
    with pytest.raises(
        InputError, match="--focus would hold 3 images out, of 64 training images and --focus-images 3; it needs 4"
    ):
        loaders(focus_images=3)


REFUSED = {
    "features": (["--loss", "features"], "--focus judges stitches by labels"),
    "budgets": (["--budgets", "1G"], "--focus and --budgets both say which stitches are worth training"),
    "model": (["--model", "resnet18"], "--focus chooses among the stitches of an SN-Net"),
    "alone": (["--focus", "0", "--focus-images", "9"], "--focus-images has no effect on its own; add --focus"),
}


@pytest.mark.parametrize("name", ["features", "budgets", "model", "alone"])
def test_what_a_focus_cannot_do_is_refused(name, images, tmp_path, capsys):
    flags, message = REFUSED[name]
    network = [] if name == "model" else ["--stitch_config", write_config(tmp_path / "pico.json")]
    assert message in refused(capsys, "train", images, *network, *FLAGS, "--focus", "1", *flags)


def test_a_focus_that_never_comes_is_refused():
    make = {"data_dir": "x", "stitch_config": "x.json", "epochs": 5, "warmup_epochs": 0}
    with pytest.raises(
        InputError, match=r"--focus 5 judges stitches every 5 epochs before the last, and .* has 5; lower"
    ):
        check(make_recipe({**make, "focus": 5}))
