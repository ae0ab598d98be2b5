"""Messages that docs/troubleshooting.md quotes exist in the source code."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
#: the section with messages of other programs, and their messages in other sections
OTHER_PROGRAMS_SECTION = "torchrun, NCCL, DeepSpeed and others"
OTHER_MESSAGES = ("torch.OutOfMemoryError: CUDA out of memory", "DefaultCPUAllocator: can't allocate memory")
#: placeholder of a value, in the page and in `text_of`
VALUE = re.compile(r"<[^>]*>")


def quoted(section: str) -> list[str]:
    return re.findall(r"^> `(.*)`$", section, flags=re.MULTILINE)


SECTIONS = {part.split("\n", 1)[0]: part for part in PAGE.split("\n## ")[1:]}
MESSAGES = [
    message
    for name, section in SECTIONS.items()
    if name != OTHER_PROGRAMS_SECTION
    for message in quoted(section)
    if message not in OTHER_MESSAGES
]


def text_of(node: ast.expr) -> str:
    """Return the text of a string expression, with <> for each value."""
    if isinstance(node, ast.Constant):
        # %s, %d, %.3e are placeholders of logging
        return re.sub(r"%[\d.]*[sdeg]", "<>", node.value) if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    return "<>"


@cache
def sources() -> tuple[str, ...]:
    """Return all strings of the source code with more than 10 characters."""
    files = [*(REPOSITORY / "pico_ds").rglob("*.py"), *(REPOSITORY / "scripts").rglob("*.py")]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    return tuple(text for node in nodes if isinstance(node, ast.expr) if len(text := text_of(node)) > 10)


@pytest.mark.parametrize("message", MESSAGES)
def test_quoted_message_is_in_the_source_code(message: str) -> None:
    parts = VALUE.split(message)
    assert max(map(len, parts)) > 8, "the quote is too short to identify the message"
    pattern = re.compile(".*".join(map(re.escape, parts)), flags=re.DOTALL)
    assert any(pattern.search(source) for source in sources()), (
        "the source code no longer has this message; correct the page"
    )


def test_every_message_has_an_explanation() -> None:
    assert len(MESSAGES) > 50
    assert len(quoted(SECTIONS[OTHER_PROGRAMS_SECTION])) > 10
    assert len(set(quoted(PAGE))) == len(quoted(PAGE))
    for section in SECTIONS.values():
        for message, explanation in re.findall(r"^> `(.*)`\n\n(.*)$", section, flags=re.MULTILINE):
            assert re.match("[^>#]", explanation), message


def test_missing_message_is_detected() -> None:
    assert not any("the flux capacitor is empty" in source for source in sources())
    assert any("a checkpoint could not be saved" in source for source in sources())
