"""Flags of timm's and SN-Netv2's training scripts that have no meaning here, and flags of ours that were removed.

The parser knows them, so that a command written for timm ends with a reason instead of "unknown flag". A settings file
may state them with timm's own defaults, as every `args.yaml` that timm writes does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from stitchkit.errors import InputError
from stitchkit.settings.schema import flag_of


@dataclass(frozen=True)
class Refusal:
    """Why one of timm's flags has no meaning here and what to use instead; its default there, and other spellings."""

    reason: str
    default: object = None
    aliases: tuple[str, ...] = ()
    fact: str = "does not apply to stitching"
    of_training: bool = False
    """Whether no figure depends on it, so that only a training refuses it in a file."""

    def error(self, name: str) -> InputError:
        """The error of a command with this flag."""
        return InputError(f"{flag_of(name)} {self.fact}: {self.reason}")


# Reasons that several flags share.
_SIZES = "anchors are joined position by position at one input size; set it by --img-size or --input-size"
_OF_SIZES = {
    "train_img_sizes": None, "train_batch_sizes": None, "train_size_probs": None, "train_size_schedule": "constant",
    "train_size_schedule_spread": 0.65, "train_size_random_mix": 0.1, "naflex_loader": False,
    "naflex_train_seq_lens": [128, 256, 576, 784, 1024], "naflex_max_seq_len": 576, "naflex_patch_sizes": None,
    "naflex_patch_size_probs": None, "naflex_loss_scale": "linear", "naflex_patchify_channels_first": False,
}  # fmt: skip
_FEATURES = "stitches of different width have no feature in common; the teacher gives logits, see --distillation-type"
_OF_FEATURES = {"kd_distill_type": "logit", "kd_student_feature_dim": None, "kd_teacher_feature_dim": None}
_TOKENS = "stitches have no distillation token in common; the teacher gives logits, see --distillation-type"

PLATEAU = Refusal("learning rates follow only from the epoch; use --sched cosine, tanh, step, multistep or poly", 10)

REFUSED: dict[str, Refusal] = {
    **{name: Refusal(_SIZES, default) for name, default in _OF_SIZES.items()},
    **{name: Refusal(_FEATURES, default) for name, default in _OF_FEATURES.items()},
    "torchscript": Refusal("a scripted network has one route; use --torchcompile, or script an extracted one", False),
    "fuser": Refusal("it fuses TorchScript, which is not used here; use --torchcompile", ""),
    "dataset_trust_remote_code": Refusal("a data set's own code is never run; convert it to an image folder", False),
    "device_modules": Refusal("cpu and cuda, the devices supported here, need no further module; use --device"),
    "local_rank": Refusal("the environment numbers the ranks; start them with ./distributed_train.sh", 0),
    "patience_epochs": PLATEAU,
    "tta": Refusal("timm's loader yields each image once, so there is nothing to average; omit it", 0),
    "use_multi_epochs_loader": Refusal("loaders restart each epoch, to resume exactly; use more --workers", False),
    "train_batches_per_epoch": Refusal(
        "an epoch is one pass through the training split; use --epochs, or --train-num-samples if it is streamed",
        aliases=("--train-steps-per-epoch",),
    ),
    "variable_batch_loss_scale": Refusal("all batches of a run have one size; set it by --batch-size", "linear"),
    "kd_model_name": Refusal("a stitched network learns from one teacher; name it by --teacher-model"),
    "kd_loss_type": Refusal("the kind of teaching determines it; use --distillation-type soft (KL) or hard", "kl"),
    "distill_loss_weight": Refusal("the weights of both losses add up to one; use --distillation-alpha"),
    "task_loss_weight": Refusal("the label loss has the weight that --distillation-alpha leaves; use that"),
    "kd_temperature": Refusal("the temperature has another name here; use --distillation-tau", 4.0),
    "kd_token_distill_type": Refusal(_TOKENS, "soft"),
    "dist_eval": Refusal("an evaluation always uses all ranks, and counts each image once; omit it", False),
    "get_flops": Refusal("FLOPs are counted whenever they are needed; use stitchkit profile to print them", False),
}
"""Refusals by name of the setting in a file."""


Removed = partial(Refusal, fact="was removed")
"""The refusal of a flag that earlier versions had; `default` is what their own `args.yaml` states."""
_SAMPLERS = "only samplers that studies/samplers has used it; omit it"
_FOCUS = "studies/evidence shows no gain from it; omit it"
_ONE_STAGE = Removed("an evaluation judges every stitch on all images; omit it, or choose --eval-stitches")

REMOVED: dict[str, Refusal] = {
    "budgets": Removed("its benefit was never measured; omit it", of_training=True),
    "class_weights": Removed("timm has no such flag, and no table shows a gain from it; omit it", of_training=True),
    "sampler_routes": Removed(_SAMPLERS),
    "sandwich_divergence": Removed(_SAMPLERS, "kl"),
    "focus": Removed(_FOCUS, 0),
    "focus_images": Removed(_FOCUS),
    "cache_features": Removed("each epoch computes the features of the anchors; omit it"),
    "self_stitch": Removed("it only showed whether the fit has enough images; omit it", False, of_training=True),
    "ls_method": Removed("no table shows a gain over the published fit; omit it", "truncated", of_training=True),
    "ls_damping": Removed("no table shows a gain over the published fit; omit it", 1e-4, of_training=True),
    "eval_images": _ONE_STAGE,
    "keep_within": _ONE_STAGE,
}
REFUSALS = REFUSED | REMOVED
REMOVED_VALUES = {
    ("preserve", "replay"): Removed("studies/samplers shows no gain from it; choose none, frozen or lora")
}
"""The refusals of values of settings that stay."""
