"""YAML as the configuration reads and writes it: the safe subset, without the surprises of YAML 1.1.

`1e-4` is a number. `yes`, `no`, `on`, `off` and dates are text; only `true` and `false` are booleans. A key given twice
is an error, and so are anchors and aliases: a configuration says each thing once, in its place.
"""

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

_TAG = "tag:yaml.org,2002:"
# The plain scalars of YAML 1.2's core schema, with the characters that each kind can begin with.
_PLAIN = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Refuses aliases, by which a value could contain itself or grow without bound, and explicit types."""
        event = self.peek_event()
        problem = None
        if isinstance(event, yaml.AliasEvent):
            problem = "an alias (*name) is not supported: write the value out, or quote a text that begins with *"
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag is not None:
            problem = f"the tag {event.tag} is not supported: quote a text that begins with !"
        if problem:
            raise ConstructorError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses a key that is no text, and one that was given before in the same mapping."""
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConstructorError(None, None, f"the key {key!r} must be text: quote it", key_node.start_mark)
            if key in lines:
                problem = f"key {key!r} is given twice, first in line {lines[key]}"
                raise ConstructorError(None, None, problem, key_node.start_mark)
            lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)

    def construct_int(self, node: ScalarNode) -> int:
        """Decimal, also with leading zeros, which YAML 1.1 would read as octal."""
        return int(str(node.value))


for _kind, _pattern, _first in _PLAIN:
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor(_TAG + "int", _Loader.construct_int)


def read_yaml(text: str) -> Any:
    """The value of one YAML document. Raises ValueError with the place and the problem in one line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(place + " ".join(f"{error.problem or error.context}".split())) from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("the values are nested too deeply") from error


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        """Writes every value out, so that what is written can be read."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indents list items below their key."""
        super().increase_indent(flow, False)

    def represent_flat_list(self, data: list[Any]) -> SequenceNode:
        """A list of plain values stands on one line."""
        flow = not any(isinstance(item, (dict, list)) for item in data)
        return self.represent_sequence(_TAG + "seq", data, flow_style=flow)

    def represent_text(self, data: str) -> ScalarNode:
        """Text with line breaks or control characters is written with escapes, which keep each of them."""
        return self.represent_scalar(_TAG + "str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(list, _Dumper.represent_flat_list)


def write_yaml(value: Any) -> str:
    """Text that `read_yaml` reads back as the same value; keys keep their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
