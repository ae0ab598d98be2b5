"""Checks that all ranks run the same versions, code and configuration.

Training also runs these checks every time it starts.
"""

import json
import platform
import socket
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pico_ds.config import ConfigError, RunConfig
from pico_ds.data.keyed_random import digest64
from pico_ds.engine.distributed import Process
from pico_ds.preflight.check_results import Finding, format_ranks
from pico_ds.version import __version__

#: directory of the pico_ds package
_SOURCES = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "deepspeed", "transformers")
_CODE, _CONFIG = "code of pico_ds", "configuration"
#: maximum number of differing keys that one message lists
_MAX_LISTED_KEYS = 5


def check_agreement(config: RunConfig, deepspeed_json: Mapping[str, Any], process: Process) -> None:
    """Fail if versions, code or configuration differ between ranks. Every rank must call this; it takes milliseconds.

    Raises:
        ConfigError: the ranks differ. Every rank raises the error.
    """
    problems = [problem for finding in compare_ranks(config, deepspeed_json, process) for problem in finding.problems]
    if problems:
        raise ConfigError("; ".join(problems))


def compare_ranks(config: RunConfig, deepspeed_json: Mapping[str, Any], process: Process) -> list[Finding]:
    """Return one finding each for the versions, the code and the configuration. Every rank must call this."""
    settings = {**config.model_dump(), "deepspeed_config": dict(deepspeed_json)}
    local_facts = {**versions(), _CODE: source_digest(), _CONFIG: _digest(json.dumps(settings, sort_keys=True))}
    texts = process.gather_texts(json.dumps([socket.gethostname(), local_facts]))
    hosts, facts = zip(*map(json.loads, texts), strict=True)
    return [
        Finding(
            "versions",
            ", ".join(f"{name} {local_facts[name]}" for name in versions()),
            _differing_ranks(facts, hosts, [*versions()]),
        ),
        Finding(_CODE, f"{local_facts[_CODE]} (hash of its sources)", _differing_ranks(facts, hosts, [_CODE])),
        Finding(_CONFIG, f"{local_facts[_CONFIG]} (hash, resolved)", _differing_keys(facts, hosts, settings, process)),
    ]


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of the packages that affect the result of a run."""
    return {
        "python": platform.python_version(),
        "pico_ds": __version__,
        **{name: version(name) for name in _PACKAGES},
    }


def source_digest() -> str:
    """Return a hash of the Python sources that this process runs, as 16 hexadecimal digits."""
    files = sorted(_SOURCES.rglob("*.py"))
    parts = (part for file in files for part in (str(file.relative_to(_SOURCES)), file.read_bytes()))
    return f"{digest64(*parts):016x}"


def _digest(text: str) -> str:
    return f"{digest64(text):016x}"


def _differing_ranks(facts: tuple[dict[str, str], ...], hosts: tuple[str, ...], names: list[str]) -> tuple[str, ...]:
    problems = []
    for name in names:
        values: dict[str, list[str]] = {}
        for rank, fact in enumerate(facts):
            values.setdefault(fact[name], []).append(f"{rank} ({hosts[rank]})")
        if len(values) > 1:
            shown = ", ".join(f"{value} on rank {format_ranks(ranks)}" for value, ranks in values.items())
            advice = "check out the same commit" if name == _CODE else "install the same version"
            problems.append(f"{name}: {shown}; {advice} on all nodes, or start from a shared directory")
    return tuple(problems)


def _differing_keys(
    facts: tuple[dict[str, str], ...], hosts: tuple[str, ...], settings: Mapping[str, Any], process: Process
) -> tuple[str, ...]:
    """Describe the configuration keys that differ from rank 0.

    The ranks exchange their full configurations only if the hashes differ, because a configuration is long.
    """
    digests = [fact[_CONFIG] for fact in facts]
    if len(set(digests)) == 1:
        return ()
    configs = [json.loads(text) for text in process.gather_texts(json.dumps(settings))]
    problems = []
    for rank, config in enumerate(configs):
        if digests[rank] not in digests[:rank] and digests[rank] != digests[0]:
            keys = [*_differences(configs[0], config)]
            more = f" and {len(keys) - _MAX_LISTED_KEYS} more" if len(keys) > _MAX_LISTED_KEYS else ""
            problems.append(
                f"configuration: rank {rank} ({hosts[rank]}) differs from rank 0 ({hosts[0]}): "
                f"{'; '.join(keys[:_MAX_LISTED_KEYS])}{more}; start every node with the same command and the same files"
            )
    return tuple(problems)


def _differences(first: Any, other: Any, path: str = "") -> Iterator[str]:
    if isinstance(first, Mapping) and isinstance(other, Mapping):
        for key in sorted({*first, *other}):
            yield from _differences(first.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif first != other:
        yield f"{path} is {other!r}, not {first!r}"
