"""The graph of a model by torch.fx, with names that do not depend on how much of the model was traced."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter, signature

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from stitchkit.errors import InputError
from stitchkit.networks.cut.sized import SizedTracer
from stitchkit.networks.cut.tracer import Tracer, Untraceable, paths_to, reason


@dataclass(frozen=True)
class Trace:
    """The graph of a model in one mode; a module that was not traced into is one node.

    Args:
        labels: A name for every node but parameters and the output: the path of a module, or the path of the module
            that runs a function, and the function's name. A second call of either ends with `_1`, and so on.
        root: The model with the nodes' targets; it shares its tensors with the one that was traced.
        given: What timm's `forward_features` and `forward_head` give, if there are these methods and it is one tensor.
    """

    graph: fx.Graph
    labels: dict[fx.Node, str]
    root: nn.Module
    training: bool
    given: Mapping[str, fx.Node]

    @torch.no_grad()
    def shapes(self, example: torch.Tensor) -> dict[fx.Node, tuple[int, ...]]:
        """The shape of each tensor, found by running the graph on an example, which may be on the meta device."""
        interpreter = fx.Interpreter(self.root, graph=self.graph, garbage_collect_values=False)
        interpreter.run(example)
        return {node: tuple(x.shape) for node, x in interpreter.env.items() if isinstance(x, torch.Tensor)}


def trace(
    model: nn.Module,
    names: Collection[str] = (),
    *,
    training: bool = False,
    deep: bool = False,
    example: torch.Tensor | None = None,
) -> Trace:
    """Trace a model into its blocks, and further only for named nodes.

    Sequences of blocks are traced into. Every other module is one node, unless it contains a named node. Layers of
    torch, and classes derived from them, are always one node.

    Args:
        model: Any module that takes one tensor.
        names: Names of nodes that the graph must show.
        training: Trace the model in training mode rather than in evaluation mode.
        deep: Trace into every module that can be traced.
        example: Images whose sizes, but for their number, become constants of the graph. Without them, a model that
            asks for sizes can only be traced around the modules that do.
    """
    optional = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    arguments = [*signature(model.forward).parameters.values()]
    needed = [each.name for each in arguments if each.default is Parameter.empty and each.kind not in optional]
    if len(needed) > 1:
        raise InputError(
            f"{type(model).__name__} takes {' and '.join(needed)}; wrap it in a module that takes one tensor"
        )
    asked = {path for name in names for path in paths_to(name)[:-1]}
    whole: set[type[nn.Module]] = set()
    while True:
        root = _twin(model).train(training)
        tracer = (
            Tracer(root, asked, whole, deep=deep)
            if example is None
            else SizedTracer(root, asked, whole, deep=deep, example=example)
        )
        try:
            with warnings.catch_warnings(), _without_logs():
                warnings.simplefilter("ignore")
                graph = tracer.trace(root)
            tracer.refuse_lost_changes()
            return Trace(graph, tracer.labels, root, training, tracer.given)
        except Untraceable as error:
            # Trace again with this class whole: each failure adds a class, so the loop ends.
            whole.add(error.args[0])
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{type(model).__name__} cannot be traced between its blocks: {reason(error)}; cut its blocks, each "
                "as a model of its own"
            ) from error


@contextmanager
def _without_logs() -> Iterator[None]:
    """Keep torch from logging a traceback of each module that cannot run without values, and so stays whole."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _twin(model: nn.Module) -> nn.Module:
    """A copy of the model with the same tensors, without hooks: tracing changes modules that cache what they see."""
    held = (value for module in model.modules() for value in tree_leaves(vars(module)))
    twin = copy.deepcopy(model, {id(value): value for value in held if isinstance(value, torch.Tensor)})
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return twin.train()  # clears the cache that timm's LeViT fills in evaluation
