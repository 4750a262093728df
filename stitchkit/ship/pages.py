"""The commands that show what a ledger holds: report, serve."""

from __future__ import annotations

from typing import Any

from stitchkit.parser import Commands


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


def _report(settings: dict[str, Any]) -> None:
    from stitchkit.measure.pareto import plot, plot_ledgers
    from stitchkit.ship.report import read_ledgers, write_report

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
