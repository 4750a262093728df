"""A page that shows all networks of a ledger side by side: drawing, score, cost and accuracy of each."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

from stitchkit.display import quantity
from stitchkit.files import write_text
from stitchkit.measure.ledger import Row

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ margin: 1.5rem; font: 13px/1.4 sans-serif; color: #111; background: white; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.5rem; align-items: start; }}
figure {{ margin: 0; break-inside: avoid; }}
figcaption {{ border-top: 3px solid #4c78a8; padding: .3rem 0; overflow-wrap: anywhere; }}
.parent figcaption {{ border-color: #e45756; }}
img {{ width: 100%; }}
</style>
<h1>{title}</h1>
<main>
{figures}
</main>
</html>
"""


def write_contact_sheet(rows: Sequence[Row], drawings: Sequence[Path], path: Path) -> None:
    """Write the page of the networks of a ledger, which holds their drawings; the parents, which are uncut, in red."""
    count = sum("parents_acc1" in row for row in rows)
    title = f"{count} composed networks and their {len(rows) - count} parents"
    figures = "\n".join(_figure(row, drawing) for row, drawing in zip(rows, drawings, strict=True))
    write_text(path, _PAGE.format(title=title, figures=figures))


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
