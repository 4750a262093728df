"""Law 7, the one-pass law: all stitches at once are all stitches one by one, within the memory that is given."""

import pytest
import torch

from stitchkit.errors import InputError
from stitchkit.model.onepass import LiveBytes, OnePass, _Batch, in_portions
from stitchkit.routes import Step, Stitch
from stitchkit.routes.shared_work import Visit, shared_visits
from tests.support import QUICK_SPACES, SPACES, family_snnet, mostly_full, pico_images, pico_snnet


@pytest.fixture(scope="module", params=mostly_full(SPACES, quick=QUICK_SPACES))
def model(request):
    return family_snnet(request.param)


@torch.no_grad()
def test_law_7_all_at_once_are_all_one_by_one(model, monkeypatch):
    """In portions as of a CPU; with one for each image; and of small maps, with parts of several visits in each."""
    x = pico_images(3, size=model.input_size[-1])
    alone = {cfg_id: model(x, cfg_id) for cfg_id in model.space.ids}
    for positions in (None, 1, 13):
        if positions is not None:
            monkeypatch.setattr("stitchkit.model.onepass._POSITIONS", positions)
        found = model.forward_all(x)
        assert list(found) == list(model.space.ids)
        for cfg_id, logits in found.items():
            torch.testing.assert_close(logits, alone[cfg_id], rtol=1e-4, atol=1e-5)


def test_portions_grow_with_what_is_left_of_an_image():
    batch, sizes = _Batch(8), []

    def halve(x):
        sizes.append(len(x))
        return x[:, :, ::2, ::2]

    batch.add(Visit(Step("stem", "a")), torch.zeros(8, 1, 28, 28), 1)
    batch.run(halve, 1)
    batch.add(Visit(Step("stem", "b")), torch.zeros(8, 1, 14, 14), 1)
    batch.run(halve, 1)
    batch.run(halve, 1)
    assert sizes == [2, 2, 2, 2, 8, 8, 16]


@torch.no_grad()
def test_law_7_in_mixed_precision(model):
    """Each route keeps the precision that it has alone: stems and stitching layers give different types."""
    x = pico_images(3, size=model.input_size[-1])
    with torch.autocast("cpu", torch.bfloat16):
        for cfg_id, logits in model.forward_all(x).items():
            alone = model(x, cfg_id)
            assert logits.dtype == alone.dtype
            torch.testing.assert_close(logits, alone, rtol=0.05, atol=0.05)


def test_every_block_runs_once_for_all_routes_in_it():
    model = pico_snnet(nearest_stitching=False)
    calls = []
    for anchor in model.views.values():
        for number, block in enumerate(anchor.blocks):
            name = (anchor.label, number)
            block.register_forward_hook(lambda _, inputs, __, name=name: calls.append((name, len(inputs[0]))))
    with torch.no_grad():
        model.forward_all(pico_images(2))
    blocks = [(label, number) for label in model.views for number in range(3)]
    rows = {block: sum(size for name, size in calls if name == block) for block in blocks}
    inside = [stitch for stitch in model.space if stitch.segments[-1].anchor == "b"]
    # One image is measured by itself, then both go through.
    assert rows["ti", 0] == 3, "the cheapest anchor runs for its own images alone"
    assert rows["b", 2] == 3 * len(inside), "the last block of the last anchor runs for all that end in it"
    assert max(size for _, size in calls) > 8, "small activations go through many at once"


def test_a_block_takes_as_many_at_once_as_a_cpu_caches_hold():
    x = torch.arange(20.0)[:, None, None].expand(20, 197, 8)
    portions = in_portions(x, 197)
    assert torch.equal(torch.cat(portions), x)
    assert [*map(len, portions)] == [8, 8, 4]
    assert [len(portion) for portion in in_portions(torch.zeros(3, 96, 56, 56), 56 * 56)] == [1, 1, 1]
    assert [len(portion) for portion in in_portions(torch.zeros(100, 10), 10)] == [100]
    assert [len(portion) for portion in in_portions(torch.zeros(0, 10), 10)] == [0]


def test_routes_with_the_same_past_are_one_visit():
    names = ["a[0:4]", "a[0:2] > b[1:4]", "a[0:2] > b[2:4]", "a[0:2] > b[1:3] > c[3:4]"]
    visits = dict(shared_visits({number: Stitch.parse(name).steps() for number, name in enumerate(names)}))
    assert [(visit.start, visit.ends, visit.leaves) for visit in visits["a"]] == [(0, [0], [1])]
    assert [(visit.start, visit.ends, visit.leaves) for visit in visits["b"]] == [(1, [1], [2]), (2, [2], [])]
    assert [(visit.start, visit.ends) for visit in visits["c"]] == [(3, [3])]
    assert visits["c"][0].parent is visits["b"][0]


def test_anchors_that_lead_to_each_other_take_turns():
    names = ["a[0:4]", "b[0:4]", "a[0:2] > b[2:4]", "b[0:2] > a[2:4]", "a[0:1] > b[1:3] > c[3:4]", "c[0:1] > b[1:4]"]
    rounds = shared_visits({number: Stitch.parse(name).steps() for number, name in enumerate(names)})
    assert [(anchor, [visit.ends for visit in visits]) for anchor, visits in rounds] == [
        *(("a", [[0]]), ("c", [[]])),
        *(("b", [[1], [], [5], [2]]), ("a", [[3]]), ("c", [[4]])),
    ]
    done = set()
    for _, visits in rounds:
        assert all(visit.parent is None or visit.parent in done for visit in visits)
        done.update(visits)


@torch.no_grad()
def test_some_stitches():
    model = pico_snnet()
    x = pico_images()
    assert list(model.forward_all(x, [7, 2])) == [2, 7]
    with pytest.raises(InputError, match="does not exist"):
        model.forward_all(x, [99])
    with pytest.raises(InputError, match="at least one cfg_id"):
        model.forward_all(x, [])
    with pytest.raises(InputError, match=r"model.eval\(\)"):
        pico_snnet().train().forward_all(x)


BUDGETS = [("vit", 2), *((family, 5) for family in QUICK_SPACES)]


@torch.no_grad()
@pytest.mark.parametrize(
    ("model", "images"), mostly_full(BUDGETS, quick=[("vit", 2), ("resnet to swin", 5)]), indirect=["model"]
)
def test_memory_stays_within_its_budget(model, images):
    x = pico_images(16, size=model.input_size[-1])
    OnePass(model).at_once(x[:1])  # the first pass also fills the caches of timm's LeViT, which then stay
    with LiveBytes() as one:
        OnePass(model).at_once(x[:1])
    budget = images * one.peak
    with LiveBytes() as live:
        found = model.forward_all(x, memory=budget)
    logits = sum(value.nbytes for value in found.values())
    assert live.peak <= budget + logits, "what is handed out comes on top"
    assert live.peak > one.peak, "more than one image at once"
    with pytest.raises(InputError, match="not enough for one image"):
        model.forward_all(x, memory=one.peak - 1)


def test_live_bytes_count_what_lives_at_the_same_time():
    x = torch.zeros(256)
    with LiveBytes() as live:
        y = x + 1  # 1024 bytes
        y = y.view(16, 16) + 1  # 2048 while both live
        z = y[0]  # a view holds all of y
        del y
        z = z + 1  # 64 more
        x.view(16, 16)  # of something made outside
    assert live.peak == 2048
    assert z.shape == (16,)


@torch.no_grad()
def test_memory_is_measured_for_each_kind_of_input():
    """What an image takes depends on its size, its type and the precision; a network may be moved between calls."""
    model = pico_snnet()
    one_pass = OnePass(model)
    one_pass(pico_images())
    with torch.autocast("cpu", torch.bfloat16):
        one_pass(pico_images())
    model.bfloat16()
    one_pass(pico_images().bfloat16())
    assert len(one_pass._portion) == 3
