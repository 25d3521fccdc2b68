"""Exceptions that can be read: the text, class and causes of others are user code, which may fail."""

from __future__ import annotations

import builtins
from typing import Any

_LONGEST_TEXT = 100_000
_MOST_LINKS = 100
_MARK = "_bsfind_stands_in"


def plain(error: BaseException) -> BaseException:
    """Return an exception that can be read: itself, or one of the nearest built-in class in its place.

    An exception whose class, or that of one of its causes, does not tell its text, its name or what it came
    from gives way, and so does one with an endless text.
    """
    try:
        if all(map(_is_plain, _with_links(error))):
            return error
    except BaseException:  # by what the exception's own class defines
        pass
    return _stand_in(error, {})


def stands_in(error: BaseException) -> bool:
    """Tell whether `plain` has made an exception, for one of a class of user code."""
    return hasattr(error, _MARK)


def _stand_in(error: BaseException, made: dict[int, BaseException]) -> BaseException:
    cls = type(error)
    text = _text_of(error)
    said = text if text is not None else "its text cannot be made"
    stand_in: BaseException = Exception(said)
    for base in type.__dict__["__mro__"].__get__(cls):
        if type.__dict__["__module__"].__get__(base) == "builtins":
            name = type.__dict__["__name__"].__get__(cls)
            try:
                stand_in = base(said if base is cls else f"{name}: {said}")
                break
            except Exception:  # `UnicodeDecodeError` takes five arguments
                continue
    made[id(error)] = stand_in
    setattr(stand_in, _MARK, True)
    for name in ("__cause__", "__context__"):
        linked = _own(error, name)
        if linked is not None and len(made) < _MOST_LINKS:
            setattr(stand_in, name, made.get(id(linked)) or _stand_in(linked, made))
    stand_in.__suppress_context__ = _own(error, "__suppress_context__")
    return stand_in.with_traceback(_own(error, "__traceback__"))


def _own(error: BaseException, name: str) -> Any:
    """Return an attribute as exceptions have it, whatever the class has by that name."""
    return BaseException.__dict__[name].__get__(error)


def _text_of(error: BaseException) -> str | None:
    """Return the text of an exception, shortened; None if it cannot be made."""
    try:
        text = str.__str__(str(error))  # of a subclass of `str`, what it holds
    except BaseException:
        return None
    if len(text) > _LONGEST_TEXT:
        text = f"{text[: _LONGEST_TEXT // 2]} … ({len(text):,} characters)"
    return text


def _is_plain(error: BaseException) -> bool:
    cls: Any = error.__class__
    if cls is not type(error):
        return False
    said: list[Any] = [str(error), *getattr(error, "__notes__", ())]
    return (
        all(type(text) is str for text in (*said, cls.__name__, cls.__qualname__, cls.__module__))
        and sum(map(len, said)) <= _LONGEST_TEXT
        and all(
            getattr(error, name) is _own(error, name)
            for name in ("__traceback__", "__cause__", "__context__")
        )
    )


def _with_links(error: BaseException) -> list[BaseException]:
    """Return an exception with what it was raised from or during, and the parts of groups.

    Raises:
        RecursionError: there is no end of them.
    """
    found = {id(error): error}
    waiting = [error]
    group = getattr(builtins, "BaseExceptionGroup", None)  # Python 3.11
    while waiting:
        link = waiting.pop()
        parts = link.exceptions if group is not None and isinstance(link, group) else ()
        for part in (_own(link, "__cause__"), _own(link, "__context__"), *parts):
            if part is not None and id(part) not in found:
                found[id(part)] = part
                waiting.append(part)
        if len(found) > _MOST_LINKS:
            raise RecursionError
    return list(found.values())
