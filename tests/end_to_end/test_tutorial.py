"""The tutorial as a page and as a notebook."""

import re
from pathlib import Path

import nbformat
import pytest

from tests.notebook import NOTEBOOK, execute, notebook_of_page, printed


def test_notebook_has_the_cells_of_the_page() -> None:
    notebook, page = nbformat.read(NOTEBOOK, as_version=4), notebook_of_page()
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in page.cells], (
        "run python -m tests.notebook"
    )
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_tutorial_trains_above_chance_and_resumes(tmp_path: Path) -> None:
    # costs 160 CPU seconds, or twice as much while other tests run: a Jupyter kernel trains the demo for 120 steps
    notebook = notebook_of_page()
    execute(notebook, tmp_path)
    text = "\n".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")
    assert "trained for 100 steps" in text
    assert "trained for 120 steps" in text
    match = re.search(r"([\d.]+) ± ([\d.]+) % before adaptation", text)
    assert match is not None
    accuracy, half_width = map(float, match.groups())
    assert accuracy - 2 * half_width > 20
    assert "step 100: norm" in text
