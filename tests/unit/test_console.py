"""Consoles print a user's text unchanged."""

import io
import re
from pathlib import Path

from rich.console import Group
from rich.table import Table

from pico_ds.console import make_console

REPOSITORY = Path(__file__).resolve().parents[2]
#: markup, a closing tag without an opening tag, and an emoji code
TEXT = "[kqv]_proj runs[/x] :key:"


def test_brackets_and_colons_are_printed_unchanged() -> None:
    table = Table(TEXT, title=TEXT, caption=TEXT)
    table.add_row(TEXT)
    file = io.StringIO()
    make_console(file=file, width=120).print(TEXT, table, Group(TEXT))
    assert file.getvalue().count(TEXT) == 6


def test_every_console_is_created_by_make_console() -> None:
    sources = [*(REPOSITORY / "pico_ds").rglob("*.py"), *(REPOSITORY / "scripts").glob("*.py")]
    found = [path.name for path in sources if re.search(r"(?<![\w.])Console\(", path.read_text())]
    assert found == ["console.py"]
