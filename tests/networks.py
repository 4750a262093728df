"""Pico networks without a view, one a code path of the tracer, for all tests."""

from __future__ import annotations

from typing import Any


def _anchor(label: str, name: str, **kwargs: Any) -> dict[str, Any]:
    return {"label": label, "name": name, "kwargs": {"num_classes": 4, "img_size": 64, **kwargs}}


def _pair(name: str, small: dict[str, Any], large: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    return {"anchors": [_anchor("s", name, **kwargs, **small), _anchor("b", name, **kwargs, **large)]}


def _rope_vits(**kwargs: Any) -> dict[str, Any]:
    size = {"img_size": 32, "patch_size": 8, "depth": 3, "num_heads": 2}
    return _pair("vit_small_patch16_dinov3", {"embed_dim": 16}, {"embed_dim": 32}, **{**size, **kwargs})


_DEPTHS = {"depths": (1, 2, 2, 1)}
_NO_PREFIX = {"class_token": False, "num_reg_tokens": 0, "global_pool": "avg"}
_BEIT = {"img_size": 32, "patch_size": 8, "depth": 3, "num_heads": 2}
_REGNET = {"wm": 2.0, "depth": 7, "group_size": 4, "stem_width": 8}
_NFNET = {**_DEPTHS, "stem_chs": 16, "num_features": 32, "group_size": 8, "ch_div": 8}
_TINY_VIT = {"depths": (2, 2, 2, 1), "num_heads": (1, 2, 2, 4), "window_sizes": (4, 4, 4, 2)}

TRACED: dict[str, dict[str, Any]] = {
    "NCHW, layer norm": _pair("convnext_atto", {"dims": (8, 8, 16, 16)}, {"dims": (8, 16, 16, 32)}, **_DEPTHS),
    "NCHW, batch norm": _pair("regnetx_002", {"w0": 8, "wa": 12.0}, {"w0": 16, "wa": 24.0}, **_REGNET),
    "NCHW, no norm": _pair("dm_nfnet_f0", {"channels": (8, 8, 16, 16)}, {"channels": (16, 16, 32, 32)}, **_NFNET),
    "NHWC": _pair("mambaout_femto", {"dims": (8, 8, 16, 16)}, {"dims": (8, 16, 16, 32)}, **_DEPTHS),
    "NHWC, windows": _pair(
        "swinv2_tiny_window8_256", {"embed_dim": 8}, {"embed_dim": 16},
        num_heads=(1, 2, 2, 4), window_size=4, **_DEPTHS,
    ),
    "NLC, no prefix": _rope_vits(**_NO_PREFIX),
    "NLC, class token": _pair("beit_base_patch16_224", {"embed_dim": 16}, {"embed_dim": 32}, **_BEIT),
    "NLC, 5 prefix tokens": _rope_vits(),
    "layout changes inside a stage": _pair(
        "tiny_vit_5m_224", {"embed_dims": (8, 8, 16, 16)}, {"embed_dims": (8, 16, 16, 32)}, **_TINY_VIT
    ),
    "headless, traced": _rope_vits(num_classes=0),
}  # fmt: skip
"""Pico configurations of two anchors that have no view, by what their tensors and norms are."""
