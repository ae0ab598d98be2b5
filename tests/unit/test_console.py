"""A user's text is printed as it is."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Group
from rich.table import Table

from pico_ds.console import make_console

REPOSITORY = Path(__file__).resolve().parents[2]
#: markup, the end of markup that never began, and an emoji code
TEXT = "[kqv]_proj runs[/x] :key:"


def test_brackets_and_colons_are_printed_wherever_they_stand() -> None:
    table = Table(TEXT, title=TEXT, caption=TEXT)
    table.add_row(TEXT)
    file = io.StringIO()
    make_console(file=file, width=120).print(TEXT, table, Group(TEXT))
    assert file.getvalue().count(TEXT) == 6


def test_every_console_is_made_by_one_function() -> None:
    sources = [*(REPOSITORY / "pico_ds").rglob("*.py"), *(REPOSITORY / "scripts").glob("*.py")]
    found = [path.name for path in sources if re.search(r"(?<![\w.])Console\(", path.read_text())]
    assert found == ["console.py"]


@pytest.mark.parametrize("lost", ["pipe", "disk"])
def test_output_that_cannot_be_written_is_dropped(lost: str, tmp_path: Path) -> None:
    """The reader of a pipe has gone, or the disk below a redirected output is full."""
    code = (
        "import sys; from pico_ds.console import make_console, survive_lost_output; survive_lost_output(); "
        "print('x' * 100_000); make_console().print('y'); print('z', file=sys.stderr); open(sys.argv[1], 'w').close()"
    )
    if lost == "pipe":
        reading, output = os.pipe()
        os.close(reading)
    else:
        output = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "end")], stdout=output, stderr=output)
    os.close(output)
    assert done.returncode == 0
    assert (tmp_path / "end").exists()
