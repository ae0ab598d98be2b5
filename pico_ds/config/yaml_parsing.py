"""Reads and writes configurations in YAML 1.2 (core schema), converting each scalar to the type of its key.

PyYAML reads YAML 1.1, in which `off` is a boolean, `010` is 8, `1:30` is 90, and `1e5` is text. YAML 1.2 (chapter 10.3)
has none of these.
"""

import re
from copy import copy
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from pico_ds.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_MAX_INTEGER_LENGTH = 40
_MAX_DEPTH = 200
#: limit for a configuration, with aliases expanded
_MAX_VALUES = 100_000
#: digits may be grouped with underscores, as in Python
_DIGITS = "[0-9]+(?:_[0-9]+)*"
#: tag -> pattern, and the possible first characters; tried in this order
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (rf"[-+]?{_DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        rf"[-+]?(?:\.[0-9]+|{_DIGITS}(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


class _UniqueKeys(yaml.SafeLoader):
    """A YAML loader that fails for duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str | int | float | bool | None):
                raise ConfigError(
                    f"the key at line {line} of {key_node.start_mark.name} is {key!r}; keys must be plain names"
                )
            if key in seen:
                raise ConfigError(
                    f"key {key!r} appears twice, at line {seen[key]} and at line {line} of {key_node.start_mark.name}; "
                    "keep one of them"
                )
            seen[key] = line
        return super().construct_mapping(node, deep)


class _Yaml12Loader(_UniqueKeys):
    """Loads YAML 1.2."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]


class _Yaml11Loader(_UniqueKeys):
    """Loads YAML 1.1, for files of pico-train and pico-maml, except that a date is text and `3e-4` is a number."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {  # type: ignore[misc]
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _integer(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base) if base == 10 else int(text[2:], base)


def _float(text: str) -> float:
    # Python writes infinity and NaN without the dot
    return float(re.sub(r"\.(?=[iInN])", "", text))


def _short_integer(loader: yaml.SafeLoader, node: Any) -> str:
    text = str(loader.construct_scalar(node))
    if len(text) > _MAX_INTEGER_LENGTH:
        raise ConfigError(
            f"{node.start_mark.name}: the integer at line {node.start_mark.line + 1} has {len(text)} characters; the "
            f"limit is {_MAX_INTEGER_LENGTH}"
        )
    return text


def _construct_integer(loader: yaml.SafeLoader, node: Any) -> int:
    return _integer(_short_integer(loader, node))


def _construct_yaml_11_integer(loader: yaml.SafeLoader, node: Any) -> Any:
    _short_integer(loader, node)
    return loader.construct_yaml_int(node)


def _construct_float(loader: yaml.SafeLoader, node: Any) -> float:
    return _float(str(loader.construct_scalar(node)))


class _Dumper(yaml.SafeDumper):
    """Writes YAML, with quotes around text that either version of YAML would not read as text."""


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Yaml12Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)
_Yaml11Loader.add_implicit_resolver(f"{_TAG}float", re.compile(f"^(?:{_SCALARS['float'][0]})$"), _SCALARS["float"][1])
_Yaml12Loader.add_constructor(f"{_TAG}int", _construct_integer)
_Yaml11Loader.add_constructor(f"{_TAG}int", _construct_yaml_11_integer)
_Yaml12Loader.add_constructor(f"{_TAG}float", _construct_float)


def parse_yaml(text: str, name: str, declared: Any = None, is_yaml_1_1: bool = False) -> Any:
    """Return the content of a YAML text.

    Args:
        name: name of the text in messages.
        declared: type of the content, such as a section of the configuration. A number becomes text if the type is
            text, and a whole number in any notation becomes an integer if the type is an integer.
        is_yaml_1_1: whether `yes`, `off` and similar words are booleans.

    Raises:
        ConfigError: the text is not valid YAML, or has a duplicate key.
    """
    if _depth(text) > _MAX_DEPTH:
        # checked first, because the time to scan grows with the square of the depth
        raise ConfigError(f"{name} is nested too deeply: more than {_MAX_DEPTH} brackets are open at once")
    loader = None
    try:
        loader = _Yaml11Loader(text) if is_yaml_1_1 else _Yaml12Loader(text)
        loader.name = name
        node = loader.get_single_node()
        if node is None:
            return None
        _check_aliases(node, name)
        return loader.construct_document(_declared(node, declared))
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        # the last five come from tags that do not fit their value, such as !!int [1]
        raise ConfigError(f"{name} is not valid YAML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()  # type: ignore[no-untyped-call]


def _depth(text: str) -> int:
    """Return the maximum number of open brackets, ignoring quotes."""
    depth = deepest = 0
    for bracket in re.finditer(r"[\[\]{}]", text):
        depth = depth + 1 if bracket.group() in "[{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


def _check_aliases(root: yaml.Node, name: str) -> None:
    """
    Raises:
        ConfigError: an alias refers to itself, or aliases expand to too many values.
    """
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size_of(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            line = node.start_mark.line + 1
            raise ConfigError(f"{name}: the value at line {line} contains itself through an alias; write the value out")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            below = (child for part in parts for child in (part if isinstance(part, tuple) else (part,)))
            sizes[id(node)] = 1 + sum(map(size_of, below))
            open_nodes.discard(id(node))
        return sizes[id(node)]

    if (size := size_of(root)) > _MAX_VALUES:
        raise ConfigError(f"{name}: its aliases expand to {size:.3g} values; the limit is {_MAX_VALUES:,}")


def dump_yaml(content: Any) -> str:
    """Return a YAML text that `parse_yaml` reads as the same content."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _declared(node: yaml.Node, declared: Any) -> yaml.Node:
    """Return a copy of the node with numbers converted to the declared type; an alias may have several."""
    changed: Any = copy(node)
    types = [*_alternatives(declared)]
    if isinstance(node, yaml.MappingNode) and isinstance(declared, type) and issubclass(declared, BaseModel):
        fields = {name: field.annotation for name, field in declared.model_fields.items()}
        changed.value = [(key, _declared(value, fields.get(str(key.value)))) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        element_type = next((get_args(kind)[0] for kind in types if get_origin(kind) is list), None)
        changed.value = [_declared(element, element_type) for element in node.value]
    elif isinstance(node, yaml.ScalarNode) and node.tag in (f"{_TAG}int", f"{_TAG}float"):
        if str in types and not {int, float} & {*types}:
            changed.tag = f"{_TAG}str"
        elif node.tag == f"{_TAG}float" and int in types and float not in types:
            number = _float(node.value)
            if number.is_integer():
                changed.tag, changed.value = f"{_TAG}int", str(int(number))
    result: yaml.Node = changed
    return result


def _alternatives(declared: Any) -> list[Any]:
    """Return the members of a union type, without their constraints."""
    origin = get_origin(declared)
    if origin is Annotated:
        return _alternatives(get_args(declared)[0])
    if origin in (Union, UnionType):
        return [kind for part in get_args(declared) for kind in _alternatives(part)]
    return [] if declared in (None, NoneType) else [declared]
