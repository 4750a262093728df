"""ONNX files with 8-bit integers: weights and activations of linear layers and convolutions."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

_BATCH = 16


class _Images(CalibrationDataReader):  # type: ignore[misc] # onnxruntime is untyped
    def __init__(self, images: torch.Tensor):
        self._batches = iter(torch.split(images, _BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch.numpy()}


def quantise(path: Path, images: torch.Tensor) -> None:
    """Replace a float32 ONNX file by one in int8, with the ranges of activations on images `[B, C, H, W]`.

    Ranges are fixed, not computed for each image. Products of two activations, as in attention, stay float32.
    """
    logging.getLogger("onnxruntime.quantization").setLevel(logging.WARNING)  # it announces its steps
    prepared = path.with_name(f"prepared.{path.name}")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)  # slow, and nothing needs it
    quantize_static(
        str(prepared),
        str(path),
        _Images(images),
        op_types_to_quantize=["MatMul", "Conv", "Gemm"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
