"""Exceptions of classes whose text, name or causes cannot be read give way to ones that can."""
# ruff: noqa: N818, PT017

from __future__ import annotations

import traceback

import pytest

from bsfind.failures.exceptions import plain, stands_in
from bsfind.failures.gpu_faults import causes
from bsfind.failures.oom import FailureKind, classify


class NoText(ValueError):
    def __str__(self) -> str:
        raise SystemExit("no text")


class TextIsNumber(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class Odd(str):
    def __len__(self) -> int:
        raise SystemExit("no length")

    encode = __len__  # type: ignore[assignment]


class TextIsOdd(ValueError):
    def __str__(self) -> str:
        return Odd("odd")


class Nameless(type):
    def __getattribute__(cls, name: str) -> object:
        if name in ("__name__", "__qualname__", "__module__"):
            raise RuntimeError("no name")
        return super().__getattribute__(name)


class NoName(KeyError, metaclass=Nameless):
    pass


class NoClass(OSError):
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError("no class")


class NoTraceback(Exception):
    @property
    def __traceback__(self) -> int:
        return 5


class Exits(SystemExit):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class FiveArguments(UnicodeDecodeError):
    def __str__(self) -> str:
        raise ValueError


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "base", "text"),
    [
        (NoText("a"), ValueError, "NoText: its text cannot be made"),
        (TextIsNumber("a"), Exception, "TextIsNumber: its text cannot be made"),
        (TextIsOdd("a"), ValueError, "TextIsOdd: odd"),
        (NoName("a"), KeyError, "NoName: 'a'"),
        (NoClass("a"), OSError, "NoClass: a"),
        (NoTraceback("a"), Exception, "NoTraceback: a"),
        (Exits(3), SystemExit, "Exits: its text cannot be made"),
        (
            FiveArguments("utf-8", b"", 0, 1, "a"),
            UnicodeError,
            "FiveArguments: its text cannot be made",
        ),
    ],
    ids=lambda value: type.__dict__["__name__"].__get__(type(value)),
)
def test_what_cannot_be_read(error: BaseException, base: type[BaseException], text: str) -> None:
    found = plain(raised(error))
    assert type(found) is base
    assert text in str(found)
    assert found.__traceback__ is not None
    assert text in "".join(traceback.format_exception(found))
    assert stands_in(found)
    assert plain(found) is found
    assert classify(error) is FailureKind.OTHER


def test_what_can_be_read_stays() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as first:
            raise ValueError("then") from first
    except ValueError as error:
        assert plain(error) is error
        assert not stands_in(error)
        assert [str(link) for link in causes(error)] == ["then", "'first'"]


def test_causes_are_replaced_too() -> None:
    try:
        try:
            raise NoName("first")
        except NoName:
            raise ValueError("then") from None
    except ValueError as error:
        found = plain(error)
        assert found is not error
        assert str(found) == "then"
        assert str(found.__context__) == str(KeyError("NoName: 'first'"))
        assert found.__suppress_context__


def test_an_out_of_memory_error_stays_one() -> None:
    class Mine(RuntimeError):
        __str__ = NoText.__str__

    class Unread(MemoryError):
        __str__ = NoText.__str__

    assert classify(Unread("a")) is FailureKind.OUT_OF_MEMORY
    error = Mine("a")
    error.__cause__ = RuntimeError("CUDA out of memory. Tried to allocate 2.00 MiB")
    assert classify(error) is FailureKind.OUT_OF_MEMORY


def test_endless_texts_and_chains() -> None:
    found = plain(ValueError("x" * 50_000_000))
    assert type(found) is ValueError
    assert len(str(found)) < 100_000
    first = error = ValueError("0")
    for number in range(1, 1000):
        error.__context__ = ValueError(str(number))
        error = error.__context__
    assert len(list(causes(first))) < 200
    ring = ValueError("a")
    ring.__context__ = KeyError("b")
    ring.__context__.__cause__ = ring
    assert plain(ring) is ring
    branches = ValueError("last")
    for _ in range(60):
        try:
            raise ValueError("next") from branches
        except ValueError as caught:
            caught.__context__ = branches
            branches = caught
    assert plain(branches) is branches
