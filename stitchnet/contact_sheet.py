"""A page that shows all networks of a ledger side by side: drawing, score, cost and accuracy of each."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

from stitchkit.display import counted, quantity
from stitchkit.measure.figure import BLUE, RED
from stitchkit.measure.ledger import Row
from stitchkit.ship.write_page import write_page


def write_contact_sheet(rows: Sequence[Row], drawings: Sequence[Path], path: Path) -> None:
    """Write the page of the networks of a ledger, which holds their drawings; the parents, which are uncut, in red."""
    count = sum("parents_acc1" in row for row in rows)
    title = f"{counted(count, 'composed network')} and {counted(len(rows) - count, 'parent')}"
    figures = "\n".join(_figure(row, drawing) for row, drawing in zip(rows, drawings, strict=True))
    write_page(path, "networks.html", {"title": title, "figures": figures, "composed": BLUE, "parent": RED})


def _figure(row: Row, drawing: Path) -> str:
    parents = f" (parents {row['parents_acc1']:.2f} %)" if "parents_acc1" in row else ""
    about = (
        f"{row['acc1']:.2f} %{parents}, score {row['score']:.3f}<br>"
        f"{quantity(row['flops'])} MACs, {quantity(row['params'])} parameters"
    )
    # As an image, because no script in it runs then: a folder may come from somebody else.
    source = f"data:image/svg+xml;base64,{b64encode(drawing.read_bytes()).decode()}"
    name = escape(row["stitch"])
    return (
        f"<figure{'' if parents else ' class=parent'}><figcaption><b>{row['cfg_id']}: {name}</b><br>{about}"
        f'</figcaption><img src="{source}" alt="{name}"></figure>'
    )
