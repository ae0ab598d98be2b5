"""README and docs/: scripts and launchers parse all commands, Python blocks run, YAML and JSON blocks are valid, and
linked files, configuration keys and named tests exist.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pico_ds.config import RunConfig, load_config, parse_config
from pico_ds.config.deepspeed_config import load_deepspeed_config
from pico_ds.config.legacy_keys import KEPT_KEYS, moved
from pico_ds.config.loading import all_keys
from pico_ds.tasks.sentence_files import read_sentences
from tests.hf_checkpoint import write_checkpoint
from tests.launching import REPOSITORY, environment
from tests.shared_runs import SharedRuns

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.py"))
#: first words of commands that run no script of this project
EXTERNAL_COMMANDS = {"source", "pip", "hf", "cd", "export", "mkdir", "pre-commit"}
EXTERNAL_COMMANDS |= {"ssh", "scancel", "squeue", "xxh128sum"}
_FENCE = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```$", flags=re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def blocks(language: str) -> list[tuple[str, str]]:
    """Page name and content of every block of a language."""
    return [
        (name_of(page), block)
        for page in PAGES
        for found, block in _FENCE.findall(page.read_text())
        if found == language
    ]


def commands(block: str) -> Iterator[str]:
    """The commands of a bash block, without comments, redirections and pipes."""
    for line in block.replace("\\\n", " ").strip().splitlines():
        words = shlex.split(line, comments=True)
        end = next((i for i, word in enumerate(words) if word.startswith((">", "2>", "|"))), len(words))
        if words[:end]:
            yield shlex.join(words[:end])


COMMANDS = [
    pytest.param(command, id=f"{page} {command[:60]}")
    for page, block in blocks("bash")
    for command in commands(block)
    if command.split()[0] not in EXTERNAL_COMMANDS
]


@cache
def module_of(script: Path) -> object:
    # a unique name, because other packages also have a module `tasks`
    name = f"script_of_the_docs_{script.stem}"
    specification = importlib.util.spec_from_file_location(name, script)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # dataclasses look up their module here
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


def arguments_of(script: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """The parsed arguments of a script. The script exits if they are invalid."""
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    # Python puts this directory first; here it is last, because other packages also have a module `tasks`
    monkeypatch.setattr(sys, "path", [*sys.path, str(script.parent)])
    arguments: Namespace = module_of(script).parse_arguments()  # type: ignore[attr-defined]
    return arguments


def check_launcher(words: list[str]) -> None:
    """Fail if the launcher rejects its options."""
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args(words[1:])
    elif words[0] == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        parse_args(words[1:])
    else:
        assert words[0] in {"python", "bash", "sbatch", "srun"}, words


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_accepted_by_its_script_and_launcher(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    position = next((i for i, word in enumerate(words) if word.startswith("scripts/")), None)
    assert position is not None, f"{words[0]} runs no script; if this is right, add it to EXTERNAL_COMMANDS"
    check_launcher(words)
    script = REPOSITORY / words[position]
    if script.suffix != ".py":
        subprocess.run(["bash", "-n", script], check=True)
        return
    arguments = arguments_of(script, words[position + 1 :], monkeypatch)
    if getattr(arguments, "config", None) is not None:
        load_config(REPOSITORY / arguments.config, arguments.overrides)
    if getattr(arguments, "deepspeed_config", None) is not None:
        load_deepspeed_config(REPOSITORY / arguments.deepspeed_config)


def test_docs_contain_commands() -> None:
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_script_has_a_command_in_the_docs(script: Path) -> None:
    name = name_of(script)
    assert any(name in command for _, block in blocks("bash") for command in commands(block)), name


def test_commands_are_only_in_bash_blocks() -> None:
    for page in PAGES:
        for language, block in _FENCE.findall(page.read_text()):
            if language != "bash":
                found = re.search(
                    r"^\s*(python|bash|torchrun|deepspeed|sbatch) .*scripts/.*", block, flags=re.MULTILINE
                )
                assert found is None, f"{page.name}: {found}"


@pytest.mark.parametrize(("page", "block"), blocks("yaml"))
def test_yaml_block_is_a_valid_configuration(page: str, block: str) -> None:
    parse_config(block, name=page)


# tests/end_to_end/test_tutorial.py runs the tutorial
@pytest.mark.parametrize(("page", "code"), [found for found in blocks("python") if found[0] != "docs/tutorial.md"])
def test_python_block_runs(
    page: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_runs: SharedRuns
) -> None:
    monkeypatch.chdir(tmp_path)
    # a block uses names of the earlier blocks of its page
    page_blocks = [block for name, block in blocks("python") if name == page]
    source = "\n".join(page_blocks[: page_blocks.index(code) + 1])
    write_checkpoint(tmp_path / "runs" / "demo-001" / "checkpoints" / "step_800")
    if "runs/anil" in source:
        shutil.copytree(shared_runs["plain"], tmp_path / "runs" / "anil")
    exec(compile(source, page, "exec"), {"__name__": page})


def test_documented_learner_needs_only_a_file_and_a_name(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "pico_ds", tmp_path / "pico_ds", ignore=shutil.ignore_patterns("__pycache__"))
    (code,) = [block for page, block in blocks("python") if page == "docs/learners.md"]
    (tmp_path / "pico_ds" / "meta" / "learners" / "layer_decay.py").write_text(code)
    types = tmp_path / "pico_ds" / "config" / "meta_schema.py"
    names = re.search(r"^LearnerName = Literal\[.*?(?=\])", types.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert names is not None
    types.write_text(types.read_text().replace(names[0], f'{names[0]}, "layer_decay"'))
    check = (
        "from pico_ds.config import ModelConfig, parse_config;"
        "from pico_ds.meta.meta_model_builder import build_meta_model;"
        "from pico_ds.meta.learners import make_learner;"
        "meta = parse_config('meta: {learner: layer_decay, multi_step_loss: true}').meta;"
        "decoder = build_meta_model(ModelConfig(n_layers=3), meta, 5, 300, 0).decoder;"
        "rates = make_learner(meta, decoder).rates({});"
        "print(*[rates[f'decoder.layers.{layer}.swiglu.w_0.weight'] for layer in range(3)], rates['head'])"
    )
    process = subprocess.run(
        [sys.executable, "-c", check],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout == "0.005 0.01 0.02 1.0\n", process.stderr
    check = ["ruff", "check", "--config", str(REPOSITORY / "pyproject.toml"), "-"]
    subprocess.run(check, input=code, text=True, check=True, env=environment())


def test_json_block_is_valid(tmp_path: Path) -> None:
    json_blocks = blocks("json")
    assert json_blocks
    for page, block in json_blocks:
        try:
            records = [json.loads(block)]
        except json.JSONDecodeError:
            records = [json.loads(line) for line in block.splitlines()]
        if page == "docs/tasks.md":
            (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, records)))
            read_sentences(tmp_path / "own.jsonl")


def prose(page: Path) -> str:
    """The text of a page without its code blocks."""
    return _FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(anchor if anchor not in found else f"{anchor}-1")
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_link_targets_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        name, _, anchor = link.partition("#")
        if ":" in name:
            continue
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}: the anchors are {sorted(anchors(target))}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_keys_exist_in_the_schema(page: Path) -> None:
    keys = {*all_keys()}
    sections = "|".join(RunConfig.model_fields)
    for span in re.findall(r"`([^`]+)`", prose(page)):
        # <section>.<key>, with or without a value; `model.safetensors` is not a key
        match = re.match(rf"((?:{sections})(?:\.[a-z_0-9]+)+)(?:=|: |$)", " ".join(span.split()))
        if match is None or match[1].endswith((".safetensors", ".py", ".yaml", ".json")):
            continue
        is_legacy = page.name == "migrating.md" and (match[1] in KEPT_KEYS or moved(match[1]) is not None)
        assert match[1] in keys or is_legacy, f"{span}: no such key"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_tests_exist(page: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?[^`]*`", page.read_text()):
        assert (REPOSITORY / path).exists(), path
        assert not name or f"def {name}(" in (REPOSITORY / path).read_text(), f"{path}::{name}"
