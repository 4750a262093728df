"""The stitch configuration: anchors, the rule that joins them, and the recipe of their paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictStr, model_validator
from pydantic.dataclasses import dataclass
from pydantic.json_schema import JsonSchemaValue

from stitchkit.errors import InputError, unknown
from stitchkit.routes import Joint, Proportional, SlidingWindow, StitchSpace, TwoWay
from stitchkit.routes.rules import Rule, Shape, check_stages
from stitchkit.routes.two_way import Directions
from stitchkit.settings import published
from stitchkit.settings.by_name import SETTINGS, checked_of_file, recipe_schema
from stitchkit.settings.dense_recipe import DenseRecipe, DenseSpec
from stitchkit.settings.fields import MOST_RANK, Amount, Classes, Count, Natural, Side, Times
from stitchkit.settings.files import naming, read_settings_file
from stitchkit.settings.names import AnchorText, config_file, hub_fault
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.schema import LocalPath, ModelArguments, Settings, flag_of, json_schema, parse
from stitchkit.settings.timm_flags import REFUSALS

_RANK = 64
_ANCHOR_RANK = 16

LayerKind = Literal["linear", "lowrank", "mlp"]
"""The kinds of stitching layer."""

# Whoever runs a configuration decides where output is written and to whom it is sent, not its author.
_NOT_ITS_AUTHORS = ("output", "log_wandb", "wandb_project", "wandb_tags", "wandb_resume_id")


@dataclass(frozen=True)
class AnchorSpec(Settings):
    """One anchor of a configuration.

    Args:
        name: A timm model name, preferably with the tag of its weights, such as `deit_tiny_patch16_224.fb_in1k`;
            or torchvision's behind `torchvision/`.
        label: The name of the anchor in stitches; without one, the model's name up to its tag.
        kwargs: Further arguments of `timm.create_model`.
        checkpoint: A local file with its weights; without one, timm's pretrained weights.
    """

    name: StrictStr
    label: StrictStr = ""
    kwargs: ModelArguments = Field(default_factory=dict)
    checkpoint: LocalPath | None = None

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", AnchorText(self.name, "").label)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, content: object) -> object:
        return {"name": content} if isinstance(content, str) else content

    @classmethod
    def parse(cls, value: object) -> AnchorSpec:
        """A spec from JSON: a timm name, or an object with `name`, `label`, `kwargs` and `checkpoint`."""
        return parse(cls, value, "anchor")


@dataclass(frozen=True)
class ZooFacts(Settings):
    """What a configuration of the zoo says about itself; `docs/zoo_table.py` measures it.

    Args:
        stitches: Number of stitches.
        flops: FLOPs of the cheapest and of the costliest stitch, for one image.
        input_size: Channels, height and width of an image.
        num_classes: Number of classes; 0 for networks without a classifier.
        licence: Licence of the weights as timm states it, such as `apache-2.0`.
        tokens: Of networks without a classifier, the features of each anchor: prefix tokens, rows and columns.
    """

    stitches: Count
    flops: tuple[Amount, Amount]
    input_size: tuple[Side, Side, Side]
    num_classes: Classes
    licence: StrictStr = Field(min_length=1)
    tokens: tuple[tuple[Natural, Count, Count], ...] = ()

    @property
    def classes(self) -> str:
        """The number of classes in words."""
        return str(self.num_classes) if self.num_classes else "headless"

    @property
    def image(self) -> str:
        """The size of an image in words: `224`, or `224x192` if it is not square."""
        _, height, width = self.input_size
        return str(height) if height == width else f"{height}x{width}"

    @property
    def positions(self) -> str:
        """The features in words: `16 x 16 + 5` with five prefix tokens; of each anchor, if they differ."""
        words = [f"{height} x {width}" + f" + {prefix}" * (prefix > 0) for prefix, height, width in self.tokens]
        return ", ".join(words if len({*words}) > 1 else words[:1])


def _check_joints(joints: tuple[str, ...]) -> tuple[str, ...]:
    for joint in joints:
        Joint.parse(joint)
    return joints


@dataclass(frozen=True)
class StitchConfig(Settings):
    """The file of a stitch configuration.

    It holds everything needed to rebuild an SN-Net: its anchors and how they are stitched.

    Args:
        anchors: timm model names, or objects with more settings, from cheap to costly.
        source: The paper or person that the configuration comes from.
        model: A key of published files; ignored.
        rule: Where anchors are joined: "window" slides a window over their blocks, as published; "proportional" joins
            anchors of any depths at the same relative heights; "two_way" does too, and its routes switch several times.
        directions: For "proportional" and "two_way": "up" stitches cheaper anchors into costlier ones, "down" the
            reverse, "both" either. By default "up", and for "two_way" "both".
        max_switches: For "two_way": how often a route may switch between two anchors; by default 2, as published.
        stitch_kernel_size: For "window": how many neighbouring blocks a sliding window spans.
        stitch_stride: For "window": how many blocks the window advances.
        nearest_stitching: Stitch only anchors that are neighbours in the list.
        stages: Numbers of the stages to stitch; by default those that the anchors' families are stitched at.
        joints: The joints to keep, such as "ti[5] > s[6]", as `stitchkit choose` writes them; by default all of the
            rule. Stitches that pass through others do not exist.
        stitched_final_norm: Whether stitched routes apply the end anchor's final normalisation.
        layer: The stitching layer: "linear"; "lowrank", whose fitted map stays and gets an update of low rank; or
            "mlp", two linear layers. By default "linear", and "lowrank" if `lora_r` is given.
        lora_r: Rank of the update of "lowrank"; by default 64. 0 means "linear", as in published files.
        anchor_lora_r: Rank of updates of the anchors' linear layers, which stitched routes have and uncut anchors do
            not, of `--preserve lora`; by default 16 in such a run, and 0, for none, in any other.
        dense: For dense prediction: `task`, `head` and `levels`, as the flags of these names, with the same defaults.
        recipe: Training settings by flag name; YAML files and flags override them.
        zoo: Of a configuration of the zoo, what `stitchkit zoo` lists; it does not change the network.
    """

    anchors: tuple[AnchorSpec, ...] = Field(min_length=2)
    source: StrictStr = ""
    model: object = None
    rule: StrictStr = "window"
    directions: Directions | None = None
    max_switches: Times | None = None
    stitch_kernel_size: Count = 2
    stitch_stride: Count = 1
    nearest_stitching: StrictBool = True
    stages: Annotated[tuple[Natural, ...] | None, AfterValidator(check_stages)] = None
    joints: Annotated[tuple[StrictStr, ...], Field(min_length=1), AfterValidator(_check_joints)] | None = None
    # The published DeiT code leaves the final normalisation out, so its configuration says false.
    stitched_final_norm: StrictBool = True
    layer: LayerKind | None = None
    lora_r: Annotated[int, Field(strict=True, ge=0, le=MOST_RANK)] | None = None
    anchor_lora_r: int = Field(default=0, ge=0, le=MOST_RANK, strict=True)
    dense: DenseSpec | None = None
    recipe: dict[str, object] = Field(default_factory=dict)
    zoo: ZooFacts | None = None

    further_keys: ClassVar[tuple[str, ...]] = (*published.RECIPE_KEYS, *published.SCHEMA)

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown("rule", self.rule, RULES)
        defaults = {
            "directions": "both" if self.rule == "two_way" else "up",
            "max_switches": 2 if self.rule == "two_way" else None,
            "layer": "lowrank" if self.lora_r else "linear",
        }
        for key, value in defaults.items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)
        if self.layer == "lowrank" and self.lora_r is None:
            object.__setattr__(self, "lora_r", _RANK)
        if bool(self.lora_r) != (self.layer == "lowrank"):
            raise InputError(f"lora_r is {self.lora_r}, but layer is '{self.layer}'; 'lowrank' has a rank from 1")
        if self.rule == "window" and self.directions != "up":
            raise InputError(
                f"directions is '{self.directions}', but windows join only cheaper anchors to costlier ones; set "
                '"rule": "proportional", or remove it'
            )
        if self.rule != "two_way" and self.max_switches is not None:
            raise InputError(f"max_switches belongs to the rule 'two_way', but rule is '{self.rule}'; remove it")
        if self.rule != "window" and (self.stitch_kernel_size, self.stitch_stride) != (2, 1):
            raise InputError(f"stitch_kernel_size and stitch_stride belong to windows, not '{self.rule}'; remove them")
        self.make_rule()

    @classmethod
    def load(cls, path: str | Path) -> StitchConfig:
        """Read a JSON or YAML file, ours or a published one, given by its path or by a short name as `deit_ti_s_b`."""
        path = config_file(path)
        content = read_settings_file(path)
        if content and "anchors" not in content and content.keys() <= {*SETTINGS, *REFUSALS, "data"}:
            file = f", '{content['stitch_config']}'" if content.get("stitch_config") else ""
            advice = f"give --stitch-config the file with the anchors{file}"
            raise InputError(f"'{path}' holds settings of a run, for -c; {advice}")
        with naming(path):
            return cls.parse(content)

    @classmethod
    def parse(cls, content: object) -> StitchConfig:
        """A configuration from the content of its file."""
        if not isinstance(content, Mapping):
            raise InputError(f"a stitch configuration is a JSON object with 'anchors', not {type(content).__name__}")
        content, of_v2 = published.read_v2(content)
        flat = {key: content[key] for key in published.RECIPE_KEYS if key in content}
        config = parse(cls, {key: value for key, value in content.items() if key not in flat})
        for number, anchor in enumerate(config.anchors):
            wanted = anchor.checkpoint is None and config.recipe.get("pretrained") is not False
            if fault := hub_fault(anchor.name, weights=wanted):
                raise InputError(f"anchors[{number}]: '{anchor.name}' {fault}")
        recipe = checked_of_file(of_v2) | published.recipe_of(flat) | _own_recipe(config.recipe)
        if config.dense is not None:
            recipe = checked_of_file(config.dense.settings) | recipe
        own = {key: recipe[key] for key in ("task", "head", "levels") if key in recipe}
        return replace(config, recipe=recipe, dense=parse(DenseRecipe, own).spec)

    def refuse_dense(self, name: str, advice: str) -> None:
        """Refuse a configuration for dense prediction, by its `name`, where classes of whole images are needed."""
        if self.dense is not None:
            raise InputError(f"{name} is for {self.dense.task}, not for classes of whole images; {advice}")

    def make_rule(self) -> Rule:
        """Where the anchors may be joined."""
        return RULES[self.rule](self)

    def with_updates(self, settings: Recipe) -> StitchConfig:
        """This configuration with what settings add to the network: updates of anchors, and a dense head."""
        rank = self.anchor_lora_r
        if settings.stitch.way_to_preserve == "lora":
            rank = rank or _ANCHOR_RANK
        return replace(self, anchor_lora_r=rank, dense=settings.dense.spec)

    def space_of(self, anchors: Sequence[Shape]) -> StitchSpace:
        """The stitches of the anchors under the rule, or those through `joints`."""
        space = StitchSpace.build(anchors, self.make_rule())
        return space if self.joints is None else space.through([*map(Joint.parse, self.joints)])

    def to_dict(self) -> dict[str, Any]:
        """The part that defines the network, as plain data for `parse`."""
        content: dict[str, Any] = {key: getattr(self, key) for key in _OF_THE_NETWORK}
        content |= {"anchors": [*map(asdict, self.anchors)], "dense": self.dense and asdict(self.dense)}
        content |= {key: [*content[key]] for key in ("stages", "joints") if content[key] is not None}
        return {key: value for key, value in content.items() if value is not None and (key, value) not in _UNSAID}


_OF_THE_NETWORK = (
    *("source", "anchors", "rule", "directions", "max_switches", "stitch_kernel_size", "stitch_stride"),
    *("nearest_stitching", "stages", "joints", "stitched_final_norm", "layer", "lora_r", "anchor_lora_r", "dense"),
)
_UNSAID = (("layer", "linear"), ("lora_r", 0), ("anchor_lora_r", 0))

RULES: dict[str, Callable[[Any], Rule]] = {
    "window": lambda own: SlidingWindow(own.stitch_kernel_size, own.stitch_stride, own.nearest_stitching, own.stages),
    "proportional": lambda own: Proportional(own.directions, own.nearest_stitching, own.stages),
    "two_way": lambda own: TwoWay(own.max_switches, own.directions, own.nearest_stitching, own.stages),
}
"""What makes the rule of a configuration, by its key `rule`; one of your own is added here."""


def _own_recipe(settings: Mapping[str, object]) -> dict[str, object]:
    for key in _NOT_ITS_AUTHORS:
        if key in settings:
            raise InputError(f"recipe.{key}: a configuration cannot set '{key}'; remove it and give {flag_of(key)}")
    return checked_of_file(settings, "recipe.{}".format)


def stitch_config_schema() -> JsonSchemaValue:
    """The JSON Schema of a stitch configuration, with the settings of its recipe and the published keys."""
    schema, recipe = json_schema(StitchConfig), recipe_schema()["properties"]
    anchors = schema["properties"]["anchors"]
    anchors["items"] = {"anyOf": [anchors["items"], {"type": "string"}]}
    own = {key: value for key, value in recipe.items() if key not in ("$schema", *_NOT_ITS_AUTHORS)}
    schema["properties"]["recipe"] |= {"properties": own, "additionalProperties": False}
    for key, name in published.RECIPE_KEYS.items():
        schema["properties"][key] = {**recipe[name], "description": f"Published key for {name} in recipe."}
    schema["properties"]["rule"]["enum"] = [*RULES]
    schema["properties"] |= published.SCHEMA
    schema["properties"]["data_set"] = {
        "const": "IMNET",
        "description": "Published key for an image folder. It also sets recalibrate_bn to 0 and sampler to "
        "uniform, as published.",
    }
    return schema
