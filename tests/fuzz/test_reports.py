"""`bsfind diff` of a report and of one that something has changed: a verdict, or a usage error."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import check_outcome, examples
from tests.unit.command_line import command_line

pytestmark = pytest.mark.fuzz

GOLDEN = Path(__file__).parents[1] / "golden"
REPORTS = [json.loads((GOLDEN / name).read_text()) for name in ("report.json", "predicted.json")]

TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "fp32",
        "ok",
        "oom",
        "nothing_fits",
        "partial",
        "1.0",
        "\x1b[2J",
        "\u202e",
        "\n::error::x",
        "\ud800",
    ]
)
NUMBERS = st.integers(-5, 10**6) | st.sampled_from([0, 2**31, 2**63, 10**30, 10**400, -(2**63)])
FLOATS = st.floats() | st.sampled_from([1e300, 5e-324, -0.0])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


def places(document: Any) -> list[tuple[Any, Any]]:
    """Return every container of a document with each of its keys."""
    keys = document.items() if isinstance(document, dict) else enumerate(document)
    found: list[tuple[Any, Any]] = []
    for key, value in list(keys):
        found.append((document, key))
        if isinstance(value, (dict, list)):
            found += places(value)
    return found


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    """Return a report in which some values are replaced, gone, doubled or moved."""
    document = copy.deepcopy(draw(st.sampled_from(REPORTS)))
    for _ in range(draw(st.integers(0, 3))):
        owner, key = draw(st.sampled_from(places(document)))
        match draw(
            st.sampled_from(["replace", "replace", "scale", "remove", "add", "double", "move"])
        ):
            case "replace":
                owner[key] = draw(VALUES)
            case "scale" if type(owner[key]) in (int, float):
                owner[key] = type(owner[key])(owner[key] * draw(st.floats(0, 3)))
            case "remove":
                del owner[key]
            case "add" if isinstance(owner, dict):
                owner[draw(TEXTS)] = draw(VALUES)
            case "double" if isinstance(owner, list):
                owner.append(copy.deepcopy(owner[key]))
            case "move":
                owner[key] = copy.deepcopy(draw(st.sampled_from(places(document)))[0])
        if not places(document):
            break
    return json.dumps(document).encode()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return a report's file with bytes that are others, gone or more; or something else."""
    content = draw(changed())
    start = draw(st.integers(0, len(content)))
    end = start + draw(st.integers(0, 3))
    inserted = draw(
        st.binary(max_size=4)
        | st.sampled_from(
            [b"NaN", b"Infinity", b"1e999", b"9" * 5000, b'{"a":' * 9999, b"[" * 99999, b","]
        )
    )
    content = content[:start] + inserted + content[end:]
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32-be"]))
    return content.decode("utf-8", "replace").encode(encoding)


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


@given(
    content=changed() | changed() | damaged(),
    other=st.sampled_from(REPORTS),
    is_new=st.booleans(),
    as_json=st.booleans(),
)
@examples(2500)
def test_diff(
    content: bytes,
    other: Any,
    is_new: bool,
    as_json: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    files = [folder / "changed.json", folder / "good.json"]
    files[0].write_bytes(content)
    files[1].write_text(json.dumps(other))
    arguments = map(str, reversed(files) if is_new else files)
    outcome = command_line("diff", *arguments, *(["--json"] if as_json else []))
    check_outcome(outcome.code, outcome.stdout, outcome.stderr, allowed=(0, 1, 2))
    if outcome.code != 2:
        assert not re.search(r"\bnan\b", outcome.stdout.lower())
        if as_json:
            verdict = strict(outcome.stdout)["verdict"]
            assert (verdict == "worse") == (outcome.code == 1)
