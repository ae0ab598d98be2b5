"""How scripts report errors and exit."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pico_ds.command_line import exit_code_of, report_once_per_node
from pico_ds.config import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)


def test_error_prints_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def fails() -> int:
        raise ConfigError("model.d_model: got 7, write 8")

    def reads() -> int:
        return len((tmp_path / "none").read_text())

    assert exit_code_of(fails) == 1
    assert capsys.readouterr().err == "error: model.d_model: got 7, write 8\n"
    assert exit_code_of(reads) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/none: No such file or directory; check the path and its file system, and run the command "
        "again\n"
    )


def test_bug_keeps_its_traceback() -> None:
    def fails() -> int:
        raise AssertionError("a bug")

    with pytest.raises(AssertionError):
        exit_code_of(fails)


def test_interrupt_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert exit_code_of(interrupted) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_every_script_uses_exit_code_of() -> None:
    for script in (REPOSITORY / "scripts").glob("*.py"):
        assert "sys.exit(exit_code_of(main))" in script.read_text(), script.name


@pytest.mark.parametrize("target", ["closed pipe", "full disk"])
def test_output_that_cannot_be_written_is_dropped(target: str, tmp_path: Path) -> None:
    """The reader of a pipe has exited, or the disk of redirected output is full."""
    code = (
        "import sys; from pico_ds.console import make_console; from pico_ds.command_line import exit_code_of; "
        "exit_code_of(lambda: (print('x' * 100_000), make_console().print('y'), print('z', file=sys.stderr))); "
        "open(sys.argv[1], 'w').close()"
    )
    if target == "closed pipe":
        reading, output = os.pipe()
        os.close(reading)
    else:
        output = os.open("/dev/full", os.O_WRONLY)
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "end")], stdout=output, stderr=output)
    os.close(output)
    assert result.returncode == 0
    assert (tmp_path / "end").exists()


@pytest.mark.parametrize(("local_rank", "waits"), [(None, []), ("0", []), ("1", [10.0])])
def test_only_the_first_rank_of_a_node_reports_a_common_error_at_once(
    local_rank: str | None, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("pico_ds.command_line.time.sleep", waited.append)
    if local_rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(ConfigError, match="unknown key"), report_once_per_node():
        raise ConfigError("unknown key")
    assert waited == waits
