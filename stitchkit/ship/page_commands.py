"""The commands that show what a ledger holds: report, serve."""

from __future__ import annotations

from typing import Any

from stitchkit.parser import Commands
from stitchkit.ship.commands import add_trained


def add_commands(commands: Commands) -> None:
    """Add them to the parser."""
    report = commands.add("report", _report, "write ledgers as one page: plot, table, curves of training")
    report.add_argument("ledgers", nargs="+", metavar="LEDGER", help="a stitches_res.txt, ours or a published one")
    report.add_argument("-o", "--output", required=True, metavar="FILE", help="page to write, e.g. report.html")
    report.add_argument("--png", metavar="FILE", help="also draw the plot for a paper, as .png, .svg or .pdf")
    report.add_argument(
        "--stitch_config", "--stitch-config", metavar="JSON",
        help="their stitch configuration; it names the stitches of published ledgers",
    )  # fmt: skip
    report.add_argument("--title", default="", metavar="TEXT", help="stands above the page")

    serve = commands.add("serve", _serve, "try an SN-Net in the browser: an image, a budget, a prediction")
    add_trained(serve, data_for="its classes give their names where the checkpoint knows none")
    serve.add_argument("--ledger", required=True, metavar="FILE", help="what --eval wrote of them")
    serve.add_argument("--port", type=int, metavar="N", help="its port; by default the first free one from 7860")
    serve.add_argument("--device", metavar="DEVICE", help="cpu or cuda; by default cuda where there is one")


def _report(settings: dict[str, Any]) -> None:
    from stitchkit.measure.pareto import check_plot, plot, plot_ledgers
    from stitchkit.ship.report import read_ledgers, write_report

    if settings["png"]:
        check_plot(settings["png"])
    contents = read_ledgers(settings["ledgers"], settings["stitch_config"])
    write_report(settings["output"], contents, title=settings["title"])
    rows = {name: content["rows"] for name, content in contents.items()}
    print(f"{sum(map(len, rows.values()))} stitches are in {settings['output']}; open it in a browser")
    if settings["png"]:
        if len(rows) == 1:
            plot(next(iter(rows.values())), settings["png"], title=settings["title"])
        else:
            plot_ledgers(rows, settings["png"], title=settings["title"])
        print(f"the plot is {settings['png']}")


def _serve(settings: dict[str, Any]) -> None:
    from pathlib import Path

    from stitchkit.distributed import choose_device
    from stitchkit.ship.serve import Demonstration, check_gradio, check_port, create_page, serve
    from stitchkit.ship.trained_snnet import check_origin, open_trained

    port, ledger, place = (settings.pop(key) for key in ("port", "ledger", "device"))
    check_port(port)
    check_gradio()
    device = choose_device(place)
    trained = open_trained({key: value for key, value in settings.items() if value is not None})
    check_origin(ledger, trained)
    trained.model.to(device)
    page = create_page(Demonstration(trained, ledger), title=Path(trained.recipe.model.stitch_config or "").stem)
    serve(page, port=port)
