"""Reports that `bsfind diff` reads: of this and of older versions, and files that are none."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from command_line import command_line
from example_report import example_report, predicted_report
from hypothesis import given, settings
from hypothesis import strategies as st

from bsfind.report.json import gpus_schema, inspection_schema, read_report, schema, to_json
from bsfind.report.validation import KEYWORDS, validated

GOOD = json.loads(to_json(example_report()))


def read(document: Any) -> Any:
    return read_report(json.dumps(document).encode())


def test_what_bsfind_writes_comes_back() -> None:
    for report in (example_report(), predicted_report()):
        for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
            assert read_report(to_json(report).encode(encoding)) == report


def test_the_first_report_of_this_schema_version_is_read() -> None:
    first = (Path(__file__).parent / "data" / "first_report.json").read_bytes()
    report = read_report(first)
    assert [result.max_batch_size for result in report.results] == [215, 419]
    assert report.results[0].timings == ()
    assert report.assumptions == ()


def test_fields_of_later_versions_are_left_out() -> None:
    document = copy.deepcopy(GOOD)
    document["new"] = document["results"][0]["trials"][0]["new"] = [math.pi]
    assert read(document) == example_report()


# ------------------------------------------------------------------------- what is no report

WRONG: list[tuple[str, Any, str]] = [
    ("schema_version", "2.0", '`schema_version` is "2.0", not "1.0"'),
    ("schema_version", 1.0, "`schema_version` is 1.0"),
    ("results", {}, "`results` is of the type object, not array"),
    ("results", None, "`results` is of the type null, not array"),
    ("results.0", "abc", "`results[0]` is of the type string, not object"),
    ("results.0.max_batch_size", -5, "`results[0].max_batch_size` is -5, less than 1"),
    ("results.0.max_batch_size", 0, "is 0, less than 1"),
    ("results.0.max_batch_size", "256", "is of the type string, not integer or null"),
    ("results.0.max_batch_size", True, "is of the type boolean"),
    ("results.0.max_batch_size", 255.5, "is of the type number"),
    ("results.0.max_batch_size", math.nan, "`results[0].max_batch_size` is not a finite number"),
    ("results.0.max_batch_size", math.inf, "is not a finite number"),
    ("results.0.max_batch_size", 10**400, "is not a finite number, or too large"),
    ("results.0.max_batch_size", 10**19, "is not a finite number, or too large"),
    (
        "results.0.trials.1.peak_reserved_bytes",
        math.nan,
        "`results[0].trials[1].peak_reserved_bytes`",
    ),
    ("results.0.trials.0.peak_allocated_bytes", -1, "`results[0].trials[0].peak_allocated_bytes`"),
    ("results.0.trials.0.peak_allocated_bytes", [], "is of the type array"),
    (
        "results.0.trials.0.batch_size",
        None,
        "`results[0].trials[0].batch_size` is of the type null",
    ),
    ("results.0.trials.0.peaks_by_step", [1, False], "`results[0].trials[0].peaks_by_step[1]`"),
    ("results.0.status", "evil", '`results[0].status` is "evil", not one of ["ok", '),
    ("results.0.status", ["ok"], "`results[0].status` is of the type array"),
    ("results.0.precision", "\x1b]0;x\x07", '`results[0].precision` is "\\u001b]0;x\\u0007"'),
    ("results.0.remedy", {"a": 1}, "`results[0].remedy`"),
    ("device.name", 5, "`device.name` is of the type integer, not string"),
    ("device", "x", "`device` is of the type string, not object"),
    ("device.capacity_bytes", "x", "`device.capacity_bytes`"),
    ("search", [], "`search` is of the type array, not object"),
    ("search.batch_size", {}, "`search.batch_size`"),
    ("search.headroom", "much", '`search.headroom` is "much", not of the form'),
    ("search.precisions", [], "`search.precisions` is [], shorter than 1"),
    ("workload.model_args", {"width": 5}, "`workload.model_args.width`"),
    ("environment", [], "`environment`"),
    ("command", [1], "`command[0]`"),
    ("duration_s", math.inf, "`duration_s`"),
]


def changed(path: str, value: Any) -> Any:
    document = copy.deepcopy(GOOD)
    node = document
    *steps, last = (int(step) if step.isdigit() else step for step in path.split("."))
    for step in steps:
        node = node[step]
    node[last] = value
    return document


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_values_that_no_report_has(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        read(changed(path, value))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "name", [name for name in GOOD if "default" not in schema()["properties"][name]]
)
def test_fields_that_are_missing(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` is missing"):
        read({key: value for key, value in GOOD.items() if key != name})


TEXTS = {
    "nothing": b"",
    "a number": b"5",
    "NaN": b"NaN",
    "an array": b"[]",
    "nested arrays": b"[" * 100_000 + b"]" * 100_000,
    "nested objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "bytes": bytes(range(128, 256)) * 4,
    "5000 digits": json.dumps(GOOD).encode().replace(b"215", b"9" * 5000, 1),
    "1e400": json.dumps(GOOD)
    .encode()
    .replace(b'"max_batch_size": 215', b'"max_batch_size": 1e400'),
    "a field twice": json.dumps(GOOD).encode()[:-1] + b', "results": []}',
    "a result twice": json.dumps({**GOOD, "results": GOOD["results"][:1] * 2}).encode(),
    "17 MiB": b" " * (17 << 20),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_the_exit_code_of_files_that_are_no_report(
    name: str, json_option: tuple[str, ...], tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(GOOD))
    bad.write_bytes(TEXTS[name])
    for files in ((good, bad), (bad, good)):
        outcome = command_line("diff", *map(str, files), *json_option)
        assert outcome.code == 2
        assert outcome.stdout == ""
        assert f"error: `{bad}` is not a bsfind report: " in outcome.stderr


# ----------------------------------------------------------------------------- the validator


def keywords(schema: Any) -> Iterator[str]:
    yield from schema
    for part in ("properties", "$defs"):
        for rule in schema.get(part, {}).values():
            yield from keywords(rule)
    for part in ("items", "additionalProperties"):
        if isinstance(schema.get(part), dict):
            yield from keywords(schema[part])
    for rule in schema.get("anyOf", ()):
        yield from keywords(rule)


@pytest.mark.parametrize("document", [schema(), inspection_schema(), gpus_schema()])
def test_the_validator_knows_what_the_schemas_use(document: dict[str, Any]) -> None:
    assert set(keywords(document)) <= KEYWORDS


VALUES = [None, True, 0, -1, 1, 7.5, "", "x", "ok", "fp32", [], [1], ["x"], {}, {"a": 1}, 1 << 40]


def mutated(document: Any, rng: random.Random) -> Any:
    """Return a document of which one value is another one."""
    node = document = copy.deepcopy(document)
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        inner = node[key]
        if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.2:
            node[key] = copy.deepcopy(rng.choice(VALUES))
            return document
        node = inner


def lenient(schema: Any) -> Any:
    """Return a schema that lets fields be missing or unknown."""
    if isinstance(schema, dict):
        dropped = {"required", *(["additionalProperties"] if "properties" in schema else [])}
        return {key: lenient(value) for key, value in schema.items() if key not in dropped}
    return schema if not isinstance(schema, list) else [lenient(part) for part in schema]


VALIDATOR = jsonschema.Draft202012Validator(lenient(schema()))


@settings(max_examples=60)
@given(seed=st.integers(0, 10**9), predicted=st.booleans())
def test_it_accepts_what_jsonschema_accepts(seed: int, predicted: bool) -> None:
    rng = random.Random(seed)
    document = json.loads(to_json(predicted_report() if predicted else example_report()))
    for _ in range(rng.choice((1, 1, 2))):
        document = mutated(document, rng)
    try:
        validated(document, schema())
        problem = ""
    except ValueError as error:
        problem = str(error)
    assert VALIDATOR.is_valid(document) is (problem == "") or "is missing" in problem


@given(seed=st.integers(0, 10**9))
def test_what_is_read_can_be_compared(seed: int) -> None:
    from bsfind.report.diff import compare

    document = mutated(mutated(GOOD, random.Random(seed)), random.Random(seed + 1))
    try:
        report = read(document)
    except ValueError:
        return
    for old, new in ((report, example_report()), (example_report(), report)):
        json.dumps(compare(old, new, 0.02).to_json(), allow_nan=False)
