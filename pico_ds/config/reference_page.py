"""The keys of the configuration, from the schema: as docs/configuration.md, and as text for a terminal."""

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from pico_ds.config.schema import RunConfig
from pico_ds.errors import ConfigError

#: command that updates the page; the test of the page prints it
COMMAND = "python scripts/config_reference.py > docs/configuration.md"

_HEAD = f"""# Configuration

Every key of the configuration, with its allowed values, default and meaning. Units are in brackets. This page is
generated from the schema in `pico_ds/config/`, and a test fails if it is out of date. To generate it:

```bash
{COMMAND}
```

A run is described by a YAML file (`--config`; examples are in `configs/`) with the sections below, all of which are
optional. Override any key on the command line with `section.key=value`; the value is YAML. `--help-keys` prints this
list in the terminal.

```bash
python scripts/train.py --config configs/demo.yaml --dry-run training.max_steps=20 'smlmt.n_way=[2, 10]'
```

Unknown keys, duplicate keys, wrong types, values out of range and conflicting values are errors, which are all
reported together. `--dry-run` prints the complete configuration, and a run saves it as `training_config.yaml`.
DeepSpeed's settings (ZeRO stage, offload, buckets) are in the JSON file of `--deepspeed_config` (`ds_configs/`).
[migrating.md](migrating.md) lists the keys of pico-train and pico-maml.
"""


@dataclass(frozen=True)
class Key:
    """One key of the configuration. `values` and `default` are in words."""

    path: str
    values: str
    default: str
    meaning: str


def reference() -> str:
    """Return the whole page."""
    parts = [_HEAD]
    for path, meaning, keys in _sections(RunConfig, ""):
        rows = [
            f"| `{key.path.rpartition('.')[2]}` | {key.values} | `{key.default}` | {_prose(key.meaning)} |"
            for key in keys
        ]
        parts += [
            f"## {path}\n\n{_prose(meaning)}\n",
            "\n".join(["| key | values | default | meaning |", "|---|---|---|---|", *rows]) + "\n",
        ]
    return "\n".join(parts)


def key_help(section: str = "") -> str:
    """Return the keys of a section, or of all sections, as text for a terminal.

    Raises:
        ConfigError: there is no such section.
    """
    found = [part for part in _sections(RunConfig, "") if not section or f"{part[0]}.".startswith(f"{section}.")]
    if not found:
        names = ", ".join(path for path, _, _ in _sections(RunConfig, ""))
        raise ConfigError(f"--help-keys: {section!r} is not a section of the configuration; the sections are {names}")
    lines = []
    for path, meaning, keys in found:
        lines += [f"{path}: {' '.join(meaning.split())}", ""]
        for key in keys:
            values = key.values.replace("`", "")
            lines.append(f"  {key.path}  [{values}; default {key.default}]")
            lines += textwrap.wrap(key.meaning.replace("`", ""), 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append("")
    return "\n".join(lines)


def _sections(section: type[BaseModel], path: str) -> Iterator[tuple[str, str, list[Key]]]:
    """Yield the path, meaning and keys of each section that has keys."""
    properties = section.model_json_schema()["properties"]
    keys, below = [], []
    for name, field in section.model_fields.items():
        key_path = f"{path}.{name}" if path else name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            below.append((field.annotation, key_path))
        else:
            keys.append(Key(key_path, _values(properties[name]), _default(field.default), field.description or ""))
    if keys:
        yield path, section.__doc__ or "", keys
    for child, child_path in below:
        yield from _sections(child, child_path)


def _default(value: Any) -> str:
    """Return a default value as YAML writes it."""
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")


def _values(schema: dict[str, Any]) -> str:
    """Return in words what a JSON schema allows."""
    if "anyOf" in schema:
        return " or ".join(map(_values, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema["type"]
    if kind == "array":
        number = (
            f"{schema['minItems']} " if "minItems" in schema and schema["minItems"] == schema.get("maxItems") else ""
        )
        items = re.sub("^(integer|number|string)", r"\1s", _values(schema["items"]))
        return f"list of {number}{items}"
    if kind == "null":
        return "`null`"
    limits = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "to"}
    return " ".join([kind, *(f"{word} {_number(schema[limit])}" for limit, word in limits.items() if limit in schema)])


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def _prose(text: str) -> str:
    """Return a docstring on one line, with Markdown characters escaped outside of code."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [re.sub(r"([<*|])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)
