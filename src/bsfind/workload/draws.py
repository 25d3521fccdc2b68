"""Random numbers that the user's code draws on the host: what they can be, and what they are to be.

`draws` watches the functions of Python, numpy and torch that draw, while it is told to. A draw that the
host may branch on is noted with the values that it can have, and replaced by one of them where
`workload.randomness` asks for it. Masks that are computed on the device (dropout, DropPath) change no
step's structure, and are left alone; so are permutations.
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

SEED = 20_240_229

_MOST_ELEMENTS = 128
"""Numbers in a tensor of draws that the host may read one by one; models have no more layers."""

_MOST_INTEGERS = 1 << 16
"""The same for integers on the host: a length for each sample, for example."""

_MOST_OPTIONS = 8
"""Up to so many values of a discrete draw are tried one by one, of more the smallest and the largest."""

_MARGIN = 2.0**-24
"""How far the extremes of a continuous draw stay from its limits: 1 is never drawn."""

_SIGMAS = 4.0
"""How far the extremes of a draw without limits are from its mean: about 1 in 30,000 is beyond."""

_OWN = ("bsfind", "torch.nn")
"""Packages whose own draws decide nothing: synthetic inputs, initial weights."""

_LIBRARIES = ("torch", "numpy", "random")
"""A draw that one of these makes for its caller is the caller's."""

_STANDARD_LIBRARY = str(Path(random.__file__).parent) + os.sep
_INSTALLED = f"{os.sep}site-packages{os.sep}"

Site = tuple[str, int, int]
"""A place in the code that draws: file, line, and instruction, as a line may draw twice."""


def numpy_if_installed() -> Any:
    """Return numpy, whether the user's code has imported it yet or not; None: it is not installed."""
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
        count: how many values there are; None for real numbers.
    """

    at: Callable[[float], Any]
    count: int | None = None

    @property
    def fractions(self) -> tuple[float, ...]:
        """The fractions to try; those at which most code leaves nothing out come first."""
        if self.count is None:
            return (1.0, 0.0, 0.5)
        if self.count > _MOST_OPTIONS:
            return (1.0, 0.0)
        last = max(1, self.count - 1)
        return tuple(place / last for place in reversed(range(self.count)))


_SpanOf = Callable[..., Span | None]
"""Takes the arguments of a call, returns what it can draw; None if nothing that the host branches on."""


def _real(low: Any = 0.0, high: Any = 1.0) -> Span:
    low, width = float(low), float(high) - float(low)
    return Span(lambda fraction: low + width * min(max(fraction, _MARGIN), 1 - _MARGIN))


def _unit(*_: Any, **__: Any) -> Span:
    return _real()


def _normal(mean: Any = 0.0, deviation: Any = 1.0) -> Span:
    return _real(mean - _SIGMAS * deviation, mean + _SIGMAS * deviation)


def _standard_normal(*_: Any, **__: Any) -> Span:
    return _normal()


def _one_of(values: Sequence[Any]) -> Span | None:
    count = len(values)
    if not count:
        return None
    return Span(lambda fraction: values[min(count - 1, round(fraction * (count - 1)))], count)


def _below(low: int, high: int | None = None, *_: Any, **more: Any) -> Span | None:
    """Integers of `randint(high)` or `randint(low, high)`, as numpy and torch have them."""
    first, end = (0, low) if high is None else (low, high)
    return _one_of(range(int(first), int(end) + bool(more.get("endpoint"))))


def _element(values: Any, weights: Sequence[Any] | None = None) -> Span | None:
    if isinstance(values, int):
        values = range(values)
    if weights is not None:
        values = [value for value, weight in zip(values, weights, strict=True) if weight > 0]
    try:
        return _one_of(sorted(values))
    except (TypeError, ValueError, RuntimeError):  # modules, arrays, dicts: in their own order
        return _one_of(values) if isinstance(values, Sequence) else None


def _as_list(span: Span | None, length: int) -> Span | None:
    return span and Span(lambda fraction: [span.at(fraction)] * length, span.count)


def _choices(
    population: Any, weights: Any = None, *, cum_weights: Any = None, k: int = 1
) -> Span | None:
    return _as_list(_element(population, weights), k)


def _numpy_choice(
    values: Any, size: Any = None, replace: bool = True, p: Any = None, **_: Any
) -> Span | None:
    is_one = size in (None, 1, (1,))  # several have to differ perhaps
    return _element(values, p) if is_one else None


def _binomial(n: int, p: float, *_: Any, **__: Any) -> Span | None:
    return _one_of(range(int(n) + 1)) if 0 < p < 1 else None  # else it is certain


def _poisson(lam: float = 1.0, *_: Any, **__: Any) -> Span | None:
    return _one_of(range(math.ceil(lam + _SIGMAS * math.sqrt(lam)) + 1))


def _index_of(weights: torch.Tensor, num_samples: int, *_: Any, **__: Any) -> Span | None:
    """What `torch.multinomial` draws: an index whose weight is not zero, as far as that is known."""
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


def _coin_in_place(p: Any = 0.5, *_: Any, **__: Any) -> Span | None:
    return _coin(p)


def _integers(*args: Any, low: int = 0, high: int | None = None, **_: Any) -> Span | None:
    """Integers of `torch.randint(high, size)` or `torch.randint(low, high, size)`."""
    bounds = [value for value in args if isinstance(value, int)]
    if not bounds and high is None:
        return None
    return _below(*bounds[:2]) if bounds else _below(low, high)


def _between(*args: Any, **kwargs: Any) -> Span | None:
    """Integers of `Tensor.random_(to)` or `Tensor.random_(from, to)`."""
    bounds = [*args, *(kwargs[name] for name in ("from", "to") if name in kwargs)]
    return _one_of(range(*bounds)) if bounds and None not in bounds else None


_PYTHON: dict[str, _SpanOf] = {
    "random": _unit,
    "uniform": _real,
    "triangular": lambda low=0.0, high=1.0, *_, **__: _real(low, high),
    "betavariate": _unit,
    "gauss": _normal,
    "normalvariate": _normal,
    "randint": lambda a, b: _one_of(range(a, b + 1)),
    "randrange": lambda *bounds: _one_of(range(*bounds)),
    "getrandbits": lambda k: _one_of(range(1 << k)) if k < sys.maxsize.bit_length() else None,
    "choice": _element,
    "choices": _choices,
    "sample": lambda population, k, **_: _as_list(_element(population), 1) if k == 1 else None,
}
_NUMPY: dict[str, _SpanOf] = {
    **dict.fromkeys(("rand", "random", "random_sample", "ranf", "sample", "beta"), _unit),
    "uniform": lambda low=0.0, high=1.0, *_, **__: _real(low, high),
    "triangular": lambda left, mode, right, *_: _real(left, right),
    "normal": lambda loc=0.0, scale=1.0, *_, **__: _normal(loc, scale),
    **dict.fromkeys(("randn", "standard_normal"), _standard_normal),
    **dict.fromkeys(("randint", "integers"), _below),
    "binomial": _binomial,
    "poisson": _poisson,
    "choice": _numpy_choice,
}
_TORCH: dict[str, _SpanOf] = {
    **dict.fromkeys(("rand", "rand_like"), _unit),
    **dict.fromkeys(("randn", "randn_like"), _standard_normal),
    "randint": _integers,
    "randperm": lambda *_, **__: None,
    "bernoulli": _coin,
    "multinomial": _index_of,
}
_TENSOR: dict[str, _SpanOf] = {
    "bernoulli": _coin,
    "multinomial": _index_of,
    "bernoulli_": lambda _self, *args, **kwargs: _coin_in_place(*args, **kwargs),
    "uniform_": lambda _self, a=0.0, b=1.0, **_: _real(a, b),
    "normal_": lambda _self, mean=0.0, std=1.0, **_: _normal(mean, std),
    "random_": lambda _self, *args, **kwargs: _between(*args, **kwargs),
}


# --------------------------------------------------------------------------- watching them


class _HostDraws:
    """Sees the draws of small numbers while it is active, and replaces them where it is told to.

    Attributes:
        seen: places that draw, in the order in which they were met, with what they can draw.
        constant: what places have drawn so far from generators of the user's own. Where these are seeded
            anew in each step, they always draw the same, and the draw decides nothing.
        forced: the fraction of the span that each place draws; None: what it happens to draw.
        is_forcing_new: whether places that are not in `forced` draw the largest value.
        batch_size: of the trial. That many real numbers are one for each sample.
        is_active: whether draws are noted and replaced.
        of_building: what small tensors are drawn from while a model is built; None at other times.
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
        """Let functions that draw be watched ones while inside.

        A module that is imported meanwhile keeps those that it takes by name (`from random import
        random`): they do nothing of their own while no draws are watched.
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
        """Return what a draw is to be; None: what it is.

        Args:
            span: what it can be.
            drawn: what it is.
            frame: that draws.
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
        """Tell whether what was drawn is something that the host may branch on.

        Returns:
            None if it never is; False if it is not in a place that is met for the first time.
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
"""One, as the generators are those of the process."""


def _site_of(frame: Any) -> Site | None:
    """Return the place in the user's code that draws; None where the draw decides nothing."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if any(name == own or name.startswith(f"{own}.") for own in _OWN):
            return None
        if name.partition(".")[0] not in _LIBRARIES:
            file = frame.f_code.co_filename
            if file.startswith(_STANDARD_LIBRARY) and _INSTALLED not in file:
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
    """Return a function whose result can be replaced.

    Args:
        original: the function.
        span_of: returns what it can draw, for its arguments.
        skip: arguments before these: 1 where it is called with `self`.
    """

    def drawn(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        frame = sys._getframe(1)
        if draws.of_building is not None and _may_decide_on_structure(result, kwargs, frame):
            with contextlib.suppress(TypeError):  # one that takes no generator
                return original(*args, **kwargs, generator=draws.of_building)
        # A function of `random` that is made of others loops until a draw suits it.
        if not draws.is_active or frame.f_globals.get("__name__") == "random":
            return result
        is_tensor = isinstance(result, torch.Tensor)
        if is_tensor and (type(result) is not torch.Tensor or result.requires_grad):
            return result
        try:
            span = span_of(*args[skip:], **kwargs)
        except (TypeError, ValueError, RuntimeError):  # its arguments do not tell
            return result
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
    """Yield classes of generators that the user's code makes for itself, seeded and watched."""

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
    """Return (owner, name, watched function) of all functions that draw; called while none is watched."""
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
