"""docs/configuration.md, made from the schema."""

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from pico_ds.config.schema import RunConfig

#: what renews the page; its test says so
COMMAND = "python scripts/config_reference.py > docs/configuration.md"

_HEAD = f"""# Configuration

Every key of a configuration, with what it may be, its default and its meaning; units stand in brackets. The page is
made from `pico_ds/config/`, a test holds it to that, and this renews it:

```bash
{COMMAND}
```

A run is a YAML file (`--config`; `configs/` has some) with these sections, all of which may be left out. On the command
line any key can be overridden as `section.key=value`, where the value is YAML:

```bash
python scripts/train.py --config configs/demo.yaml --dry-run training.max_steps=20 'smlmt.n_way=[2, 10]'
```

An unknown key, a key that stands twice, a value of another type or out of range, and values that cannot go together are
errors, all of which are named at once. `--dry-run` prints the whole resolved configuration; a run keeps it as
`training_config.yaml`. What is DeepSpeed's own (the ZeRO stage, offload, buckets) is in the JSON given by
`--deepspeed_config` (`ds_configs/`). Keys of pico-train and pico-maml are in [migrating.md](migrating.md).
"""


def reference() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_sections(RunConfig, "")])


def _sections(section: type[BaseModel], path: str) -> Iterator[str]:
    properties = section.model_json_schema()["properties"]
    rows = []
    below: list[tuple[type[BaseModel], str]] = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            below.append((field.annotation, f"{path}.{name}" if path else name))
        else:
            cells = (f"`{name}`", _values(properties[name]), f"`{_default(field.default)}`", field.description or "")
            rows.append(f"| {' | '.join((*cells[:3], _prose(cells[3])))} |")
    if rows:
        yield f"## {path}\n\n{_prose(section.__doc__ or '')}\n"
        yield "\n".join(["| key | values | default | meaning |", "|---|---|---|---|", *rows]) + "\n"
    for child, child_path in below:
        yield from _sections(child, child_path)


def _default(value: Any) -> str:
    """As YAML writes it."""
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")


def _values(schema: dict[str, Any]) -> str:
    """What a JSON schema allows, in words."""
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
    """Of a docstring: on one line, with what Markdown would take for its own escaped outside of code."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [re.sub(r"([<*|])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)
