"""YAML as configurations use it: the core schema of YAML 1.2, where a scalar becomes what its key declares.

PyYAML reads YAML 1.1, in which `off` is a boolean, `010` is 8, `1:30` is 90, and `1e5` is text. YAML 1.2 (chapter 10.3)
has none of these.
"""

import re
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from pico_ds.config.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
#: may be grouped, as in Python
_DIGITS = "[0-9]+(?:_[0-9]+)*"
#: tag -> what it looks like, and the characters that it may begin with; tried in this order
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (rf"[-+]?{_DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        rf"[-+]?(?:\.[0-9]+|{_DIGITS}(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}


class _StrictLoader(yaml.SafeLoader):
    """Refuses duplicate keys."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str | int | float | bool | None):
                raise ConfigError(
                    f"the key at line {line} of {key_node.start_mark.name} is {key!r}; keys are plain names"
                )
            if key in seen:
                raise ConfigError(
                    f"key {key!r} stands twice, at line {seen[key]} and at line {line} of {key_node.start_mark.name}; "
                    "keep one of them"
                )
            seen[key] = line
        return super().construct_mapping(node, deep)


def _integer(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base) if base == 10 else int(text[2:], base)


def _float(text: str) -> float:
    # Python writes infinity and NaN without the dot
    return float(re.sub(r"\.(?=[iInN])", "", text))


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something else than text."""


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_StrictLoader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)
_StrictLoader.add_constructor(f"{_TAG}int", lambda _, node: _integer(node.value))
_StrictLoader.add_constructor(f"{_TAG}float", lambda _, node: _float(node.value))


def parse_yaml(text: str, name: str, declared: Any = None) -> Any:
    """The content of a YAML text.

    Args:
        name: of the text, for messages.
        declared: type of the content, such as a section of the configuration. A number is text where text is declared,
            and a whole number in any notation is an integer where an integer is declared.

    Raises:
        ConfigError: a text that is not YAML, or a key that stands twice.
    """
    loader = _StrictLoader(text)
    loader.name = name
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _declare(node, declared)
        return loader.construct_document(node)
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name} is not valid YAML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply") from None
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


def dump_yaml(content: Any) -> str:
    """A YAML text that `parse_yaml` reads as the same content."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _declare(node: yaml.Node, declared: Any) -> None:
    """Make numbers in a node what its declared type wants them to be."""
    if isinstance(node, yaml.MappingNode) and isinstance(declared, type) and issubclass(declared, BaseModel):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and (field := declared.model_fields.get(key.value)) is not None:
                _declare(value, field.annotation)
        return
    types = [*_alternatives(declared)]
    if isinstance(node, yaml.SequenceNode):
        for element in node.value:
            for kind in types:
                if get_origin(kind) is list:
                    _declare(element, get_args(kind)[0])
    elif isinstance(node, yaml.ScalarNode) and node.tag in (f"{_TAG}int", f"{_TAG}float"):
        if str in types and not {int, float} & {*types}:
            node.tag = f"{_TAG}str"
        elif node.tag == f"{_TAG}float" and int in types and float not in types:
            number = _float(node.value)
            if number.is_integer():
                node.tag, node.value = f"{_TAG}int", str(int(number))


def _alternatives(declared: Any) -> list[Any]:
    """The types that a declared type is a union of, without their constraints."""
    origin = get_origin(declared)
    if origin is Annotated:
        return _alternatives(get_args(declared)[0])
    if origin in (Union, UnionType):
        return [kind for part in get_args(declared) for kind in _alternatives(part)]
    return [] if declared in (None, NoneType) else [declared]
