"""Sizes, parts, durations and counts: what is read, what is refused and how, what is written."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bsfind.units import (
    GIB,
    KIB,
    MIB,
    Headroom,
    format_batch_sizes,
    format_bytes,
    format_count,
    format_duration,
    format_parameters,
    parse_duration,
    parse_fraction,
    parse_headroom,
    parse_size,
    plain_number,
)

SIZES = {
    "B": 1,
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "TiB": 1 << 40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}


@given(n=st.integers(0, 10**6), unit=st.sampled_from(sorted(SIZES)), gap=st.sampled_from(["", " "]))
def test_sizes_are_read_exactly_in_any_case(n: int, unit: str, gap: str) -> None:
    for text in (f"{n}{gap}{unit}", f" {n}{gap}{unit.lower()} ", f"{n}{gap}{unit.upper()}"):
        assert parse_size(text) == n * SIZES[unit]


@given(n=st.integers(0, 1 << 60))
def test_a_bare_integer_is_bytes(n: int) -> None:
    assert parse_size(str(n)) == n


def test_sizes_with_a_point() -> None:
    assert parse_size("1.5GiB") == 3 * GIB // 2
    assert parse_size(".5 MiB") == MIB // 2
    assert parse_size("0.3B") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "`` is not a size, write it like `24GiB`, `512MiB` or `1073741824` (bytes)"),
        ("lots", "`lots` is not a size, write it like `24GiB`, `512MiB` or `1073741824` (bytes)"),
        ("1e9", "`1e9` is not a size, write it like `24GiB`, `512MiB` or `1073741824` (bytes)"),
        ("-1", "`-1` is not a size, write it like `24GiB`, `512MiB` or `1073741824` (bytes)"),
        ("1.5", "`1.5` has no unit, write `1.5GiB` or `1.5MiB`"),
        ("24G", "`24G` is ambiguous, write `24GiB` (binary) or `24GB` (decimal)"),
        ("512 m", "`512 m` is ambiguous, write `512MiB` (binary) or `512MB` (decimal)"),
        ("24Gi", "`24Gi` has an unknown unit `Gi`, write `MiB`, `GiB`, `MB` or `GB`"),
        ("5%", "`5%` has an unknown unit `%`, write `MiB`, `GiB`, `MB` or `GB`"),
    ],
)
def test_refused_sizes(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_size(text)


@given(letter=st.sampled_from("kKmMgGtT"), n=st.integers(0, 1000))
def test_what_the_refusal_of_an_ambiguous_size_offers_can_be_read(letter: str, n: int) -> None:
    with pytest.raises(ValueError, match="ambiguous") as refusal:
        parse_size(f"{n}{letter}")
    offers = re.findall(r"`([^`]+)` \((binary|decimal)\)", str(refusal.value))
    binary, decimal = (parse_size(text) for text, _ in offers)
    exponent = "kmgt".index(letter.lower()) + 1
    assert binary == n * 1024**exponent
    assert decimal == n * 1000**exponent


@given(n=st.integers(0, 99_999))
def test_fractions(n: int) -> None:
    assert parse_fraction(f"{n / 1000}%") == n / 1000 / 100
    assert parse_fraction(f"{n / 100_000:.5f}") == n / 100_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "`` is not a fraction, write it like `0.5%` or `0.005`"),
        ("half", "`half` is not a fraction, write it like `0.5%` or `0.005`"),
        ("-1%", "`-1%` is not a fraction, write it like `0.5%` or `0.005`"),
        ("1GiB", "`1GiB` is not a fraction, write it like `0.5%` or `0.005`"),
        ("5", "`5` must be less than 100%, write `5%`"),
        ("1", "`1` must be less than 100%, write `1%`"),
        ("100%", "`100%` must be less than 100%"),
        ("250", "`250` must be less than 100%"),
    ],
)
def test_refused_fractions(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_fraction(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("90s", 90.0),
        ("250ms", 0.25),
        ("10m", 600.0),
        ("10 min", 600.0),
        ("1.5h", 5400.0),
        ("2H", 7200.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "`` is not a duration, write it like `90s`, `10m` or `1.5h`"),
        ("soon", "`soon` is not a duration, write it like `90s`, `10m` or `1.5h`"),
        ("-5s", "`-5s` is not a duration, write it like `90s`, `10m` or `1.5h`"),
        ("3d", "`3d` has an unknown unit `d`, write `s`, `m` or `h`"),
    ],
)
def test_refused_durations(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_duration(text)


@given(value=st.decimals(0, 10**8, places=6))
@example(value=1209600)
@example(value=0)
def test_plain_numbers_are_read_as_they_were(value: float) -> None:
    text = plain_number(float(value))
    assert re.fullmatch(r"[0-9]+(\.[0-9]+)?", text)
    assert float(text) == float(value)


@given(
    headroom=st.integers(0, 1 << 50).map(lambda n: Headroom(bytes=n))
    | st.integers(0, 99_999).map(lambda n: Headroom(fraction=n / 1000 / 100))
)
def test_headrooms_are_read_as_they_were(headroom: Headroom) -> None:
    assert parse_headroom(str(headroom)) == headroom


def test_headroom_on_a_device() -> None:
    assert parse_headroom("5%").of(200) == 10
    assert parse_headroom("1GiB").of(24 * GIB) == GIB
    assert parse_headroom("0").of(24 * GIB) == 0
    assert str(parse_headroom("5%")) == "5%"
    assert str(parse_headroom("1KiB")) == "1024B"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.05", "`0.05` is neither a fraction nor a size, write `5%`"),
        (".005", "`.005` is neither a fraction nor a size, write `0.5%`"),
        ("100%", "`100%` must be less than 100%"),
        ("1G", "`1G` is ambiguous, write `1GiB` (binary) or `1GB` (decimal)"),
        ("some", "`some` is not a size, write it like `24GiB`, `512MiB` or `1073741824` (bytes)"),
    ],
)
def test_refused_headrooms(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_headroom(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (512 * MIB, "512.0 MiB"),
        (1000 * MIB, "1000 MiB"),
        (1023 * MIB, "1023 MiB"),
        (int(1023.7 * MIB), "1.0 GiB"),
        (int(21.6 * GIB), "21.6 GiB"),
        (-3 * GIB, "-3.0 GiB"),
        (2 << 40, "2.0 TiB"),
    ],
)
def test_bytes_are_written(size: int | None, text: str) -> None:
    assert format_bytes(size) == text


@given(size=st.integers(0, 1 << 50))
@example(size=int(1023.94 * MIB))
@example(size=int(999.97 * GIB))
def test_written_bytes_are_right_to_the_last_digit(size: int) -> None:
    text = format_bytes(size)
    number, unit = text.split()
    assert len(number) <= 6
    if unit != "TiB":
        assert float(number) < 1024
        assert ("." in number) == (unit != "B" and float(number) < 1000)
    last_digit = 0.1 if "." in number else 1.0
    exact = size / SIZES[unit]
    assert abs(float(number) - exact) <= last_digit / 2 * 1.001


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (3.074, "3.07"),
        (41.24, "41.2"),
        (100.4, "100"),
        (1020.0, "1,020"),
        (1234567.8, "1,234,568"),
    ],
)
def test_counts(value: float | None, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (812, "812"),
        (999, "999"),
        (1000, "1.0 K"),
        (999_499, "999.5 K"),
        (999_999, "1.0 M"),
        (25_557_032, "25.6 M"),
        (7_240_000_000, "7.2 B"),
    ],
)
def test_parameters(count: int, text: str) -> None:
    assert format_parameters(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.43, "0.4 s"),
        (8, "8 s"),
        (8.0, "8 s"),
        (9.96, "10 s"),
        (59.7, "1 min"),
        (125, "2 min 5 s"),
        (3599.6, "1 h"),
        (3780, "1 h 3 min"),
    ],
)
def test_durations_are_written(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_headroom_of_a_few_bytes_is_most_likely_a_percentage() -> None:
    with pytest.raises(ValueError, match=r"write `5%` or `5MiB`"):
        parse_headroom("5")
    assert parse_headroom("5B") == Headroom(bytes=5)


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ([1234], "1,234"),
        ([3, 2], "3 and 2"),
        ([9, 8, 7, 6], "9, 8, 7 and 6"),
        ([9, 8, 7, 6, 5, 4], "9, 8, 7, 6 and 2 others"),
    ],
)
def test_batch_sizes_are_written(sizes: list[int], text: str) -> None:
    assert format_batch_sizes(sizes) == text
