"""Law 4 for dense prediction: the FLOPs of the configurations against the published figures."""

import pytest
import torch

import stitchkit
from stitchkit.measure.profile import Profiler

WIDTHS = {"s": 384, "b": 768, "l": 1024}
ADE20K = {
    0: 33522505728, 1: 363157291008, 2: 335562224128, 5: 253077833728, 6: 225986083328, 12: 61017302528,
    14: 61923665408, 17: 144408055808, 18: 171499806208, 24: 336468587008, 25: 336468587008, 28: 254387243008,
}  # fmt: skip
"""FLOPs of routes of DeiT-3 S and L for ADE20K at 512 x 512, with the main head.

Source: segmentation/model_flops in the released code of Stitched ViTs.
"""
NYUV2 = {
    "s": {
        0: 208875853824, 1: 602608435200, 2: 569571549696, 4: 504205174272, 7: 405919484928, 10: 307633795584,
        12: 241795167744, 14: 242857244160, 35: 571105878528, 90: 242267420160, 99: 242739672576, 134: 242739672576,
    },
    "b": {
        0: 300972158976, 1: 602608435200, 2: 577885479936, 4: 527966923776, 7: 452616837120, 10: 377266750464,
        12: 326403689472, 14: 327584123904, 35: 580010419200, 90: 327348194304, 99: 328292699136, 134: 328292699136,
    },
}  # fmt: skip
"""FLOPs of routes of DeiT-3 S and L, and of B and L, for NYUv2 at 480 x 640, with the head.

Source: depth_estimation/model_flops in the released code of Stitched ViTs.
"""


def built(name, **options):
    with torch.device("meta"):
        return stitchkit.create_snnet(name, checkpoints=False, **options)


def segments(space, cfg_id):
    """The segments of a route: whether each is of the small anchor, and its first and last block."""
    small = space[0].segments[0].anchor
    return [(part.anchor == small, part.start, part.stop - 1) for part in space[cfg_id].segments]


@pytest.mark.full
def test_law_4_the_flops_of_all_routes_lie_in_the_published_range():
    """SN-Netv2's page gives the two ends, which are those of the anchors."""
    model = built("ade20k_deit3_s_l")
    costs = Profiler(model)
    flops = {cfg_id: costs.cost(cfg_id).flops for cfg_id in model.space.ids}
    assert len(flops) == 134
    assert min(flops.values()) == flops[0] == ADE20K[0] - 1025 * WIDTHS["s"] * WIDTHS["l"], "as traced: one layer more"
    assert max(flops.values()) == flops[1] == ADE20K[1]


@pytest.mark.full
def test_law_4_published_flops_of_segmentation():
    """To the last digit: the published trace has one layer more where the first level, which no head takes, is S's."""
    model = built("ade20k_deit3_s_l")
    costs, one_layer = Profiler(model), 1025 * WIDTHS["s"] * WIDTHS["l"]
    for cfg_id, published in ADE20K.items():
        unused = any(small and first <= 4 <= last for small, first, last in segments(model.space, cfg_id))
        assert costs.cost(cfg_id).flops + unused * one_layer == published, model.space[cfg_id]


@pytest.mark.full
def test_law_4_flops_of_segmentation_by_b_and_l():
    """They are not published: those of S and L, with B's width in all that is of S."""
    model = built("ade20k_deit3_b_l")
    costs, tokens = Profiler(model), 1025

    def of_small(width, cfg_id):
        parts = segments(model.space, cfg_id)
        blocks = sum(last - first + 1 for small, first, last in parts if small)
        linear, attention, norms = 12 * width**2, 2 * tokens * width, 2 * 5 * width
        stem = (tokens - 1) * 3 * 16**2 * width if parts[0][0] else 0
        layers = len(parts) - 1 + parts[-1][0] + any(small and first <= 4 <= last for small, first, last in parts)
        return stem + blocks * tokens * (linear + attention + norms) + layers * tokens * width * WIDTHS["l"]

    for cfg_id, published in ADE20K.items():
        unused = any(small and first <= 4 <= last for small, first, last in segments(model.space, cfg_id))
        found = costs.cost(cfg_id).flops + unused * tokens * WIDTHS["b"] * WIDTHS["l"]
        assert found == published - of_small(WIDTHS["s"], cfg_id) + of_small(WIDTHS["b"], cfg_id), model.space[cfg_id]


@pytest.mark.full
@pytest.mark.parametrize("size", NYUV2)
def test_law_4_published_flops_of_depth(size):
    """To the last digit, with what the published trace has more.

    It resizes the depths to the image, which they fill already: 4 for each pixel. And it runs a stitching layer twice
    where a route leaves the small anchor at a level: for the level, and for the route.
    """
    model = built(f"nyuv2_deit3_{size}_l", img_size=(480, 640))
    costs, one_layer = Profiler(model), 1201 * WIDTHS[size] * WIDTHS["l"]
    for cfg_id, published in NYUV2[size].items():
        left = segments(model.space, cfg_id)[:-1]
        twice = sum(small and last in (2, 5, 8) for small, _, last in left)
        found = costs.cost(cfg_id).flops + 4 * 480 * 640 + twice * one_layer
        assert found == published, model.space[cfg_id]
