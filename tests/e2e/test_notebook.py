"""The notebook in docs/: it runs as it is, and is committed without its outputs."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import ROOT

TOUR = ROOT / "docs/tour.ipynb"


def test_the_tour_is_committed_without_outputs():
    cells = nbformat.read(TOUR, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.full
@pytest.mark.filterwarnings("default")  # the kernel's client has deprecated code
def test_the_tour_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(TOUR, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
    accuracy = float(said.split(": ")[1].split(" %")[0])
    assert accuracy > 85, said
    assert not [*tmp_path.iterdir()], "it writes only into its temporary folder"
