"""Loads a RunConfig from YAML and command-line overrides, with errors that say how to fix them."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pico_ds.config.legacy_keys import advice_for
from pico_ds.config.schema import RunConfig
from pico_ds.config.validation import check_combinations
from pico_ds.config.yaml_parsing import dump_yaml, parse_yaml
from pico_ds.errors import ConfigError

#: limit for a configuration file
_MAX_BYTES = 2**20
#: limit for a value in a message [characters]
_MAX_VALUE_LENGTH = 200
#: parts that pydantic appends to the path of a key with several types
_TYPE_TAG = re.compile(r"^(int|float|str|none)$|^literal\[|^list\[|^constrained-")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML configuration and apply `section.key=value` overrides.

    Raises:
        ConfigError: a file that cannot be read, a duplicate, unknown, moved or mistyped key, a value out of range,
            or a combination of values that cannot work. The message lists all problems.
    """
    return parse_config(read_text(Path(path)), overrides, name=str(path))


def read_text(path: Path) -> str:
    """Return the text of a configuration file.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8, or is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ConfigError(f"{path} has more than {_MAX_BYTES // 2**20} MiB, which is too large for a configuration")
        return content.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}") from error


def parse_config(text: str, overrides: Sequence[str] = (), name: str = "<text>") -> RunConfig:
    """Like `load_config`, for a YAML text. Messages call the text `name`."""
    tree = parse_yaml(text, name, RunConfig)
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{name} must be a mapping of sections ({_listed(RunConfig.model_fields)}), got {_shortened(tree)}"
        )
    for override in overrides:
        _apply_override(tree, override)
    problems = [*_unknown_keys(tree, RunConfig, ())]
    if problems:
        raise ConfigError(_joined(name, problems))
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_joined(name, [*_explain(error.errors())])) from None
    problems = [*check_combinations(config)]
    if problems:
        raise ConfigError(_joined(name, problems))
    return config


def dump_config(config: RunConfig) -> str:
    """Return the complete configuration as YAML, which `parse_config` reads as an equal configuration."""
    return dump_yaml(config.model_dump())


def _apply_override(tree: dict[str, Any], override: str) -> None:
    shown = _shortened(override)
    dotted, equals, value = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"override {shown} must have the form section.key=value, e.g. training.max_steps=20")
    # YAML treats text after # as a comment
    if not value.strip() or value.lstrip().startswith("#"):
        raise ConfigError(f"override {shown} has no value; use {dotted}=null for no value, or quote the value")
    *sections, key = dotted.split(".")
    branch = tree
    for section in sections:
        child = branch.get(section)
        if child is None:
            child = branch[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {shown}: {section!r} is a value, not a section")
        branch = child
    branch[key] = parse_yaml(value, f"override {shown}", _declared_type(sections, key))


def _declared_type(sections: Sequence[str], key: str) -> Any:
    """Return the type that the schema declares for a key, or None if the key does not exist."""
    section: Any = RunConfig
    for name in (*sections, key):
        fields = getattr(section, "model_fields", {})
        if name not in fields:
            return None
        section = fields[name].annotation
    return section


def _unknown_keys(tree: Mapping[Any, Any], section: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    for key, value in tree.items():
        dotted = ".".join((*path, str(key)))
        field = section.model_fields.get(key)
        if field is None:
            yield from _explain_unknown(dotted, value, section)
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            if not isinstance(value, Mapping):
                keys = _listed(field.annotation.model_fields)
                yield f"{dotted}: got {_shortened(value)}, expected a section with the keys {keys}"
            else:
                yield from _unknown_keys(value, field.annotation, (*path, key))


def _explain_unknown(dotted: str, value: Any, section: type[BaseModel]) -> Iterator[str]:
    leaves = [*_leaves(value, dotted)]
    advices = [(leaf, advice_for(leaf)) for leaf in leaves]
    if any(advice for _, advice in advices):
        for leaf, advice in advices:
            yield f"{leaf}: this key is from pico-train or pico-maml: {advice}" if advice else _suggest(leaf, section)
    else:
        yield _suggest(dotted, section)


def _leaves(value: Any, dotted: str) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _leaves(child, f"{dotted}.{key}")
    else:
        yield dotted


def _suggest(dotted: str, section: type[BaseModel]) -> str:
    *parents, key = dotted.split(".")
    prefix = ".".join(parents) + "." if parents else ""
    every = [*all_keys()]
    near = get_close_matches(key, section.model_fields, n=1, cutoff=0.6)
    candidates = [
        *(name for name in every if name.rsplit(".", 1)[-1] == key),
        *(prefix + name for name in near),
        *get_close_matches(dotted, every, n=1, cutoff=0.5),
    ]
    suggestion = next(iter(candidates), None)
    hint = f"did you mean {suggestion}?" if suggestion else f"keys allowed here: {_listed(section.model_fields)}"
    return f"{dotted}: unknown key; {hint}"


def all_keys(section: type[BaseModel] = RunConfig, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield every dotted key, including sections, in the order of the schema."""
    for key, field in section.model_fields.items():
        yield ".".join((*path, key))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from all_keys(field.annotation, (*path, key))


def _explain(details: Sequence[ErrorDetails]) -> Iterator[str]:
    """Yield one message per key. Pydantic reports a key with several types once per type."""
    by_key: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for detail in details:
        path = tuple(part for part in detail["loc"] if isinstance(part, int) or not _TYPE_TAG.search(part))
        by_key.setdefault(path, []).append(detail)
    for path, found in by_key.items():
        messages = [detail["msg"][0].lower() + detail["msg"][1:] for detail in found]
        meaning = _meaning([part for part in path if isinstance(part, str)])
        text = (
            f"{'.'.join(map(str, path))}: got {_shortened(found[0]['input'])}; {'; or: '.join(dict.fromkeys(messages))}"
        )
        yield text + _suggest_value(found) + (f" ({meaning})" if meaning else "")


def _suggest_value(details: Sequence[ErrorDetails]) -> str:
    value = details[0]["input"]
    choices = [
        choice for detail in details for choice in re.findall(r"'(.*?)'", detail.get("ctx", {}).get("expected", ""))
    ]
    near = get_close_matches(value, choices, n=1, cutoff=0.6) if isinstance(value, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def _meaning(names: Sequence[str]) -> str | None:
    section: type[BaseModel] = RunConfig
    meaning = None
    for name in names:
        field = section.model_fields.get(name)
        if field is None:
            break
        meaning = field.description
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            section = field.annotation
    return " ".join(meaning.split()) if meaning else None


def _shortened(value: Any) -> str:
    """Return the repr of a value, shortened for a terminal."""
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[:_MAX_VALUE_LENGTH]} ..."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _joined(name: str, problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return f"{name}: {problems[0]}"
    return f"{name}: {len(problems)} problems\n" + "\n".join(f"  - {problem}" for problem in problems)
