"""The file beside a ledger that says what its figures depend on: weights, data and settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stitchkit.errors import InputError
from stitchkit.files import write_text
from stitchkit.measure.recalibrate import PORTION
from stitchkit.settings.files import read_settings_file, settings_text
from stitchkit.settings.recipe import Recipe

# Settings that change the figures of a ledger, so a ledger with other ones is not continued.
_SETTINGS = (
    *("dataset", "val_split", "class_map", "input_key", "target_key", "val_num_samples", "num_classes", "img_size"),
    *("crop_pct", "interpolation", "mean", "std", "amp", "amp_dtype", "channels_last", "model_ema"),
    *("recalibrate_bn", "in_chans", "input_size", "input_img_mode", "background", "exif", "gp", "bn_eps", "fast_norm"),
    *("model_dtype", "task", "window_stride", "max_depth"),
)

# Settings that change the statistics of batch norms of single routes.
_CALIBRATION = ("train_split", "train_num_samples", "seed")

IMAGES = "images_sha256"
"""The key of a digest of the validation images, which older ledgers do not have."""


def origin_of(recipe: Recipe, weights_sha256: str) -> dict[str, object]:
    """All that the figures of an evaluation depend on."""
    settings = recipe.flat()
    data = Path(recipe.data.data_dir or "").resolve()
    origin = {"weights_sha256": weights_sha256, "data_dir": str(data)} | {key: settings[key] for key in _SETTINGS}
    if recipe.run.recalibrate_bn != 0:
        # Statistics of before there was a fixed portion were those of batches.
        origin |= {key: settings[key] for key in _CALIBRATION} | {"bn_portion": PORTION}
    return origin


def of_the_bank(recipe: Recipe) -> dict[str, object]:
    """What figures depend on, beside the origin, if features are compared with labelled ones."""
    return {key: recipe.flat()[key] for key in ("bank_images", "train_split", "train_num_samples", "seed")}


def origin_file(ledger: str | Path) -> Path:
    """The file beside a ledger."""
    return Path(ledger).with_suffix(".yaml")


def write_origin(ledger: Path, origin: Mapping[str, object]) -> None:
    """Write what the figures of a ledger depend on."""
    write_text(origin_file(ledger), settings_text(dict(origin)))


def read_origin(ledger: str | Path, *, advice: str) -> dict[str, object]:
    """Weights, data and settings that the figures of a ledger depend on."""
    # A ledger may be older than some settings, which had their defaults then; that of batch norms has changed.
    try:
        return Recipe().flat() | {"recalibrate_bn": 0, "by_agreement": False} | read_settings_file(origin_file(ledger))
    except InputError as error:
        raise InputError(
            f"'{origin_file(ledger)}', the origin of '{ledger}', cannot be read: {error}; {advice}"
        ) from error


def changed(before: Mapping[str, object], now: Mapping[str, object]) -> str | None:
    """The first setting of `now` that differs from `before`."""
    return next((key for key, value in now.items() if before.get(key) != value), None)
