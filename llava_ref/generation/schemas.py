"""JSON Schemas as people write them -> as answers should keep to them: an object has the properties that are named.

By the letter of JSON Schema an object that does not say `additionalProperties` may have any others too, and a small
model goes on inventing them until its tokens run out. Engines read such a schema as closed (llama.cpp's
json-schema-to-grammar, XGrammar's strict mode, OpenAI's strict schemas), and so does this file. A schema opens an
object by `additionalProperties`; one that names no properties at all is as open as it was.

`allOf`, `anyOf`, `oneOf` and `$ref` speak about the same value as the schema they stand in. Each of these is closed to
the names of all that must hold together, for closed one by one they would contradict each other.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

Schema = dict[str, Any]
CHOICES = ("anyOf", "oneOf")
ONE = ("items", "additionalItems", "contains", "additionalProperties")  # keys whose value is a schema
NAMED = ("properties", "patternProperties", "$defs", "definitions")  # whose value is an object of schemas
LISTED = ("prefixItems",)  # whose value is a list of schemas
MAX_STEPS = 20_000


class TooManyBranches(ValueError):
    """A schema whose references multiply."""


def closed(schema: Mapping[str, Any]) -> Schema:
    """Return the schema with its objects closed. Raises TooManyBranches."""
    return _Closing(dict(schema)).close(dict(schema), ())


class _Closing:
    def __init__(self, root: Schema) -> None:
        self._root, self._left = root, MAX_STEPS
        self._open: list[int] = []  # targets of references that are being closed in the place of the reference

    def close(self, node: Any, others: Sequence[Schema]) -> Any:
        """Return `node` closed; `others` speak about the same value."""
        self._step()
        if not isinstance(node, dict):
            return node
        groups = [(key, i, members, list(self._all(members))) for key, i, members in self._groups(node)]
        beside = [*others, *(schema for group in groups for schema in group[3])]
        out = self._values(node, beside)
        for key, i, members, _ in groups:
            around = [*others, node, *(s for k, j, _, found in groups if (k, j) != (key, i) for s in found)]
            self._branch(out, key, i, members, around)
        if _names_some(node) and not any(_opens(schema) for schema in [node, *beside]):
            _shut(out, beside)
        return out

    def _branch(self, out: Schema, key: str, i: int, members: list[Any], around: list[Schema]) -> None:
        """Close what stands under `key`. A reference stays one unless its target shares its value with `around`."""
        if key == "allOf":
            out["allOf"][i] = self.close(members[0], around)
        elif key in CHOICES:
            out[key] = [self.close(member, around) for member in members]
        elif any(_names_some(schema) or _opens(schema) for schema in around) and id(members[0]) not in self._open:
            del out["$ref"]
            self._open.append(id(members[0]))
            out["allOf"] = [*out.get("allOf", []), self.close(members[0], around)]
            self._open.pop()

    def _values(self, node: Schema, beside: Sequence[Schema]) -> Schema:
        """Return a copy in which the schemas of parts of the value, and definitions, are closed."""
        out = {key: list(value) if isinstance(value, list) else value for key, value in node.items()}
        for key in ONE:
            if isinstance(node.get(key), dict):
                out[key] = self.close(node[key], list(self._all([s.get(key) for s in beside])))
        for key in NAMED:
            if isinstance(node.get(key), dict):
                out[key] = {name: self._named(key, name, schema, beside) for name, schema in node[key].items()}
        for key in LISTED:
            if isinstance(node.get(key), list):
                out[key] = [self.close(schema, ()) for schema in node[key]]
        return out

    def _named(self, key: str, name: str, schema: Any, beside: Sequence[Schema]) -> Any:
        if key in ("$defs", "definitions"):
            return self.close(schema, ())
        same = [others[name] for s in beside if isinstance(others := s.get(key), dict) and name in others]
        return self.close(schema, list(self._all(same)))

    def _groups(self, node: Schema) -> Iterator[tuple[str, int, list[Any]]]:
        """Yield what else speaks about the same value: each group's key, number, and members, one of which holds."""
        for i, member in enumerate(_list(node.get("allOf"))):
            yield "allOf", i, [member]
        for key in CHOICES:
            if members := _list(node.get(key)):
                yield key, 0, members
        target = self._target(node.get("$ref"))
        if target is not None:
            yield "$ref", 0, [target]

    def _all(self, nodes: Sequence[Any], seen: tuple[int, ...] = ()) -> Iterator[Schema]:
        """Yield these schemas and all within them that speak about the same value."""
        for node in nodes:
            if isinstance(node, dict) and id(node) not in seen:
                self._step()
                yield node
                for _, _, members in self._groups(node):
                    yield from self._all(members, (*seen, id(node)))

    def _target(self, reference: object) -> Schema | None:
        """Return the schema that a JSON pointer into this document leads to."""
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            return None
        at: Any = self._root
        for step in unquote(reference[1:]).split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            at = at.get(name) if isinstance(at, dict) else None
        return at if isinstance(at, dict) else None

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooManyBranches("allOf, anyOf, oneOf and $ref multiply to too many branches")


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _names_some(schema: Schema) -> bool:
    return "properties" in schema or "patternProperties" in schema


def _opens(schema: Schema) -> bool:
    return schema.get("additionalProperties", False) is not False


def _shut(out: Schema, beside: Sequence[Schema]) -> None:
    """Allow no names but those of `out` and of what must hold with it."""
    if "additionalProperties" in out:
        return
    properties, patterns = dict(out.get("properties", {})), dict(out.get("patternProperties", {}))
    for schema in [out, *beside]:
        for name in [*schema.get("properties", {}), *_list(schema.get("required"))]:
            properties.setdefault(name, True)
        for pattern in schema.get("patternProperties", {}):
            patterns.setdefault(pattern, True)
    out |= {"properties": properties, "additionalProperties": False}
    if patterns:
        out["patternProperties"] = patterns
