"""A composed network: fragments and joints as one module that counts, exports, draws, fits, predicts and evaluates."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

from stitchkit.errors import InputError, one_line
from stitchkit.files import check_regular, replacing, write_text
from stitchkit.measure.profile import flops_by_operator, measure
from stitchkit.networks.mode import evaluating
from stitchkit.networks.timm_model import classifier_of
from stitchkit.settings.files import unique_keys
from stitchkit.settings.schema import image_size, parse
from stitchkit.settings.stitch_config import AnchorSpec
from stitchkit.ship.formats import suffix_of
from stitchkit.ship.stitch_files import FORMATS
from stitchnet.activations import run
from stitchnet.classifier import Classifier, OutputMap, Outputs
from stitchnet.data import Examples, Stream, as_images, batches, read_image
from stitchnet.drawing import FragmentSummary, draw
from stitchnet.fragments import Fragment
from stitchnet.joint import describe, joint_of, rebuild
from stitchnet.networks import create

WEIGHTS, ABOUT = "net.safetensors", "net.json"
_FILES = 128  # number of images read at a time


class Prediction(TypedDict):
    """The label of an image, and the scores of all classes."""

    score: list[float]
    label: int


class Net(nn.Module):
    """A composed network, named by its fragments, such as `resnet50[0:2] > vgg16[9:16]`, with the score of all joints.

    A layer is a fragment's layers, behind a joint if one is needed; its score is 1 for the first. The images that the
    joints were fitted to are of the input size `(C, H, W)`. `num_classes` is that of a new head, None without one.
    """

    def __init__(
        self, name: str, score: float, path: Sequence[Fragment], layers: Sequence[nn.Sequential],
        scores: Sequence[float], input_size: tuple[int, int, int], specs: dict[str, AnchorSpec | None],
    ):  # fmt: skip
        super().__init__()
        self.name, self.score, self.scores = name, score, tuple(scores)
        self.path, self.specs, self.input_size = tuple(path), specs, input_size
        self.layers = nn.ModuleList(layers)
        self.classifier: Classifier | OutputMap | None = None
        self.num_classes: int | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to the logits of the last fragment's network."""
        for layer in self.layers:
            x = layer(x)
        return x

    def __str__(self) -> str:
        return self.name

    def example(self) -> torch.Tensor:
        """Seeded noise of the network's input size `[1, C, H, W]`."""
        parameter = next(self.parameters())
        noise = torch.randn(1, *self.input_size, generator=torch.Generator().manual_seed(0))
        return noise.to(parameter.device, parameter.dtype)

    def get_macs_params(self) -> dict[str, int | dict[str, int]]:
        """Multiply-adds for one image, as fvcore counts them, in all and by operator, and number of parameters."""
        macs = flops_by_operator(self, self.example())
        params = sum(parameter.numel() for parameter in self.parameters())
        return {"macs": sum(macs.values()), "params": params, "macs_by_operator": macs}

    @torch.no_grad()
    def steps(self) -> list[FragmentSummary]:
        """The fragments with their joints and costs."""
        summaries, x = [], self.example()
        with evaluating(self):
            for fragment, layer, score in zip(self.path, self.layers, self.scores, strict=True):
                cost, joint = measure(layer, x), joint_of(layer)
                words = joint.describe(x) if joint else ""
                x = layer(x)
                own = (fragment.network, fragment.index, fragment.count)
                summaries.append(FragmentSummary(*own, score, words, tuple(x.shape[1:]), cost.flops, cost.params))
        return summaries

    def save_onnx(self, path: str | Path) -> Path:
        """Export to ONNX, for any number of images of one size; `.onnx` is added to the path if it is missing.

        Raises:
            InputError: If the packages for ONNX are not installed.
        """
        target = _with_suffix(path, ".onnx")
        form = FORMATS[suffix_of(target)]
        about = {"network": self.name, "input": {"input_size": self.input_size}}
        with evaluating(self), warnings.catch_warnings(), replacing(target) as draft:
            warnings.simplefilter("ignore")  # the exporter warns about itself
            # A copy on the CPU: exporters keep the device of the weights in the file.
            form.write(copy.deepcopy(self).cpu(), about, draft)
        return target

    def draw_svg(self, path: str | Path) -> Path:
        """Draw the fragments with their shapes, scores and costs; `.svg` is added to the path if it is missing."""
        target = _with_suffix(path, ".svg")
        write_text(target, draw(self.steps(), self.input_size, self.score))
        return target

    def outputs(self, dataset: Examples | Stream, label_column: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The network's outputs `[N, D]` for a dataset as for `fit`, and the labels `[N]`."""
        pairs = ((self._outputs(images), labels) for images, labels in batches(dataset, label_column))
        outputs, labels = zip(*pairs, strict=True)
        return np.concatenate(outputs), np.concatenate(labels)

    def _outputs(self, images: torch.Tensor) -> np.ndarray:
        if tuple(images.shape[1:]) != tuple(self.input_size):
            sizes = f"{list(images.shape[1:])}, but the network was composed for {list(self.input_size)}"
            raise InputError(f"images are {sizes}; prepare them in this size")
        with evaluating(self):
            return run(self, images.to(next(self.parameters()).device)).flatten(1).cpu().numpy()

    def fit(self, dataset: Examples | Stream, label_column: str | None = None) -> Net:
        """Fit a classifier to the network's outputs, the five nearest neighbours, and return the network.

        Args:
            dataset: A dataset of `load_hf_dataset`, one of images and labels, as from `image_folder`, or arrays
                `(images, labels)`.
            label_column: Name of the labels in a dataset of `load_hf_dataset`.

        Raises:
            InputError: If there is no such column, or the images are of another size than the network was composed for.
        """
        self.classifier = Classifier(*self.outputs(dataset, label_column))
        return self

    def map_outputs(self, outputs: Outputs, *, kind: str = "max", classes: Sequence[str] = ()) -> Net:
        """Classify by the network's own outputs, which mean other classes, such as ImageNet's, and return the network.

        Args:
            outputs: For each class the numbers of its outputs, ranges such as `"151-268"`, ImageNet's names or synsets:
                `{"cat": [281, "Persian cat"], ...}`, or a JSON or YAML file of this form.
            kind: `max`: the class of the highest of these outputs; `sum`: that with the highest sum of probabilities;
                `argmax`: the class of the highest of all outputs, -1 if it belongs to none, as published.
            classes: The classes in the order of their numbers; by default those of `outputs`, class2 before class10.

        Raises:
            InputError: If the outputs are unknown, ambiguous or of two classes, or a class has none.
        """
        self.classifier = OutputMap.read(outputs, kind, classes)
        return self

    def predict(self, images: np.ndarray | torch.Tensor) -> list[Prediction]:
        """Labels of images `[B, C, H, W]`, with the scores of all classes.

        Raises:
            InputError: If the network was not fitted, or the images are not of the size that it was composed for.
        """
        if not len(images):
            return []
        outputs = self._outputs(as_images(images))
        scores = self._fitted().scores(outputs)
        labels = self._fitted().classes[scores.argmax(1)]
        return [{"score": row.tolist(), "label": int(label)} for row, label in zip(scores, labels, strict=True)]

    def predict_files(self, paths: str | Path | Sequence[str | Path]) -> list[Prediction]:
        """Labels of image files, or of one, with the scores of all classes.

        Raises:
            InputError: If a file is not an image, or the network was not fitted.
        """
        self._fitted()
        paths = [paths] if isinstance(paths, str | Path) else list(paths)
        predictions: list[Prediction] = []
        for first in range(0, len(paths), _FILES):
            images = [read_image(path, self.input_size[1:]) for path in paths[first : first + _FILES]]
            predictions += self.predict(torch.stack(images))
        return predictions

    def evaluate_dataset(self, dataset: Examples | Stream, label_column: str | None = None) -> dict[str, float]:
        """The share of a dataset, as for `fit`, that is classified correctly: `{"accuracy": ...}`.

        Raises:
            InputError: If the network was not fitted.
        """
        fitted = self._fitted()
        outputs, labels = self.outputs(dataset, label_column)
        predicted = fitted.classes[fitted.scores(outputs).argmax(1)]
        return {"accuracy": float((predicted == labels).mean())}

    def _fitted(self) -> Classifier | OutputMap:
        if self.classifier is None:
            raise InputError("the network has no classifier yet; call fit or map_outputs first")
        return self.classifier

    def save(self, folder: str | Path) -> Path:
        """Write the network and its classifier into a folder, as safetensors and JSON; `stitchnet.load` reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Copies, because safetensors rejects tensors that share memory.
        tensors = {
            f"net.{name}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in self.state_dict().items()
        }
        about = {
            "name": self.name,
            "score": self.score,
            "scores": self.scores,
            "input_size": self.input_size,
            "networks": {label: spec and asdict(spec) for label, spec in self.specs.items()},
            "num_classes": self.num_classes,
            "path": [describe(fragment, layer) for fragment, layer in zip(self.path, self.layers, strict=True)],
        }
        if isinstance(self.classifier, OutputMap):
            about["output_map"] = asdict(self.classifier)
        elif self.classifier:
            about["classifier"] = "knn"
            tensors["classifier.outputs"] = torch.as_tensor(self.classifier.outputs).contiguous()
            tensors["classifier.labels"] = torch.as_tensor(self.classifier.labels).contiguous()
        with replacing(folder / WEIGHTS) as draft:
            draft.write_bytes(save(tensors))  # an error of the library's own writer hides that of the system
        write_text(folder / ABOUT, json.dumps(about, indent=1))
        return folder


def _with_suffix(path: str | Path, suffix: str) -> Path:
    target = Path(path)
    target = target if target.suffix == suffix else target.with_name(target.name + suffix)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def load(folder: str | Path, nets: Mapping[str, nn.Module] | None = None) -> Net:
    """Read a network from a folder of `Net.save`; nothing in the files is executed.

    Args:
        nets: The search's networks by label, if it got modules instead of names. Their weights do not matter.

    Raises:
        InputError: If the files cannot be read, or a module is missing.
    """
    folder = Path(folder)
    try:
        for name in (ABOUT, WEIGHTS):
            check_regular(folder / name)
        about = json.loads((folder / ABOUT).read_text(), object_pairs_hook=unique_keys)
        return _restore(about, load_file(folder / WEIGHTS), nets or {})
    except InputError:
        raise
    except Exception as error:  # on a damaged file, the reader may raise anything
        fault = f"'{folder}' contains no readable composed network: {one_line(error)}; check the path"
        raise InputError(fault) from error


def _restore(about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], nets: Mapping[str, nn.Module]) -> Net:
    specs = {label: spec and AnchorSpec.parse(spec) for label, spec in about["networks"].items()}
    # The file has the weights, so only the structure of the networks is needed.
    models = {label: _model(label, spec, nets) for label, spec in specs.items()}
    path, layers = zip(*(rebuild(entry, models[entry["network"]]) for entry in about["path"]), strict=True)
    size = image_size(about["input_size"])
    net = Net(about["name"], about["score"], path, layers, about["scores"], size, specs)
    if about.get("num_classes") is not None:
        name = classifier_of(net)
        old, net.num_classes = net.get_submodule(name), len(tensors[f"net.{name}.weight"])
        assert isinstance(old, nn.Linear)
        net.set_submodule(name, nn.Linear(old.in_features, net.num_classes, old.bias is not None))
    net.load_state_dict({name[4:]: value for name, value in tensors.items() if name.startswith("net.")})
    if about.get("classifier", "knn") != "knn":
        warnings.warn(f"the classifier of '{net.name}' was removed; fit the network again", stacklevel=3)
    elif "classifier" in about:
        outputs, labels = (tensors[f"classifier.{name}"].numpy() for name in ("outputs", "labels"))
        net.classifier = Classifier(outputs, labels)
    if "output_map" in about:
        net.classifier = parse(OutputMap, about["output_map"], "output_map")
    return net.eval()


def _model(label: str, spec: AnchorSpec | None, nets: Mapping[str, nn.Module]) -> nn.Module:
    if label in nets:
        return nets[label]
    if spec is None:
        raise InputError(f"network '{label}' was a module of the search; pass it as nets={{'{label}': module}}")
    if ":" in spec.name or "/" in spec.name:
        raise InputError(
            f"network '{label}' is from '{spec.name}', but files must not cause downloads; "
            f"create it yourself and pass it as nets={{'{label}': module}}"
        )
    return create(AnchorSpec(spec.name, spec.label, spec.kwargs))
