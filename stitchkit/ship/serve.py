"""A page to try an SN-Net in the browser: the best stitch within a budget predicts an image."""

from __future__ import annotations

import argparse
import math
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from html import escape
from pathlib import Path
from typing import Any

import torch

from stitchkit.data.decoding import ImageSource, readable
from stitchkit.display import quantity, unit_of
from stitchkit.distributed import choose_device
from stitchkit.errors import InputError
from stitchkit.measure.latency import latencies
from stitchkit.measure.latency_verdict import unreliable
from stitchkit.measure.ledger import Row
from stitchkit.measure.metric import ACCURACY, in_sentence, metric_of
from stitchkit.optional import optional
from stitchkit.ship.budgeted import BudgetedModel
from stitchkit.ship.description import no_classes
from stitchkit.ship.predict import described_classes, likeliest
from stitchkit.ship.predictors import Transform, report_changes
from stitchkit.ship.route_drawing import depths_of, draw_route
from stitchkit.ship.trained_snnet import Trained, calibrate, check_origin, needs_calibration, trained_of
from stitchkit.ship.write_page import read_page

_CLASSES = 5  # number of classes in a prediction
_SECONDS = 0.5  # longest time to measure a latency while somebody waits for the page
_HOST = "127.0.0.1"
_GRADIO = ("gradio", "serve", "the page")


class Demonstration:
    """The behaviour of the page, apart from its layout: an SN-Net on its device, and its ledger or rows."""

    def __init__(self, trained: Trained, ledger: str | Path | Sequence[Row]):
        if not trained.model.num_classes:
            raise no_classes("the SN-Net")
        trained.config.refuse_dense("the SN-Net", "the page shows these; use stitchkit predict")
        self._trained = trained
        self._model = trained.model
        self._device = next(trained.model.parameters()).device
        self._budgeted = BudgetedModel(self._model, ledger)
        self._rows = {row["cfg_id"]: row for row in self._budgeted.rows}
        self._metric = metric_of(self._budgeted.rows)
        self._figure = "top-1" if self._metric == ACCURACY else in_sentence(self._metric)
        for cfg_id in self._rows:
            needs_calibration(trained, cfg_id)  # refuses one without data now, not while somebody waits for the page
        costs = [float(row["flops"]) for row in self._rows.values()]
        self.cheapest, self.costliest = min(costs), max(costs)
        self._transform = Transform(trained.data_config)
        self._names = described_classes(trained.classes, trained.model.num_classes)
        self._depths = depths_of(self._model.space)
        self._network = cache(self._open_network)
        blank = torch.zeros(1, *self._model.input_size, device=self._device)
        self._latency = cache(lambda cfg_id: latencies([self._model.extract(cfg_id)], blank, limit_s=_SECONDS)[0])

    def run(self, image: ImageSource | None, flops: float) -> tuple[dict[str, float] | None, str]:
        """Predict with the best stitch within a budget.

        Returns:
            Probabilities of the likeliest classes by name, None without an image, and the stitch as HTML.
        """
        cfg_id = self._budgeted.choose(flops)
        return None if image is None else self._predict(image, cfg_id), self._describe(cfg_id)

    def _predict(self, image: ImageSource, cfg_id: int) -> dict[str, float]:
        with readable(image):
            x, change = self._transform.read(image)
        report_changes([change], self._transform.decoding)
        x = x[None].to(self._device)
        with torch.inference_mode():
            return dict(likeliest(self._network(cfg_id)(x)[0], self._names, _CLASSES))

    def _open_network(self, cfg_id: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """The network of a stitch; what it lacks of its batch-norm statistics is computed here."""
        calibrate(self._trained, cfg_id)
        return partial(self._model, stitch=cfg_id)

    def _describe(self, cfg_id: int) -> str:
        stitch, row, latency = self._model.space[cfg_id], self._rows[cfg_id], self._latency(cfg_id)
        figures = {
            "cfg_id": str(cfg_id),
            "FLOPs": quantity(row["flops"]),
            "params": quantity(row["params"]),
            f"{self._figure} in the ledger": f"{row[self._metric]:.2f} %",
            "latency in the ledger": _ledger_latency(row),
            "latency here": f"{latency.ms:.2f} ms an image on {self._device}{latency.doubt}",
        }
        listed = "".join(f"<dt>{key}</dt><dd>{escape(text)}</dd>" for key, text in figures.items() if text)
        route = draw_route(stitch, self._depths)
        return f'<p class="stitch">{escape(stitch.name)}</p>{route}<dl class="stitch-figures">{listed}</dl>'


def _ledger_latency(row: Row) -> str | None:
    if "latency_ms" not in row:
        return None
    return f"{row['latency_ms']:.2f} ms" + (" (unreliable)" if unreliable([row]) else "")


def check_page(port: int | None) -> None:
    """Check that Gradio is installed and a port is free, before anything is loaded."""
    optional(*_GRADIO)
    if port is None:
        return
    if not 0 < port < 2**16:
        raise InputError(f"--port is {port}; it must be from 1 to {2**16 - 1}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise InputError(f"port {port} is unavailable: {error.strerror}; choose another --port") from error


def serve(demonstration: Demonstration, *, title: str, port: int | None = None) -> None:
    """Serve the page only to this machine, until Ctrl-C; by default at the first free port from 7860."""
    gradio = optional(*_GRADIO)
    unit, size = unit_of(demonstration.costliest)
    # Rounded up: the slider's minimum must still allow the cheapest stitch.
    least, most = (math.ceil(1e3 * cost / size) / 1e3 for cost in (demonstration.cheapest, demonstration.costliest))

    def run(upload: Mapping[str, Any] | None, budget: float) -> tuple[dict[str, float] | None, str]:
        try:
            return demonstration.run(None if upload is None else upload["path"], budget * size)
        except InputError as error:  # the page shows why
            raise gradio.Error(escape(str(error)), print_exception=False) from error

    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {title}\nThe best stitch within the budget predicts.")
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(label="image", height=320)
                # A slider needs two ends, also where the ledger has one stitch.
                budget = gradio.Slider(
                    least, max(most, least + 0.001), value=most, step=0.001, label=f"budget in {unit}FLOPs"
                )
            with gradio.Column():
                prediction = gradio.Label(label="prediction", num_top_classes=_CLASSES)
                stitch = gradio.HTML(label="stitch")
        # Not with Gradio's preprocessing, which opens images of any size.
        gradio.on(
            [page.load, image.change, budget.change], run, [image, budget], [prediction, stitch],
            api_name="run", preprocess=False, show_progress="hidden", trigger_mode="always_last",
        )  # fmt: skip
    fonts = ["system-ui", "sans-serif"]  # the browser would download gradio's own
    theme = gradio.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    options = {"theme": theme, "css": read_page("serve.css"), "quiet": True, "prevent_thread_lock": True}
    _, address, _ = page.launch(server_name=_HOST, server_port=port, share=False, footer_links=[], **options)
    print(f"the page is {address}; Ctrl-C ends it", flush=True)
    page.block_thread()


def run(flags: argparse.Namespace) -> None:
    """Run `stitchkit serve`."""
    check_page(flags.port)
    device = choose_device(flags.device)
    trained = trained_of(flags)
    check_origin(flags.ledger, trained, otherwise="give the --ledger of this checkpoint")
    trained.model.to(device)
    title = trained.recipe.folder.name
    serve(Demonstration(trained, flags.ledger), title=title, port=flags.port)
