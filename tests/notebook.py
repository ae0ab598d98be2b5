"""Writes docs/tutorial.ipynb from docs/tutorial.md, with the output of its cells.

python -m tests.notebook
"""

import os
import re
import shutil
import tempfile
from pathlib import Path
from unittest.mock import patch

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.launching import REPOSITORY

PAGE, NOTEBOOK = REPOSITORY / "docs" / "tutorial.md", REPOSITORY / "docs" / "tutorial.ipynb"
_LOG_LINE = re.compile(r"^\d\d:\d\d:\d\d .*\n?", flags=re.MULTILINE)


def notebook_of_page() -> NotebookNode:
    """Return the page as a notebook without output: each block of Python is a cell."""
    notebook = jupytext.read(PAGE)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    return notebook


def execute(notebook: NotebookNode, directory: Path) -> None:
    """Run all cells in a copy of the package, so that its runs are not written into the checkout."""
    for folder in ("pico_ds", "configs"):
        shutil.copytree(REPOSITORY / folder, directory / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "docs").mkdir()
    with patch.dict(os.environ, PYTHONPATH=str(directory), WANDB_MODE="offline"):
        NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(directory / "docs")}}).execute()


def printed(cell: NotebookNode) -> str:
    """Return what a cell printed, without log lines."""
    text = "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")
    return _LOG_LINE.sub("", text)


def main() -> None:
    notebook = notebook_of_page()
    with tempfile.TemporaryDirectory() as directory:
        execute(notebook, Path(directory))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=printed(cell))]
            cell.metadata = {}
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
