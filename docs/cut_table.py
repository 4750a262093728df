"""Measure which models can be cut between their blocks, and write the table of docs/cut.md.

    PYTHONPATH=. python docs/cut_table.py

Each model has random weights and small images. It is cut at every clean place, and its steps run one after the other
against the whole, in evaluation mode and, from the same random state, in training mode. Equal means equal to the bit.
"""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.models import model_entrypoint
from torch import nn
from torchvision.models import get_model, get_model_builder

from stitchkit.errors import InputError
from stitchkit.networks.create import create_model
from stitchkit.networks.steps import Steps

PAGE = Path(__file__).parent / "cut.md"
HEAD = "| module | model | clean cuts | exact | why not |\n| --- | --- | --- | --- | --- |\n"
NAMES = """
    beit_base_patch16_224 halonet26t lambda_resnet26t repvgg_a0 mobileone_s1 gernet_s cait_xxs24_224 coat_tiny
    convit_tiny convmixer_768_32 convnext_atto cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspresnet50
    cspnext_tiny davit_tiny deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224
    densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0
    efficientnetv2_rw_t mobilenetv2_100 mobilenetv4_conv_small efficientvim_m1 efficientvit_b0 efficientvit_m0
    eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050
    hardcorenas_b hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto
    inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0 mambaout_femto
    coatnet_pico_rw_224 maxvit_pico_rw_256 poolformer_s12 poolformerv2_s12 caformer_s18 mixer_s32_224 resmlp_12_224
    gmlp_ti16_224 mobilenetv3_small_100 mobilenetv3_large_100 lcnet_050 mobilenetv5_base mobilevit_xxs
    mobilevitv2_050 mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small dm_nfnet_f0
    nf_resnet50 pit_ti_224 pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 regnety_004 repghostnet_050
    repvit_m1 res2next50 resnest14d resnet18 resnet50 wide_resnet50_2 seresnet50 resnetv2_18 rexnet_100 selecsls42
    legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224
    swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small
    twins_pcpvt_small vgg11 visformer_tiny vit_tiny_patch16_224 vit_small_patch16_dinov3 vit_medium_patch16_gap_256
    vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224 samvit_base_patch16_224 vitamin_small_224 volo_d1_224
    ese_vovnet19b_slim_dw legacy_xception xception41p xcit_nano_12_p8_224
    torchvision/resnet50 torchvision/swin_t torchvision/swin_v2_t torchvision/vit_b_16 torchvision/convnext_tiny
    torchvision/efficientnet_b0 torchvision/mobilenet_v3_large torchvision/regnet_y_400mf torchvision/densenet121
    torchvision/vgg11 torchvision/alexnet torchvision/shufflenet_v2_x1_0
""".split()  # noqa: SIM905
TORCHVISION = "torchvision/"
"""Before the names of torchvision's models."""
SIZES = (64, 96, 128, 192, None)
"""Sides of images, tried in this order; None is the model's own."""


@dataclass(frozen=True)
class Row:
    """The measurements of one model.

    Args:
        name: timm's name, or torchvision's behind `torchvision/`.
        cuts: Number of clean places between its blocks.
        is_exact: Whether its steps, rejoined, give what the whole gives; None where there are none.
        reason: Why it cannot be cut.
    """

    name: str
    cuts: int
    is_exact: bool | None
    reason: str = ""

    def __str__(self) -> str:
        own = self.name.removeprefix(TORCHVISION)
        library = "" if own == self.name else TORCHVISION
        entry = get_model_builder(own) if library else model_entrypoint(own)
        module = library + entry.__module__.rpartition(".")[2]
        exact = {True: "yes", False: "no", None: ""}[self.is_exact]
        return f"| {module} | `{self.name}` | {self.cuts} | {exact} | {self.reason} |"


def measure(name: str) -> Row:
    """Cut a model at every clean place and rejoin it."""
    model, images = small_model(name)
    try:
        whole = Steps(model)
        steps = [whole[number] for number in range(len(whole))]
    except InputError as error:
        return Row(name, 0, None, str(error))
    found = {mode: _run(steps, images, training=mode) for mode in (False, True)}
    cuts = sum(isinstance(value, torch.Tensor) for value in found[False])
    if cuts == 0:
        return Row(name, 0, None, "several tensors pass between all its blocks")
    return Row(name, cuts, all(_same(_run([model], images, training=mode)[-1], found[mode][-1]) for mode in found))


def small_model(name: str, *sizes: int | None) -> tuple[nn.Module, torch.Tensor]:
    """A model with random weights, and two of the smallest images that it takes.

    Args:
        name: timm's name, or torchvision's behind `torchvision/`.
        sizes: Sides of images to try, in this order; `SIZES` and at last the model's own by default.
    """
    size, *larger = sizes or SIZES
    torch.manual_seed(0)
    try:
        model, images = _torchvision_model(name, size) if name.startswith(TORCHVISION) else _timm_model(name, size)
        with torch.no_grad():
            model.eval()(images)
    except Exception:  # timm and torch raise many kinds where an image is too small
        if size is None:
            raise
        return small_model(name, *larger)
    with torch.no_grad():
        for parameter in model.parameters():  # many blocks begin as the identity
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model, images


def _timm_model(name: str, size: int | None) -> tuple[nn.Module, torch.Tensor]:
    model = create_model(name, img_size=size)
    return model, torch.randn(2, *model.pretrained_cfg["input_size"])


def _torchvision_model(name: str, size: int | None) -> tuple[nn.Module, torch.Tensor]:
    own, side = name.removeprefix(TORCHVISION), size or 224
    arguments = {"image_size": side} if own.startswith("vit") else {}
    return get_model(own, weights=None, **arguments), torch.randn(2, 3, side, side)


@torch.no_grad()
def _run(steps: Sequence[nn.Module], x: torch.Tensor, *, training: bool) -> list[object]:
    """The output of each step, one after the other; copies run, since training changes statistics."""
    torch.manual_seed(1)
    values: list[object] = [x]
    for step in steps:
        values.append(copy.deepcopy(step).train(training)(values[-1]))
    return values[1:]


def _same(left: object, right: object) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return torch.equal(left, right)
    assert isinstance(left, list | tuple)
    assert isinstance(right, list | tuple)
    return len(left) == len(right) and all(map(_same, left, right))


def main(names: list[str]) -> None:
    """Print the rows of some models, or write those of all."""
    rows = []
    for name in names or NAMES:
        rows.append(str(measure(name)))
        print(rows[-1], flush=True)
        gc.collect()
    if not names:
        head, mark, _ = PAGE.read_text().partition(HEAD)
        PAGE.write_text(head + mark + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
