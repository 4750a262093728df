"""bfloat16 on a CPU: the log proposes it where it is fast and not chosen; attention takes the faster way in it."""

import logging

import pytest
import torch
from torch import nn

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.train.job import job_paths, open_job
from stitchkit.distributed import World
from stitchkit.engine import settings
from stitchkit.networks.mode import unfused_attention
from stitchkit.settings.by_name import make_recipe
from stitchkit.training.network import place_network
from tests.jobs import job_config, vit, write_job
from tests.support import pico_images, pico_snnet

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture
def cpu(monkeypatch):
    """Sets which instructions the CPU has."""

    def has(*, bf16=False, tiles=False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)

    return has


@pytest.fixture
def narrow_counts(monkeypatch):
    """Proposes bfloat16 for pico networks too."""
    monkeypatch.setattr(settings, "_PAYS_FROM", 1)


def placed(**settings):
    model = pico_snnet()
    place_network(model, make_recipe(settings), CPU)
    return model


def fused(model):
    return [part.fused_attn for part in model.modules() if hasattr(part, "fused_attn")]


@pytest.mark.parametrize("given", [{"bf16": True}, {"tiles": True}, {"bf16": True, "tiles": True}])
@pytest.mark.parametrize("evaluates", [False, True])
def test_a_cpu_that_has_it_is_told_once(given, evaluates, cpu, caplog, narrow_counts):
    cpu(**given)
    with caplog.at_level(logging.INFO):
        model = placed(eval=evaluates)
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "this CPU multiplies matrices in bfloat16 much faster than in float32"
    ]
    assert "--amp --amp-dtype bfloat16 uses" in caplog.text
    assert all(fused(model))


@pytest.mark.parametrize(
    "settings", [{"amp": True}, {"amp": True, "amp_dtype": "bfloat16"}, {"model_dtype": "bfloat16"}]
)
def test_who_chose_it_is_not_told(settings, cpu, caplog, narrow_counts):
    cpu(bf16=True, tiles=True)
    with caplog.at_level(logging.INFO):
        placed(**settings)
    assert not caplog.records


def test_a_cpu_without_it_is_not_mentioned(cpu, caplog, narrow_counts):
    cpu()
    with caplog.at_level(logging.INFO):
        placed()
    assert not caplog.records


@pytest.mark.parametrize("width", [63, 64])
@pytest.mark.parametrize(
    "layer", [lambda width: nn.Linear(500, width), lambda width: nn.Conv2d(width // 9 + 1, width, 3)]
)
def test_it_is_proposed_where_matrix_products_are_wide(width, layer, cpu, caplog):
    cpu(bf16=True)
    # Norms, tables of positions and depthwise convolutions are large, but no wide products.
    narrow = [nn.BatchNorm2d(900), nn.Conv2d(900, 900, 3, groups=900), nn.Embedding(900, 8)]
    with caplog.at_level(logging.INFO):
        settings.suit_precision(nn.Sequential(layer(width), *narrow), CPU.device, amp=False, how="x")
    assert bool(caplog.records) is (width == 64)


@pytest.mark.parametrize("amp", [False, True])
def test_jobs_do_the_same(amp, images, tmp_path, cpu, caplog, narrow_counts):
    cpu(bf16=True)
    settings = job_config(images, amp=amp) | {"assembly": [vit("x", "blocks.0"), vit("blocks.1", "head")]}
    settings.pop("head")
    config = JobConfig.load(write_job(tmp_path, settings), pretrained=False)
    with caplog.at_level(logging.INFO):
        job = open_job(config, CPU, None, job_paths(config, None))
    assert ("train_config.amp: true uses" in caplog.text) is not amp
    assert set(fused(job.network)) == {not amp}


def test_other_devices_are_left_alone(cpu, caplog, narrow_counts):
    cpu(bf16=True)
    model = pico_snnet()
    with caplog.at_level(logging.INFO):
        settings.suit_precision(model, torch.device("cuda"), amp=True, how="")
        settings.suit_precision(model, torch.device("cuda"), amp=False, how="")
    assert not caplog.records
    assert all(fused(model))


@pytest.mark.parametrize("settings", [{"amp": True}, {"model_dtype": "bfloat16"}])
@pytest.mark.parametrize("tiles", [False, True])
def test_attention_is_fused_in_it_only_on_matrix_tiles(settings, tiles, cpu):
    cpu(bf16=True, tiles=tiles)
    assert set(fused(placed(**settings))) == {tiles}


def test_logits_stay_the_same_but_for_rounding(cpu):
    cpu(bf16=True)
    model, images = placed(amp=True).eval(), pico_images()
    with torch.no_grad():
        wanted = model.forward_all(images)
        with torch.autocast("cpu", torch.bfloat16):
            found = model.forward_all(images)
    for cfg_id, logits in found.items():
        assert logits.dtype == torch.bfloat16
        torch.testing.assert_close(logits.float(), wanted[cfg_id], rtol=0.05, atol=0.05)


def test_for_a_while_only_what_was_fused_changes():
    model = pico_snnet()
    some = next(part for part in model.modules() if hasattr(part, "fused_attn"))
    some.fused_attn = False
    with unfused_attention(model):
        assert not any(fused(model))
    assert fused(model).count(False) == 1
