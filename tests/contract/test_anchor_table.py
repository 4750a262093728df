"""The page of anchors holds a row for every model, which is measured again; a model that trains can be opened again."""

import copy
import re
from functools import partial

import pytest
import timm
import torch
from timm.models import model_entrypoint

import stitchkit
from docs.anchors_table import PAGE, all_names, measure, rows, small_model
from stitchkit.engine.checkpoint_files import save_state, start_from
from stitchkit.errors import InputError

ONE_OF_EACH = """
    beit_base_patch16_224 halonet26t repvgg_a0 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32
    convnext_atto cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny deepseek_vit_412m
    deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0
    efficientnet_b0 mobilenetv4_conv_small efficientvim_m1 efficientvit_b0 efficientvit_m0
    eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050
    hardcorenas_b hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto
    inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0 mambaout_femto
    coatnet_pico_rw_224 poolformer_s12 mixer_s32_224 mobilenetv5_base mobilevit_xxs mvitv2_tiny
    naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small dm_nfnet_f0 pit_ti_224 pnasnet5large
    pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnet18
    resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050
    swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224
    tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny vit_tiny_patch16_224
    vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224 samvit_base_patch16_224 vitamin_small_224 volo_d1_224
    ese_vovnet19b_slim_dw legacy_xception xception41p xcit_nano_12_p8_224 torchvision/swin_t
    torchvision/mobilenet_v3_small
""".split()  # noqa: SIM905
"""A small model of each of timm's modules, and two of torchvision's."""
QUICK = ("convnext_atto", "torchvision/mobilenet_v3_small")
"""With layer norms, and with batch norms and not timm's."""


def test_the_page_has_a_row_for_every_model():
    assert list(rows()) == all_names()


def test_models_can_be_anchors_exactly_or_have_a_reason():
    found = rows().values()
    exact = [row for row in found if "| yes |" in row]
    assert sum("torchvision/" not in row for row in exact) >= 1200
    assert sum("torchvision/" in row for row in exact) >= 40
    assert not [row for row in found if row not in exact and row.endswith("|  |")]


def test_one_model_of_each_module_is_measured_before_a_change_lands():
    assert {*QUICK} <= {*ONE_OF_EACH}
    timms = (name for name in ONE_OF_EACH if not name.startswith("torchvision/"))
    assert {model_entrypoint(name).__module__ for name in timms} == {
        model_entrypoint(name).__module__ for name in timm.list_models()
    }


def cases(names, quick):
    """The quick ones, one of each module, and all others, each under its mark."""
    mark = dict.fromkeys(ONE_OF_EACH, pytest.mark.full)
    return [pytest.param(name, marks=() if name in quick else mark.get(name, pytest.mark.nightly)) for name in names]


@pytest.mark.parametrize("name", cases(all_names(), QUICK))
def test_rows_of_the_page_are_measured_again(name):
    assert str(measure(name)) == rows()[name]


SAVED = {"convnext_atto": (), "levit_128s": (), "torchvision/mnasnet0_5": pytest.mark.full}
"""Traced, with a cache, and with a loading of its own. All others are nightly: building and saving them takes hours."""
JOINABLE = [name for name, row in rows().items() if re.search(r"\| [\d-]+ \| yes \|", row)]
"""The anchors with blocks."""


@pytest.mark.full
@pytest.mark.parametrize("name", [pytest.param(name, marks=SAVED.get(name, pytest.mark.nightly)) for name in JOINABLE])
def test_every_anchor_trains_a_step_and_is_opened_again(name, tmp_path):
    network, images, _ = small_model(name)
    try:
        model = stitchkit.create_snnet(anchors=[network, copy.deepcopy(network)], img_size=tuple(images.shape[2:]))
        run = partial(model, stitch=len(model.space) - 1)
    except InputError:  # at this size some have no usually stitched stage
        model = run = network
    fresh = copy.deepcopy(model.train())  # in training mode, LeViT forgets its cache, which cannot be copied
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    run(images).sum().backward()
    optimizer.step()
    save_state(tmp_path / "last.pth.tar", {"state_dict": model.state_dict()})
    start_from(fresh, str(tmp_path / "last.pth.tar"))
    own = model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in fresh.state_dict().items())


@pytest.mark.full
def test_the_python_of_the_page_runs():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    exec(code, {})
