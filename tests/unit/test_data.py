"""The loaders that a recipe means."""

import io
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from timm.data.mixup import FastCollateMixup
from timm.data.random_erasing import RandomErasing

from stitchkit.data.batches import without_padding
from stitchkit.data.loader_processes import workers_for
from stitchkit.distributed import World, init_world
from stitchkit.engine.loop import seed_epoch
from stitchkit.errors import InputError
from stitchkit.settings.by_name import make_recipe
from stitchkit.training.data import create_loaders, open_datasets
from stitchkit.training.run import EvalRun, TrainRun, kind_of
from stitchkit.training.session import open_session

MODEL = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


@pytest.fixture(scope="module")
def world():
    yield init_world("cpu")
    dist.destroy_process_group()


@pytest.fixture
def loaders(images, world):
    """The loaders of settings, images of 16 x 16."""

    def made(input_size=(3, 16, 16), **settings):
        recipe = make_recipe({"data_dir": str(images), "batch_size": 8, "workers": 0} | settings)
        datasets = open_datasets(recipe)
        return create_loaders(datasets, recipe, world, input_size=input_size, model_config=MODEL, num_classes=4)

    return made


def first_batch(loader, epoch=0):
    seed_epoch(42, 0, epoch)
    return next(iter(loader))


def transforms(loader):
    """The steps that a training image goes through, by name, nested ones too."""
    found = {}

    def walk(step):
        found[type(step).__name__] = step
        for part in getattr(step, "transforms", None) or [getattr(step, "transform", None)]:
            if part is not None and not isinstance(part, str):
                walk(part)

    walk(loader.dataset.transform)
    return found


def test_probabilities_of_colour_changes_reach_the_images(loaders):
    plain = transforms(loaders().train)
    assert "ColorJitter" in plain
    assert not {"RandomApply", "RandomGrayscale", "GaussianBlur"} & plain.keys()
    asked = transforms(loaders(color_jitter_prob=0.2, grayscale_prob=0.3, gaussian_blur_prob=0.4).train)
    assert {"RandomApply", "RandomGrayscale", "GaussianBlur"} <= asked.keys()
    assert asked["RandomGrayscale"].p == 0.3


@pytest.mark.parametrize("settings", [{}, {"no_prefetcher": True}, {"aug_splits": 2}])
def test_the_crop_of_deit_3_keeps_the_scale_and_mirrors_a_border(settings, loaders):
    """Each crop is a window of the image with 4 mirrored pixels around it, shorter side 16, perhaps flipped."""
    made = loaders(**settings, train_crop_mode="src", color_jitter=0.0, train_interpolation="bicubic", max_unreadable=0)
    data, mean, std = made.train.dataset, torch.tensor(MODEL["mean"]), torch.tensor(MODEL["std"])
    images, _ = first_batch(made.train)
    crops = (images[:8].permute(0, 2, 3, 1) * std + mean).mul(255).round().numpy()
    originals = getattr(data, "dataset", data)
    originals = getattr(originals, "dataset", originals)
    paths = [originals.reader.filename(index, absolute=True) for index in range(len(originals))]
    padded = [np.pad(np.asarray(Image.open(path)), ((4, 4), (4, 4), (0, 0)), "reflect") for path in paths]
    assert padded[0].shape == (24, 24, 3), "the images have the size of the crop"
    places = set()
    for crop in crops:
        places |= {
            (top, left)
            for one in padded for top in range(9) for left in range(9) for flip in (1, -1)
            if np.array_equal(one[top : top + 16, left : left + 16][:, ::flip], crop)
        }  # fmt: skip
    assert len(places) >= 5, places


def test_three_augment_is_the_policy_of_timm(loaders):
    """One of grey, solarised or blurred for each image, and colour jitter after it, which other policies switch off."""
    steps = transforms(loaders(aa="3a", color_jitter=0.3, train_crop_mode="src").train)
    (solarize,), (grey,), (blur,) = steps["AutoAugment"].policy
    assert [(op.name, op.prob, op.level_fn(op.magnitude, {})[0]) for op in (solarize, grey, blur)] == [
        ("Solarize", 1.0, 128), ("Desaturate", 1.0, 1.0), ("GaussianBlurRand", 1.0, 1.0),
    ]  # fmt: skip
    assert steps["ColorJitter"].brightness == (0.7, 1.3)
    assert [*steps].index("AutoAugment") < [*steps].index("ColorJitter")
    assert steps["RandomCrop"].size == (16, 16)
    assert "RandomResizedCropAndInterpolation" not in steps


def test_channels_choose_how_an_image_is_read(loaders):
    images, _ = first_batch(loaders((1, 16, 16), in_chans=1, no_aug=True).train)
    assert images.shape == (8, 1, 16, 16)
    mode = {"in_chans": 4, "input_img_mode": "CMYK", "mean": [0.0], "std": [1.0], "no_aug": True}
    images, _ = first_batch(loaders((4, 16, 16), **mode).train)
    assert not images[:, 3].any(), "Pillow uses no black"


def test_one_mean_is_for_all_channels(loaders):
    assert loaders(mean=[0.1], std=[0.2]).mean == (0.1, 0.1, 0.1)
    assert loaders((1, 16, 16), in_chans=1).mean == pytest.approx((0.4,)), "that of the model's three, as timm does"
    with pytest.raises(InputError, match="one value, or one for each of 3 channels"):
        loaders(mean=[0.1, 0.2])


def test_an_image_need_not_be_square(loaders):
    images, _ = first_batch(loaders((3, 16, 24)).train)
    assert images.shape == (8, 3, 16, 24)


def test_precision_of_images(loaders):
    for prefetcher in (True, False):
        both = loaders(model_dtype="bfloat16", no_prefetcher=not prefetcher)
        assert first_batch(both.train)[0].dtype == first_batch(both.validation)[0].dtype == torch.bfloat16


def test_splits_are_the_clean_images_and_varied_copies(loaders):
    settings = {"aug_splits": 3, "scale": [1.0, 1.0], "ratio": [1.0, 1.0], "hflip": 0.0, "aa": "rand-m9-n3"}
    images, labels = first_batch(loaders(**settings).train)
    assert len(images) == len(labels) == 3 * 8
    assert torch.equal(labels[:8], labels[8:16])
    clean, _ = first_batch(loaders(**settings | {"aug_splits": 0, "aa": None, "color_jitter": 0.0}).train)
    torch.testing.assert_close(images[:8], clean)
    assert not torch.equal(images[8:16], clean)
    assert not torch.equal(images[8:16], images[16:])


@pytest.mark.parametrize(("splits", "clean"), [(0, 4), (2, 8)])
def test_resplit_erases_nothing_in_the_first_split(splits, clean, loaders):
    settings = {"aug_splits": splits, "reprob": 1.0, "remode": "const", "mean": [0.501], "scale": [1.0, 1.0]}
    changed = {}
    for resplit in (False, True):
        images, _ = first_batch(loaders(**settings, resplit=resplit, color_jitter=0.0).train)
        changed[resplit] = (images == 0).flatten(1).any(1)
    assert changed[False].all()
    assert not changed[True][:clean].any()
    assert changed[True][clean:].all()


def test_without_the_prefetcher_the_numbers_are_the_same(loaders):
    one, other = loaders(no_aug=True), loaders(no_aug=True, no_prefetcher=True)
    for mine, theirs in ((one.train, other.train), (one.validation, other.validation)):
        assert len(mine) == len(theirs)
        for (images, labels), (expected, numbers) in zip(theirs, mine, strict=True):
            torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)
            assert torch.equal(labels, numbers)


def test_without_the_prefetcher_images_are_counted_once(loaders, world):
    batches = list(without_padding(loaders(no_prefetcher=True, validation_batch_size=6).validation, world))
    assert sum(len(labels) for _, labels in batches) == 20


def test_without_the_prefetcher_the_host_does_not_wait_for_the_copy(loaders, monkeypatch):
    waits, to = [], torch.Tensor.to

    def keep(tensor, *args, non_blocking=False, **kwargs):
        waits.append(not non_blocking)
        return to(tensor, *args, non_blocking=non_blocking, **kwargs)

    loader = loaders(no_prefetcher=True).validation
    monkeypatch.setattr(torch.Tensor, "to", keep)
    assert len(list(loader)) == len(loader)
    assert waits.count(False) == 2 * len(loader)  # those of the transforms stay on the host


def test_without_the_prefetcher_batches_are_mixed_and_erased(loaders):
    loader = loaders(no_prefetcher=True, mixup=0.8, smoothing=0.0, reprob=0.5).train
    images, labels = first_batch(loader)
    again = first_batch(loader)
    assert torch.equal(images, again[0]), "what is mixed depends on the seed of the epoch alone"
    assert torch.equal(labels, again[1])
    assert labels.shape == (8, 4)
    assert ((labels > 0) & (labels < 1)).any()
    assert isinstance(transforms(loader)["RandomErasing"], RandomErasing)
    loader.mixup_enabled = False
    assert set(first_batch(loader)[1].unique().tolist()) == {0.0, 1.0}
    assert isinstance(loaders(mixup=0.8).train.loader.collate_fn, FastCollateMixup)


def test_worker_seeding_reaches_the_workers(loaders):
    for seeding in ("all", "part"):
        init = loaders(worker_seeding=seeding).train.loader.worker_init_fn
        assert init.keywords["start"].keywords == {"worker_seeding": seeding}


def write_shards(folder):
    for split, count in (("train", 16), ("validation", 4)):
        with tarfile.open(folder / f"{split}-0.tar", "w") as tar:
            for number in range(count):
                picture = io.BytesIO()
                Image.fromarray(np.full((16, 16, 3), 10 * number, np.uint8)).save(picture, "PNG")
                for suffix, content in (("png", picture.getvalue()), ("cls", b"1")):
                    entry = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


def test_streams_have_no_repeated_or_split_images(loaders, tmp_path):
    write_shards(tmp_path)
    stream = {"workers": 1}
    stream |= {"data_dir": str(tmp_path), "dataset": "wds/", "train_num_samples": 16, "val_num_samples": 4}
    stream |= {"train_split": "train-0.tar", "val_split": "validation-0.tar", "batch_size": 4}
    assert len(loaders(**stream).train) == 4
    for name in ("aug_splits", "aug_repeats"):
        with pytest.raises(InputError, match="not for streamed datasets"):
            loaders(**stream, **{name: 2})


def test_training_on_a_stream_needs_the_number_of_its_classes(world, tmp_path):
    """Else a network would be trained with the 1000 outputs of its first weights."""
    write_shards(tmp_path)
    stream = {"data_dir": str(tmp_path), "dataset": "wds/", "train_num_samples": 16, "val_num_samples": 4}
    stream |= {"train_split": "train-0.tar", "val_split": "validation-0.tar", "model": "test_resnet", "workers": 1}
    with pytest.raises(InputError, match="'wds/' does not name its classes; give --num-classes"):
        open_session(make_recipe(stream | {"pretrained": False}), None, world, TrainRun())
    with pytest.raises(InputError, match="the network has no classifier; give --num-classes, or"):
        open_session(
            make_recipe(stream | {"pretrained": False, "eval": True, "num_classes": 0}), None, world, EvalRun()
        )
    for allowed in ({"num_classes": 2}, {"eval": True}):
        recipe = make_recipe(stream | {"pretrained": False, "batch_size": 4} | allowed)
        open_session(recipe, None, world, kind_of(recipe))


def test_readers_of_many_libraries_are_given_their_options(monkeypatch):
    """Repetitions go to libraries that need a network; here is what timm gets for them."""
    seen = {}

    def noted(*_, **options):
        seen.update(options)
        raise OSError("out of reach")

    monkeypatch.setattr("stitchkit.data.timm_readers.create_dataset", noted)
    recipe = make_recipe({"dataset": "hfids/x", "epoch_repeats": 3.0})
    with pytest.raises(InputError, match="out of reach"):
        open_datasets(recipe)
    assert (seen["repeats"], seen["is_training"]) == (3.0, True)
    assert "trust_remote_code" not in seen


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_number_of_loader_processes_does_not_depend_on_the_machine(loaders):
    """It decides how images are augmented."""
    found = loaders(workers=16)
    assert [loader.loader.num_workers for loader in (found.train, found.validation)] == [16, 16]


def test_a_stream_is_read_by_as_many_processes_as_have_a_shard(loaders, tmp_path, caplog):
    """The others would give nothing, and an epoch would end too soon."""
    caplog.set_level("INFO")
    write_shards(tmp_path)
    stream = {"data_dir": str(tmp_path), "dataset": "wds/", "train_num_samples": 16, "val_num_samples": 4}
    stream |= {"train_split": "train-0.tar", "val_split": "validation-0.tar", "batch_size": 4, "workers": 4}
    found = loaders(**stream)
    assert len(list(found.train)) == len(found.train) == 4
    assert "the train-0.tar split has 1 shard for each rank; one loader process reads each" in caplog.text
    for split in (found.train, found.validation):
        with pytest.raises(InputError, match="split has fewer shards than the 2 ranks; write more, or start fe"):
            workers_for(split.dataset, 0, World(0, 2, torch.device("cpu")))


def test_ranks_read_a_stream_of_tensorflow_by_processes():
    """timm divides it among processes alone: without one, each rank would read the share of the first."""
    stream = SimpleNamespace(reader=type("ReaderTfds", (), {})())
    assert [workers_for(stream, wanted, World(0, 2, torch.device("cpu"))) for wanted in (0, 1, 3)] == [1, 1, 3]
    assert workers_for(stream, 0, World(0, 1, torch.device("cpu"))) == 0
