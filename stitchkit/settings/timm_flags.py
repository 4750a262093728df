"""Flags of timm's training script that have no meaning here: why, and what to use instead.

They are known to the parser, so that a command written for timm ends with a reason and not with "unknown flag". A file
of settings may hold them with timm's own defaults, as every `args.yaml` that timm writes does.
"""

from __future__ import annotations

from dataclasses import dataclass

from stitchkit.errors import InputError
from stitchkit.settings.recipe import flag_of


@dataclass(frozen=True)
class Refusal:
    """Why a flag does not apply.

    Args:
        reason: Why it has no meaning here; what to use instead.
        default: timm's default, with which a file may hold it.
        aliases: Further spellings of the flag.
    """

    reason: str
    default: object = None
    aliases: tuple[str, ...] = ()

    def error(self, name: str) -> InputError:
        """The line that a command with the flag ends with."""
        return InputError(f"{flag_of(name)} does not apply to stitching: {self.reason}")


_SIZES = "anchors are joined position by position at one input size; set that by --img-size or --input-size"
_FEATURES = "stitches of different width have no feature in common; the teacher gives logits, see --distillation-type"
_TOKENS = (
    "stitches have no distillation token in common; the teacher gives logits, use --distillation-type soft or hard"
)

PLATEAU = Refusal(
    "learning rates follow from the epoch alone, so that a resumed run equals an unbroken one; use --sched cosine, "
    "tanh, step, multistep or poly",
    default=10,
)

REFUSED: dict[str, Refusal] = {
    "torchscript": Refusal(
        "a scripted network has one route only; use --torchcompile, or script what extract() gives", False
    ),
    "fuser": Refusal("it fuses TorchScript, and nothing here is scripted; use --torchcompile", ""),
    "dataset_trust_remote_code": Refusal(
        "a data set's own code is never run; convert it to Parquet files or an image folder", False
    ),
    "device_modules": Refusal("it runs on cpu and cuda, which need no further module; use --device"),
    "local_rank": Refusal("ranks are numbered by their environment; start them with ./distributed_train.sh", 0),
    "patience_epochs": PLATEAU,
    "tta": Refusal("timm's loader gives each image once, so there is nothing to average; leave it out", 0),
    "use_multi_epochs_loader": Refusal(
        "loader processes restart at each epoch, so that a resumed run equals an unbroken one; use more --workers",
        False,
    ),
    "train_img_sizes": Refusal(_SIZES),
    "train_batch_sizes": Refusal(_SIZES),
    "train_size_probs": Refusal(_SIZES),
    "train_size_schedule": Refusal(_SIZES, "constant"),
    "train_size_schedule_spread": Refusal(_SIZES, 0.65),
    "train_size_random_mix": Refusal(_SIZES, 0.1),
    "train_batches_per_epoch": Refusal(
        "an epoch goes through the training split once; use --epochs, for a streamed split --train-num-samples",
        aliases=("--train-steps-per-epoch",),
    ),
    "variable_batch_loss_scale": Refusal("all batches of a run have one size; set it by --batch-size", "linear"),
    "naflex_loader": Refusal(_SIZES, False),
    "naflex_train_seq_lens": Refusal(_SIZES, [128, 256, 576, 784, 1024]),
    "naflex_max_seq_len": Refusal(_SIZES, 576),
    "naflex_patch_sizes": Refusal(_SIZES),
    "naflex_patch_size_probs": Refusal(_SIZES),
    "naflex_loss_scale": Refusal(_SIZES, "linear"),
    "naflex_patchify_channels_first": Refusal(_SIZES, False),
    "kd_model_name": Refusal("a stitched network learns from one teacher; name it by --teacher-model"),
    "kd_distill_type": Refusal(_FEATURES, "logit"),
    "kd_loss_type": Refusal(
        "the kind of teaching says the loss; use --distillation-type soft (KL divergence) or hard", "kl"
    ),
    "distill_loss_weight": Refusal("the losses of labels and teacher share one; use --distillation-alpha"),
    "task_loss_weight": Refusal("the labels have what --distillation-alpha leaves to them; use that"),
    "kd_temperature": Refusal("the teacher's temperature is --distillation-tau; use that", 4.0),
    "kd_student_feature_dim": Refusal(_FEATURES),
    "kd_teacher_feature_dim": Refusal(_FEATURES),
    "kd_token_distill_type": Refusal(_TOKENS, "soft"),
}
"""Refusals by the name that the setting has in a file."""
