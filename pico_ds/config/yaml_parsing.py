"""YAML as configurations use it: the core schema of YAML 1.2, where a scalar becomes what its key declares.

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
_LONGEST_INTEGER = 40
_DEEPEST = 200
#: of a configuration, aliases unfolded
_MOST_VALUES = 100_000
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
}


class _UniqueKeys(yaml.SafeLoader):
    """Fails for duplicate keys."""

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


class _Loader(_UniqueKeys):
    """YAML 1.2."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]


class _OldLoader(_UniqueKeys):
    """YAML 1.1, as pico-train and pico-maml read it; but a date is text, and `3e-4` a number."""

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
    if len(text) > _LONGEST_INTEGER:
        raise ConfigError(
            f"{node.start_mark.name}: the integer at line {node.start_mark.line + 1} has {len(text)} characters; at "
            f"most {_LONGEST_INTEGER} are read"
        )
    return text


def _construct_integer(loader: yaml.SafeLoader, node: Any) -> int:
    return _integer(_short_integer(loader, node))


def _construct_old_integer(loader: yaml.SafeLoader, node: Any) -> Any:
    _short_integer(loader, node)
    return loader.construct_yaml_int(node)


def _construct_float(loader: yaml.SafeLoader, node: Any) -> float:
    return _float(str(loader.construct_scalar(node)))


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would read as something else."""


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)
_OldLoader.add_implicit_resolver(f"{_TAG}float", re.compile(f"^(?:{_SCALARS['float'][0]})$"), _SCALARS["float"][1])
_Loader.add_constructor(f"{_TAG}int", _construct_integer)
_OldLoader.add_constructor(f"{_TAG}int", _construct_old_integer)
_Loader.add_constructor(f"{_TAG}float", _construct_float)


def parse_yaml(text: str, name: str, declared: Any = None, is_yaml_1_1: bool = False) -> Any:
    """The content of a YAML text.

    Args:
        name: of the text, for messages.
        declared: type of the content, such as a section of the configuration. A number is text where text is declared,
            and a whole number in any notation is an integer where an integer is declared.
        is_yaml_1_1: `yes`, `off` and the like are booleans.

    Raises:
        ConfigError: a text that is not YAML, or a key that stands twice.
    """
    if _depth(text) > _DEEPEST:
        # before it is scanned, which takes the square of the depth
        raise ConfigError(f"{name} is nested too deeply: more than {_DEEPEST} brackets are open at once")
    loader = None
    try:
        loader = _OldLoader(text) if is_yaml_1_1 else _Loader(text)
        loader.name = name
        node = loader.get_single_node()
        if node is None:
            return None
        _check_aliases(node, name)
        return loader.construct_document(_declared(node, declared))
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        # the last five come of tags that do not go with their value, such as !!int [1]
        raise ConfigError(f"{name} is not valid YAML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()  # type: ignore[no-untyped-call]


def _depth(text: str) -> int:
    """Most brackets that are open at once, as if none of them stood in quotes."""
    depth = deepest = 0
    for bracket in re.finditer(r"[\[\]{}]", text):
        depth = depth + 1 if bracket.group() in "[{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


def _check_aliases(root: yaml.Node, name: str) -> None:
    """
    Raises:
        ConfigError: an alias inside of what it stands for, or aliases that unfold to more than anybody could write.
    """
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size_of(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            line = node.start_mark.line + 1
            raise ConfigError(f"{name}: the value at line {line} contains itself, by an alias; write it out")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            below = (child for part in parts for child in (part if isinstance(part, tuple) else (part,)))
            sizes[id(node)] = 1 + sum(map(size_of, below))
            open_nodes.discard(id(node))
        return sizes[id(node)]

    if (size := size_of(root)) > _MOST_VALUES:
        raise ConfigError(f"{name}: its aliases unfold to {size:.3g} values; at most {_MOST_VALUES:,} are read")


def dump_yaml(content: Any) -> str:
    """A YAML text that `parse_yaml` reads as the same content."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _declared(node: yaml.Node, declared: Any) -> yaml.Node:
    """The node with numbers as its declared type wants them; a copy, because an alias may be declared otherwise."""
    changed: Any = copy(node)
    types = [*_alternatives(declared)]
    if isinstance(node, yaml.MappingNode) and isinstance(declared, type) and issubclass(declared, BaseModel):
        fields = {name: field.annotation for name, field in declared.model_fields.items()}
        changed.value = [(key, _declared(value, fields.get(str(key.value)))) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        of_elements = next((get_args(kind)[0] for kind in types if get_origin(kind) is list), None)
        changed.value = [_declared(element, of_elements) for element in node.value]
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
    """The types that a declared type is a union of, without their constraints."""
    origin = get_origin(declared)
    if origin is Annotated:
        return _alternatives(get_args(declared)[0])
    if origin in (Union, UnionType):
        return [kind for part in get_args(declared) for kind in _alternatives(part)]
    return [] if declared in (None, NoneType) else [declared]
