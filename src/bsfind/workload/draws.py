"""Random numbers that the user's code draws on the host: what they can be, and their replacement.

`draws` watches the functions of Python, numpy and torch that draw random numbers. A draw that the host
may branch on is noted with the values that it can have, and replaced by one of them where
`workload.randomness` asks for it. Masks that are computed on the device (dropout, DropPath) do not change
the structure of a step and are not replaced; nor are permutations.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bsfind.workload.user_errors import is_installed_file

SEED = 20_240_229

_MOST_ELEMENTS = 128
"""Most elements of a tensor of draws that the host may read one by one; models have fewer layers."""

_MOST_INTEGERS = 1 << 16
"""The same for integers on the host, as a length for each sample."""

_MOST_OPTIONS = 8
"""Most values of a discrete draw that are tried one by one; of more, the smallest and the largest are."""

_MARGIN = 2.0**-24
"""Distance of the extremes of a continuous draw from its limits: 1 is never drawn."""

_SIGMAS = 4.0
"""Distance of the extremes of a normal draw from its mean: about 1 draw in 30,000 is further away."""

_OWN = ("bsfind", "torch.nn")
"""Packages whose draws do not change a step: synthetic inputs, initial weights."""

_LIBRARIES = ("torch", "numpy", "random")
"""Packages that draw for their caller."""

_STANDARD_LIBRARY = str(Path(random.__file__).parent) + os.sep

Site = tuple[str, int, int]
"""A place in the code that draws: file, line and instruction (a line may draw twice)."""


def numpy_if_installed() -> Any:
    """Return numpy; None if it is not installed."""
    with contextlib.suppress(ImportError):
        import numpy

        return numpy
    return None


# --------------------------------------------------------------------------- what can be drawn


@dataclass(frozen=True)
class Span:
    """The values that a draw can have, from a fraction of 0 (the smallest) to 1 (the largest).

    Attributes:
        at: returns the value at a fraction.
        count: number of values; None for real numbers.
    """

    at: Callable[[float], Any]
    count: int | None = None

    @property
    def fractions(self) -> tuple[float, ...]:
        """The fractions to try; the first are those at which most code runs all of its layers."""
        if self.count is None:
            return (1.0, 0.0, 0.5)
        if self.count > _MOST_OPTIONS:
            return (1.0, 0.0)
        last = max(1, self.count - 1)
        return tuple(place / last for place in reversed(range(self.count)))


_SpanOf = Callable[..., Span | None]
"""Takes the arguments of a call; returns what it can draw, or None if the host does not branch on it."""


def _real(low: Any = 0.0, high: Any = 1.0) -> Span:
    low, width = float(low), float(high) - float(low)
    return Span(lambda fraction: low + width * min(max(fraction, _MARGIN), 1 - _MARGIN))


def _normal(mean: Any = 0.0, deviation: Any = 1.0) -> Span:
    return _real(mean - _SIGMAS * deviation, mean + _SIGMAS * deviation)


def _always(span: Span) -> _SpanOf:
    return lambda *_, **__: span


def _without_self(span_of: _SpanOf) -> _SpanOf:
    return lambda _self, *args, **kwargs: span_of(*args, **kwargs)


def _one_of(values: Sequence[Any]) -> Span | None:
    count = len(values)
    if not count:
        return None
    return Span(lambda fraction: values[min(count - 1, round(fraction * (count - 1)))], count)


def _integers(
    *args: Any, low: Any = 0, high: Any = None, endpoint: bool = False, **_: Any
) -> Span | None:
    """Integers of `randint(high)` or `randint(low, high)`; in torch a size follows these."""
    bounds = [int(value) for value in args[:2] if value is not None and not _is_size(value)]
    low, high = (*bounds, high)[:2] if bounds else (low, high)
    first, end = (0, low) if high is None else (low, high)
    return _one_of(range(int(first), int(end) + endpoint))


def _is_size(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _between(*args: Any, **kwargs: Any) -> Span | None:
    """Integers of `Tensor.random_(to)` or `Tensor.random_(from, to)`."""
    bounds = [*args, *(kwargs[name] for name in ("from", "to") if name in kwargs)]
    return _one_of(range(*bounds)) if bounds and None not in bounds else None


def _element(values: Any, weights: Sequence[Any] | None = None) -> Span | None:
    if isinstance(values, int):
        values = range(values)
    if weights is not None:
        values = [value for value, weight in zip(values, weights, strict=True) if weight > 0]
    try:
        return _one_of(sorted(values))
    except (TypeError, ValueError, RuntimeError):  # modules, arrays, dicts: in their own order
        return _one_of(values) if isinstance(values, Sequence) else None


def _elements(
    population: Any, weights: Any = None, *, cum_weights: Any = None, k: int = 1
) -> Span | None:
    """What `random.choices` draws: `k` times the same element."""
    span = _element(population, weights)
    return span and Span(lambda fraction: [span.at(fraction)] * k, span.count)


def _numpy_choice(
    values: Any, size: Any = None, replace: bool = True, p: Any = None, **_: Any
) -> Span | None:
    is_one = size in (None, 1, (1,))  # several may have to differ
    return _element(values, p) if is_one else None


def _binomial(n: int, p: float, *_: Any, **__: Any) -> Span | None:
    return _one_of(range(int(n) + 1)) if 0 < p < 1 else None  # else it is certain


def _poisson(lam: float = 1.0, *_: Any, **__: Any) -> Span | None:
    return _one_of(range(math.ceil(lam + _SIGMAS * math.sqrt(lam)) + 1))


def _index_of(weights: torch.Tensor, num_samples: int, *_: Any, **__: Any) -> Span | None:
    """What `torch.multinomial` draws: an index whose weight is not zero, where the host knows it."""
    if num_samples != 1:
        return None
    of = weights.reshape(-1, weights.shape[-1])
    known = of[0].tolist() if weights.device.type == "cpu" and len(of) == 1 else None
    return _element(weights.shape[-1], known)


def _coin(p: Any = None, *_: Any, **__: Any) -> Span | None:
    """What `bernoulli` draws with a probability, or with a tensor of them."""
    if isinstance(p, torch.Tensor):
        is_known = p.device.type == "cpu" and p.numel() <= _MOST_ELEMENTS
        is_certain = is_known and not bool(((p > 0) & (p < 1)).any())
    else:
        is_certain = p is not None and not 0 < p < 1
    return None if is_certain else _one_of((0, 1))


_PYTHON: dict[str, _SpanOf] = {
    **dict.fromkeys(("random", "betavariate"), _always(_real())),
    "uniform": _real,
    "triangular": lambda low=0.0, high=1.0, *_, **__: _real(low, high),
    **dict.fromkeys(("gauss", "normalvariate"), _normal),
    "randint": lambda a, b: _one_of(range(a, b + 1)),
    "randrange": lambda *bounds: _one_of(range(*bounds)),
    "getrandbits": lambda k: _one_of(range(1 << k)) if k < sys.maxsize.bit_length() else None,
    "choice": _element,
    "choices": _elements,
    "sample": lambda population, k, **_: _elements(population) if k == 1 else None,
}
_NUMPY: dict[str, _SpanOf] = {
    **dict.fromkeys(
        ("rand", "random", "random_sample", "ranf", "sample", "beta"), _always(_real())
    ),
    "uniform": lambda low=0.0, high=1.0, *_, **__: _real(low, high),
    "triangular": lambda left, mode, right, *_: _real(left, right),
    "normal": lambda loc=0.0, scale=1.0, *_, **__: _normal(loc, scale),
    **dict.fromkeys(("randn", "standard_normal"), _always(_normal())),
    **dict.fromkeys(("randint", "integers"), _integers),
    "binomial": _binomial,
    "poisson": _poisson,
    "choice": _numpy_choice,
}
_TORCH: dict[str, _SpanOf] = {
    **dict.fromkeys(("rand", "rand_like"), _always(_real())),
    **dict.fromkeys(("randn", "randn_like"), _always(_normal())),
    "randint": _integers,
    "randperm": lambda *_, **__: None,
    "bernoulli": _coin,
    "multinomial": _index_of,
}
_TENSOR: dict[str, _SpanOf] = {
    "bernoulli": _coin,
    "multinomial": _index_of,
    "bernoulli_": _without_self(_coin),
    "uniform_": lambda _self, a=0.0, b=1.0, **_: _real(a, b),
    "normal_": lambda _self, mean=0.0, std=1.0, **_: _normal(mean, std),
    "random_": _without_self(_between),
}


# --------------------------------------------------------------------------- watching them


class _HostDraws:
    """Notes draws of few numbers while it is active, and replaces those that are forced.

    Attributes:
        seen: places that draw, in order, with what they can draw.
        constant: the first draw of each place from a generator of the user's own. One that is seeded
            anew in each step always draws the same, so that its draw does not change a step.
        forced: the fraction of the span that each place draws; None: the draw is not replaced.
        is_forcing_new: whether places that are not in `forced` draw the largest value.
        batch_size: batch size of the trial; as many real numbers are one for each sample.
        is_active: whether draws are noted and replaced.
        of_building: the generator of small tensors while a model is built; None at other times.
    """

    def __init__(self) -> None:
        self.seen: dict[Site, Span] = {}
        self.constant: dict[Site, Any] = {}
        self.forced: Mapping[Site, float | None] = {}
        self.is_forcing_new = False
        self.batch_size = 0
        self.is_active = False
        self.of_building: torch.Generator | None = None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Replace the functions that draw by watched ones while inside.

        A module that is imported inside keeps those that it imports by name (`from random import
        random`); they do as the original ones while draws are not watched.
        """
        with contextlib.ExitStack() as undo:
            for owner, name, value in _replacements():
                if name in vars(owner):
                    undo.callback(setattr, owner, name, vars(owner)[name])
                else:  # inherited
                    undo.callback(delattr, owner, name)
                setattr(owner, name, value)
            yield

    def value(self, span: Span, drawn: Any, frame: Any, *, is_own: bool) -> Any:
        """Return the value that replaces a draw; None: it is not replaced.

        Args:
            span: the values that the draw can have.
            drawn: the value that was drawn.
            frame: the frame that draws.
            is_own: whether it is from a generator of the user's own.
        """
        counts = self._counts(drawn, span)
        site = None if counts is None else _site_of(frame)
        if site is None:
            return None
        if site not in self.forced:
            is_known = site in self.seen
            if not counts or (is_own and not is_known and self._is_constant(site, drawn)):
                return None
            self.seen.setdefault(site, span)
        fraction = self.forced.get(site, 1.0 if self.is_forcing_new else None)
        return None if fraction is None else span.at(fraction)

    def _is_constant(self, site: Site, drawn: Any) -> bool:
        """Tell whether a place has drawn the same as at its first draw of the trial."""
        if site not in self.constant:
            is_tensor = isinstance(drawn, torch.Tensor)
            self.constant[site] = drawn.clone() if is_tensor else copy.copy(drawn)
        known = self.constant[site]
        same = known == drawn
        return bool(same.all() if hasattr(same, "all") else same)

    def _counts(self, drawn: Any, span: Span) -> bool | None:
        """Tell whether the host may branch on what was drawn.

        Returns:
            True or None; False if it may where the place is known already.
        """
        if not hasattr(drawn, "ndim"):
            return True
        is_tensor = isinstance(drawn, torch.Tensor)
        numel = drawn.numel() if is_tensor else drawn.size
        if drawn.ndim > (2 if numel == 1 else 1):
            return None
        on_host = not is_tensor or drawn.device.type == "cpu"
        if on_host and span.count is not None:
            return True if numel <= _MOST_INTEGERS else None
        if numel > _MOST_ELEMENTS:
            return None
        return bool(numel == 1 or numel != self.batch_size)


draws = _HostDraws()
"""There is one: the generators are those of the process."""


def _site_of(frame: Any) -> Site | None:
    """Return the place in the user's code that draws; None where the draw does not change a step."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if any(name == own or name.startswith(f"{own}.") for own in _OWN):
            return None
        if name.partition(".")[0] not in _LIBRARIES:
            file = frame.f_code.co_filename
            if file.startswith(_STANDARD_LIBRARY) and not is_installed_file(file):
                return None  # names of temporary files and the like
            return file, frame.f_lineno, frame.f_lasti
        frame = frame.f_back
    return None


def _may_decide_on_structure(drawn: Any, kwargs: Mapping[str, Any], frame: Any) -> bool:
    """Tell whether a draw may decide on the structure of the model that is being built."""
    return (
        type(drawn) is torch.Tensor
        and drawn.device.type == "cpu"
        and drawn.numel() <= _MOST_ELEMENTS
        and kwargs.get("generator") is None
        and _site_of(frame) is not None
    )


def _watched(original: Callable[..., Any], span_of: _SpanOf, skip: int = 0) -> Callable[..., Any]:
    """Return a function whose draws can be replaced.

    Args:
        original: the function.
        span_of: returns what the function can draw with its arguments.
        skip: number of leading arguments that are not passed to `span_of`: 1 for `self`.
    """

    def drawn(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        frame = sys._getframe(1)
        if draws.of_building is not None and _may_decide_on_structure(result, kwargs, frame):
            with contextlib.suppress(TypeError):  # the function takes no generator
                return original(*args, **kwargs, generator=draws.of_building)
        # Functions of `random` call others, in loops that end by what is drawn.
        if not draws.is_active or frame.f_globals.get("__name__") == "random":
            return result
        is_tensor = isinstance(result, torch.Tensor)
        if is_tensor and (type(result) is not torch.Tensor or result.requires_grad):
            return result
        try:
            span = span_of(*args[skip:], **kwargs)
        except (ArithmeticError, RuntimeError, TypeError, ValueError):
            return result  # the arguments do not determine it, or there are too many numbers
        is_own = skip == 1 or kwargs.get("generator") is not None
        value = None if span is None else draws.value(span, result, frame, is_own=is_own)
        if value is None:
            return result
        if is_tensor:
            return result.fill_(value)
        if getattr(result, "shape", ()):
            result[...] = value
            return result
        return type(result)(value) if hasattr(result, "dtype") else value

    return drawn


def _own_generators(numpy: Any) -> Iterator[tuple[Any, str, Any]]:
    """Yield (owner, name, class) of numpy's generators, seeded and watched, for the user's code to make."""

    class LikeItsParent(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, cls.__mro__[1])

    def methods(parent: Any) -> dict[str, Any]:
        return {
            name: _watched(getattr(parent, name), span_of, skip=1)
            for name, span_of in _NUMPY.items()
            if hasattr(parent, name)
        }

    parent = numpy.random.RandomState
    state: Any = LikeItsParent("RandomState", (parent,), methods(parent))
    state.__init__ = lambda self, seed=None: parent.__init__(self, SEED if seed is None else seed)
    yield numpy.random, "RandomState", state
    generator = type("Generator", (numpy.random.Generator,), methods(numpy.random.Generator))
    default = numpy.random.default_rng

    def default_rng(seed: Any = None) -> Any:
        made = default(SEED if seed is None else seed)
        return made if made is seed else generator(made.bit_generator)

    yield numpy.random, "default_rng", default_rng


@functools.cache
def _replacements() -> tuple[tuple[Any, str, Any], ...]:
    """Return (owner, name, watched function) of all functions that draw; call it before they are replaced."""
    return tuple(_made_replacements())


def _made_replacements() -> Iterator[tuple[Any, str, Any]]:
    for name, span_of in _PYTHON.items():
        yield random, name, _watched(getattr(random, name), span_of)
        yield random.Random, name, _watched(getattr(random.Random, name), span_of, skip=1)
    own_seed = random.Random.seed

    def seed(self: random.Random, a: Any = None, *more: Any, **kwargs: Any) -> None:
        own_seed(self, SEED if a is None else a, *more, **kwargs)

    yield random.Random, "seed", seed
    for owner, spans in ((torch, _TORCH), (torch.Tensor, _TENSOR)):
        for name, span_of in spans.items():
            yield owner, name, _watched(getattr(owner, name), span_of)
    if (numpy := numpy_if_installed()) is not None:
        for name, span_of in _NUMPY.items():
            if hasattr(numpy.random, name):
                yield numpy.random, name, _watched(getattr(numpy.random, name), span_of)
        yield from _own_generators(numpy)
