"""Checks a JSON document against one of bsfind's schemas, as far as they use JSON Schema.

A field that a later bsfind of the same schema version may add is left out; one that an earlier bsfind did not
write has the `default` of the schema.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

_TYPES: dict[type, str] = {
    **{type(None): "null", bool: "boolean", int: "integer", float: "number"},
    **{str: "string", list: "array", dict: "object"},
}
_TESTS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "const": (lambda value, least: value == least, "is {}, not {}"),
    "enum": (lambda value, choices: value in choices, "is {}, not one of {}"),
    "minimum": (lambda value, least: value >= least, "is {}, less than {}"),
    "exclusiveMinimum": (lambda value, least: value > least, "is {}, not more than {}"),
    "exclusiveMaximum": (lambda value, most: value < most, "is {}, not less than {}"),
    "pattern": (lambda text, form: re.search(form, text) is not None, "is {}, not of the form {}"),
    "minLength": (lambda text, least: len(text) >= least, "is {}, shorter than {}"),
    "minItems": (lambda items, least: len(items) >= least, "is {}, shorter than {}"),
}
KEYWORDS = {"$defs", "$ref", "$schema", "additionalProperties", "anyOf", "default", "description"}
KEYWORDS |= {"items", "properties", "required", "title", "type", *_TESTS}
"""What a schema of bsfind may use."""


def validated(document: Any, schema: Mapping[str, Any]) -> Any:
    """Return what the schema knows of a document.

    Args:
        document: what `json.loads` returned.
        schema: a JSON Schema that uses no other `KEYWORDS`.

    Raises:
        ValueError: the path of a value, and what is wrong with it.
    """
    return _Validator(schema.get("$defs", {})).value(document, schema, "")


class _Validator:
    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions

    def value(self, value: Any, rule: Mapping[str, Any], path: str) -> Any:
        if "$ref" in rule:
            return self.value(value, self._definitions[rule["$ref"].rpartition("/")[2]], path)
        if "anyOf" in rule:
            first, *others = rule["anyOf"]  # an object, or null
            if any(_is_of(value, other["type"]) for other in others):
                return value
            return self.value(value, first, path)
        _check(value, rule, path)
        if isinstance(value, list):
            items = rule.get("items", {})
            return [self.value(part, items, f"{path}[{i}]") for i, part in enumerate(value)]
        if isinstance(value, dict) and ("properties" in rule or "additionalProperties" in rule):
            return self._object(value, rule, f"{path}." if path else "")
        return value

    def _object(self, value: dict[str, Any], rule: Mapping[str, Any], path: str) -> dict[str, Any]:
        known = rule.get("properties", {})
        found = {}
        for name, part in known.items():
            if name in value:
                found[name] = self.value(value[name], part, path + name)
            elif "default" in part:
                found[name] = part["default"]
            elif name in rule["required"]:
                raise ValueError(f"`{path}{name}` is missing")
        if rule.get("additionalProperties"):
            for name in value.keys() - known.keys():
                found[name] = self.value(value[name], rule["additionalProperties"], path + name)
        return found


def _check(value: Any, rule: Mapping[str, Any], path: str) -> None:
    """Check a value, but not what is in it.

    Raises:
        ValueError: what is wrong with it.
    """
    name = f"`{path}`" if path else "it"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is not a finite number, or too large")
    types = rule.get("type", list(_TYPES.values()))
    if not _is_of(value, types):
        wanted = types if isinstance(types, str) else " or ".join(types)
        raise ValueError(f"{name} is of the type {_TYPES[type(value)]}, not {wanted}")
    if value is None and "enum" not in rule and "const" not in rule:
        return
    for keyword, (is_right, complaint) in _TESTS.items():
        if keyword == "minimum" and isinstance(value, str):
            continue  # it is about numbers, and the value may be either
        if keyword in rule and not is_right(value, rule[keyword]):
            shown = (json.dumps(part)[:100] for part in (value, rule[keyword]))
            raise ValueError(f"{name} {complaint.format(*shown)}")


def _is_of(value: Any, types: str | list[str]) -> bool:
    kind = _TYPES[type(value)]
    wanted = [types] if isinstance(types, str) else types
    return kind in wanted or (kind == "integer" and "number" in wanted)
