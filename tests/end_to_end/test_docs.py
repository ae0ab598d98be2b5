"""Commands, code and data of docs/: commands are parsed by their own script, Python is run, JSON is read."""

import importlib.util
import json
import re
import shlex
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from pico_ds.config import load_config
from pico_ds.meta.learners import LEARNERS
from pico_ds.tasks.sentences import read_sentences
from tests.hf_checkpoint import write_checkpoint
from tests.launching import REPOSITORY

PAGES = sorted((REPOSITORY / "docs").glob("*.md"))


def blocks(language: str) -> list[tuple[str, str]]:
    """Name of the page and content of every block."""
    pattern = rf"^```{language}\n(.*?)^```$"
    return [
        (page.name, block)
        for page in PAGES
        for block in re.findall(pattern, page.read_text(), flags=re.DOTALL | re.MULTILINE)
    ]


COMMANDS = [
    pytest.param(line, id=f"{page} {line[:60]}")
    for page, block in blocks("bash")
    for line in block.strip().splitlines()
    if "scripts/" in line
]


def arguments_of(script: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """What the script makes of its arguments; it exits where it cannot."""
    specification = importlib.util.spec_from_file_location(script.stem, script)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, script.stem, module)
    specification.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    return module.parse_arguments()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_docs_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command, comments=True)
    at = next(i for i, word in enumerate(words) if word.startswith("scripts/"))
    arguments = arguments_of(REPOSITORY / words[at], words[at + 1 :], monkeypatch)
    if getattr(arguments, "config", None) is not None:
        load_config(REPOSITORY / arguments.config, arguments.overrides)


def test_there_are_commands_in_the_docs() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_python_of_the_docs_runs(page: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(LEARNERS)
    monkeypatch.chdir(tmp_path)
    # blocks of a page build on one another
    above = [block for name, block in blocks("python") if name == page]
    source = "\n".join(above[: above.index(code) + 1])
    if page == "learners.md":
        source = "from pico_ds.meta.learners import LEARNERS\n" + source
    write_checkpoint(tmp_path / "runs" / "demo-001" / "checkpoints" / "step_800")
    try:
        exec(compile(source, page, "exec"), {"__name__": page})
    finally:
        LEARNERS.clear()
        LEARNERS.update(known)


def test_json_of_the_docs_is_valid(tmp_path: Path) -> None:
    found = blocks("json")
    assert found
    for page, block in found:
        (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(json.loads(line)) for line in block.splitlines()))
        if page == "tasks.md":
            read_sentences(tmp_path / "own.jsonl")


def test_links_of_the_docs_lead_somewhere() -> None:
    for page in PAGES:
        for name in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / name).exists(), f"{page.name}: {name}"
