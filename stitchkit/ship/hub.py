"""SN-Nets in folders and repositories of the Hugging Face Hub: configuration, safetensors, ledger and model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors.torch import save

from stitchkit.errors import InputError, one_line, unknown
from stitchkit.files import refuse_link, replacing, write_text
from stitchkit.measure.latency_verdict import latency_note, without_unreliable
from stitchkit.measure.ledger import Row, read_rows, write_rows
from stitchkit.measure.metric import METRICS, metric_of
from stitchkit.measure.pareto import pareto_front, table
from stitchkit.measure.statistics_file import Kept, load_statistics, statistics_file, write_statistics
from stitchkit.model.create import anchors_and_space, read_config, snnet_options
from stitchkit.model.snnet import SNNet
from stitchkit.model.statistics import batch_norms
from stitchkit.networks.data_config import check_data_config, given_data_config, saved_data_config
from stitchkit.networks.hub_weights import hub_fault
from stitchkit.networks.weights import load_checkpoint, load_content
from stitchkit.settings.files import read_settings_file
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.ship.description import local, portable
from stitchkit.ship.trained_snnet import open_trained
from stitchkit.ship.write_page import read_page

_CONFIG, _WEIGHTS, _LEDGER, _README = "config.json", "model.safetensors", "stitches_res.txt", "README.md"
_STATISTICS = statistics_file(_LEDGER).name
_OF_CLASSES, _OF_FEATURES = "image-classification", "image-feature-extraction"
_OPTIONS = ("revision", "cache_dir", "force_download", "token", "local_files_only")


class HubSNNet(
    SNNet,
    ModelHubMixin,
    library_name="stitchkit",
    pipeline_tag=_OF_CLASSES,
    tags=[_OF_CLASSES, "stitchable-neural-network"],
    model_card_template=read_page("model_card.jinja"),
):
    """An SN-Net with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    Its weights are random unless the anchors have local checkpoints; `from_run` loads those of a training run. A folder
    holds configuration, preparation of images and class names as JSON, the weights as safetensors, the ledger and the
    batch-norm statistics of single stitches if there are any, and a model card. Nothing in it is executed, and only the
    folder's own files are downloaded.

    Args:
        num_classes: Number of logits, or 0 for features; by default that of the models.
        img_size: Side of an input image, or height and width; by default that of the models.
        in_chans: Channels of an input image; by default 3.
        classes: Class names in the order of the logits, if known.
        image: Preparation of images in timm's terms, `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`, and their
            decoding, `input_img_mode`, `background`, `exif`; by default that of the configuration's recipe and the last
            anchor.

    Raises:
        InputError: If the configuration is invalid, or class names or settings of images do not fit this network.
    """

    classes: list[str]
    """Class names in the order of the logits; empty if unknown."""
    ledger: list[Row]
    """The figures of the stitches, for the model card and for users of the folder."""

    def __init__(
        self,
        stitch_config: Mapping[str, object] | str | Path,
        *,
        num_classes: int | None = None,
        img_size: int | list[int] | None = None,
        in_chans: int | None = None,
        classes: Sequence[str] | None = None,
        image: Mapping[str, object] | None = None,
    ):
        self.config = read_config(stitch_config)
        self.config.refuse_dense("the SN-Net", "a folder for the Hub needs these; use stitchkit export")
        parts = anchors_and_space(
            self.config, pretrained=False, num_classes=num_classes, img_size=img_size, in_chans=in_chans
        )
        data_config = given_data_config(self.config.recipe) | dict(image or {})
        check_data_config(data_config, parts[0][-1].input_size[0])
        super().__init__(*parts, **snnet_options(self.config), image=data_config)
        self.ledger = []
        self.classes = _checked_classes(classes or [], self.num_classes)

    @property
    def image(self) -> dict[str, object]:
        """The preparation of images, in timm's terms."""
        return saved_data_config(self)

    @classmethod
    def from_run(cls, **settings: object) -> HubSNNet:
        """The SN-Net of a training run, with its weights, its class names and the preparation of its images.

        Args:
            settings: Flags of `stitchkit export`: `stitch_config` and `resume`, or `config`, the run's
                `eval_args.yaml`, which has all; if needed also `model_ema`, `data_dir`, `num_classes`, `mean`, ...

        Raises:
            InputError: If a file is missing or unreadable, checkpoint and configuration do not belong together, or
                the run set `--bn-eps`, which a folder cannot store.
        """
        trained = open_trained(settings)
        if trained.recipe.model.bn_eps is not None:
            raise InputError("--bn-eps cannot be stored in a folder of the Hub; share the stitches by stitchkit export")
        pooling = trained.recipe.model.gp
        anchors = [portable(spec, trained.model, global_pool=pooling) for spec in trained.config.anchors]
        config = trained.config.to_dict() | {"anchors": anchors}
        model = cls(config, classes=trained.classes, image=saved_data_config(trained.model))
        load_content(model, trained.model.state_dict(), str(trained.recipe.run.resume))
        model.statistics = trained.model.statistics
        model.keeps_statistics = trained.keeps_anchors or trained.recipe.run.recalibrate_bn == 0
        model.lacks_statistics = not model.keeps_statistics
        return model.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        # Whoever loads the folder is warned unless all routes may share the statistics.
        is_suited = bool(batch_norms(self)) and not (self.lacks_statistics or self.statistics)
        refuse_link(save_directory / _README)  # huggingface_hub writes this file, and would follow a link
        config = self.config.to_dict() | {
            "anchors": [portable(spec, self) for spec in self.config.anchors],
            "recipe": given_data_config(self.config.recipe) | ({"recalibrate_bn": 0} if is_suited else {}),
        }
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        with replacing(save_directory / _WEIGHTS) as draft:
            draft.write_bytes(save(weights, metadata={"format": "pt"}))
        if self.ledger:
            write_rows(save_directory / _LEDGER, self.ledger)
        if self.statistics:
            kept: dict[int, Kept] = {cfg_id: (statistics, {}) for cfg_id, statistics in self.statistics.items()}
            write_statistics(save_directory / _STATISTICS, self, kept)
        content = {"stitch_config": config, "image": self.image, "classes": self.classes}
        write_text(save_directory / _CONFIG, json.dumps(content, indent=2) + "\n")

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The model card, with the Pareto front if there is a ledger with accuracies."""
        metric = metric_of(self.ledger)
        rows = without_unreliable([row for row in self.ledger if metric in row and "flops" in row])
        front = pareto_front(rows, metric=metric) if rows else []
        labels = list(self.views)
        content = {
            "title": " > ".join(labels),
            "anchors": ", ".join(labels),
            "stitches": len(self.space),
            "place": kwargs.get("repo_id") or "FOLDER_OR_REPOSITORY",
            "example": front[-1]["cfg_id"] if front else 0,
            "output": "logits" if self.num_classes else "features",
            "headless": not self.num_classes,
            "size": ", ".join(map(str, self.input_size)),
            "front": table(front) if front else "",
            "metric": METRICS[metric].removeprefix("top-1 "),
            "recalibrated": _STATISTICS if any(self.statistics.values()) else "",
            "latencies": latency_note(front),
        }
        card = super().generate_model_card(*args, **(content | kwargs))
        if not self.num_classes:
            tags = [_OF_FEATURES if tag == _OF_CLASSES else tag for tag in card.data["tags"]]
            card.data["pipeline_tag"], card.data["tags"] = _OF_FEATURES, tags
        return card

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the files of `save_pretrained` to `user/name`; the options are huggingface_hub's."""
        options["model_card_kwargs"] = {"repo_id": repo_id, **(options.get("model_card_kwargs") or {})}
        return super().push_to_hub(repo_id, **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> HubSNNet:
        """The SN-Net of a local folder, or of a repository `user/name` on the Hub, which is then downloaded.

        Raises:
            InputError: If it is unavailable, or its files are damaged or not of an SN-Net.
        """
        name = str(pretrained_model_name_or_path)
        try:
            is_local = Path(name).is_dir() or options.get("local_files_only")
            where = {key: options.get(key) for key in ("revision", "cache_dir")}
            if not is_local and (fault := hub_fault(name, **where)):
                raise InputError(f"it cannot be downloaded: {fault}; check the folder, or name and network")
            model: HubSNNet = super().from_pretrained(name, **options)
        except InputError as error:
            raise InputError(f"'{name}': {error}") from error
        except HFValidationError as error:
            raise InputError(f"'{name}' is neither a folder nor user/name of a repository; check it") from error
        except Exception as error:  # the hub's client raises many kinds
            raise InputError(f"'{name}' cannot be loaded: {one_line(error)}; check folder, name and network") from error
        return model

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, stitch_config: Any = None, classes: Any = None, image: Any = None, **options: Any
    ) -> HubSNNet:
        if strange := [name for name in options if name not in _OPTIONS]:
            raise unknown("option", strange[0], _OPTIONS)
        if not isinstance(stitch_config, dict):
            raise InputError(f"its {_CONFIG} has no 'stitch_config'; save it with save_pretrained")
        for spec in StitchConfig.parse(stitch_config).anchors:
            local(spec)  # a stranger's configuration could name files and repositories to load
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(model_id, allow_patterns=[_CONFIG, _WEIGHTS, _LEDGER, _STATISTICS], **options)
            )
        read_settings_file(folder / _CONFIG)  # refuses duplicate keys; huggingface_hub takes the last
        if not (folder / _WEIGHTS).is_file():
            raise InputError(f"it has no {_WEIGHTS}; weights of another kind are not read")  # pickles run code
        model = cls(stitch_config, classes=classes, image=image)
        load_checkpoint(model, folder / _WEIGHTS)
        model.ledger = read_rows(folder / _LEDGER) if (folder / _LEDGER).is_file() else []
        load_statistics(model, folder / _LEDGER)
        return model


def _checked_classes(classes: Sequence[str], number: int) -> list[str]:
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise InputError(f"'classes' is {classes!r}; give the names of the classes in the order of the logits")
    if classes and len(classes) != number:
        raise InputError(f"there are {len(classes)} class names for {number} logits; give one for each")
    return list(classes)
