"""Random numbers: the same in every trial, and at their extremes where they decide what a step runs.

Some models draw numbers on the host and branch on them: LayerDrop leaves out layers, others train at a
random resolution. A dozen steps hardly ever contain the step that needs the most memory, which a long
run meets sooner or later. So these draws are watched, and `LargestStep` looks for the values with which
a step is largest. Masks that are computed on the device (dropout, DropPath) change no step's structure,
and are left alone.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bsfind.oom import FailureKind, classify

__all__ = ["LargestStep", "StepSize", "reproducible_building", "seed_generators"]

_SEED = 20_240_229

_MOST_ELEMENTS = 128
"""Numbers in a tensor of draws that the host may read one by one; models have no more layers."""

_MOST_INTEGERS = 1 << 16
"""The same for integers on the host: a length for each sample, for example."""

_MOST_OPTIONS = 8
"""Up to so many values of a discrete draw are tried one by one, of more the smallest and the largest."""

_MOST_SITES = 12
"""Places in the code whose draws are tried; models have one or two."""

_MARGIN = 2.0**-24
"""How far the extremes of a continuous draw stay from its limits: 1 is never drawn."""

_OWN = ("bsfind", "torch.nn")
"""Packages whose own draws decide nothing: synthetic inputs, initial weights."""

_LIBRARIES = ("torch", "numpy", "random")
"""A draw that one of these makes for its caller is the caller's."""

_STANDARD_LIBRARY = str(Path(random.__file__).parent) + os.sep
_INSTALLED = f"{os.sep}site-packages{os.sep}"

_Site = tuple[str, int]

StepSize = tuple[int, int]
"""How large a step is: by how many bytes it went beyond what was held before it, and how many bytes it
allocated in all, which decides between equals."""


def seed_generators() -> None:
    """Seed the generators of Python, of numpy (where it is installed) and of torch, CUDA's included.

    numpy's is seeded whether the user's code has imported it yet or not.
    """
    random.seed(_SEED)
    torch.manual_seed(_SEED)
    if (numpy := _numpy()) is not None:
        numpy.random.seed(_SEED % 2**32)


def _numpy() -> Any:
    with contextlib.suppress(ImportError):
        import numpy

        return numpy
    return None


# --------------------------------------------------------------------------- what can be drawn


@dataclass(frozen=True)
class _Span:
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


def _real(low: float = 0.0, high: float = 1.0) -> _Span:
    width = high - low
    return _Span(lambda fraction: low + width * min(max(fraction, _MARGIN), 1 - _MARGIN))


def _one_of(values: Sequence[Any]) -> _Span | None:
    count = len(values)
    if not count:
        return None
    return _Span(lambda fraction: values[min(count - 1, round(fraction * (count - 1)))], count)


def _element(values: Any) -> _Span | None:
    if isinstance(values, int):
        return _one_of(range(values))
    try:
        return _one_of(sorted(values))
    except (TypeError, ValueError, RuntimeError):  # modules, arrays, dicts: in their own order
        return _one_of(values) if isinstance(values, Sequence) else None


def _below(low: int, high: int | None = None, *_: Any, **more: Any) -> _Span | None:
    """Integers as numpy has them: `randint(high)` or `randint(low, high)`."""
    first, end = (0, low) if high is None else (low, high)
    return _one_of(range(int(first), int(end) + bool(more.get("endpoint"))))


def _numpy_element(
    values: Any, size: Any = None, replace: bool = True, p: Any = None, **_: Any
) -> _Span | None:
    if size not in (None, 1, (1,)):  # several, which have to differ perhaps
        return None
    if isinstance(values, int):
        values = range(values)
    if p is not None:
        values = [value for value, weight in zip(values, p, strict=True) if weight > 0]
    return _element(values)


_SpanOf = Callable[..., _Span | None]

_PYTHON: dict[str, _SpanOf] = {
    "random": lambda: _real(),
    "uniform": _real,
    "triangular": lambda low=0.0, high=1.0, *_, **__: _real(low, high),
    "betavariate": lambda *_, **__: _real(),
    "randint": lambda a, b: _one_of(range(a, b + 1)),
    "randrange": lambda *bounds: _one_of(range(*bounds)),
    "getrandbits": lambda k: _one_of(range(1 << k)) if k < sys.maxsize.bit_length() else None,
    "choice": _element,
    "choices": lambda population, *_, **__: _element(population),
    "sample": lambda population, k, **_: _element(population) if k == 1 else None,
}
_NUMPY: dict[str, _SpanOf] = {
    **{name: lambda *_, **__: _real() for name in ("rand", "random", "random_sample", "ranf")},
    "sample": lambda *_, **__: _real(),
    "beta": lambda *_, **__: _real(),
    "uniform": lambda low=0.0, high=1.0, *_, **__: _real(low, high),
    "randint": _below,
    "integers": _below,
    "binomial": lambda n, *_, **__: _one_of(range(int(n) + 1)),
    "choice": _numpy_element,
}


def _torch_integers(*args: Any, low: int = 0, high: int | None = None, **_: Any) -> _Span | None:
    bounds = [value for value in args if isinstance(value, int)]
    if len(bounds) == 2:
        return _one_of(range(*bounds))
    end = bounds[0] if bounds else high
    return None if end is None else _one_of(range(low, end))


def _torch_index(weights: torch.Tensor, num_samples: int, *_: Any, **__: Any) -> _Span | None:
    return _one_of(range(weights.shape[-1])) if num_samples == 1 else None


def _between(*args: Any, **kwargs: Any) -> _Span | None:
    """Integers of `Tensor.random_(to)` or `Tensor.random_(from, to)`."""
    bounds = [*args, *(kwargs[name] for name in ("from", "to") if name in kwargs)]
    return _one_of(range(*bounds)) if bounds and None not in bounds else None


def _coin(*_: Any, **__: Any) -> _Span | None:
    return _one_of((0, 1))


_TORCH: dict[str, _SpanOf] = {
    "rand": lambda *_, **__: _real(),
    "randint": _torch_integers,
    "randperm": lambda *_, **__: None,
    "bernoulli": _coin,
    "multinomial": _torch_index,
}
_TENSOR: dict[str, _SpanOf] = {"bernoulli": _coin}
_TENSOR_IN_PLACE: dict[str, _SpanOf] = {
    "uniform_": lambda a=0.0, b=1.0, **_: _real(a, b),
    "bernoulli_": _coin,
    "random_": _between,
}


# --------------------------------------------------------------------------- watching them


class _HostDraws:
    """Sees the draws of small numbers while it is active, and replaces them where it is told to.

    Attributes:
        seen: places that draw, in the order in which they were met, with what they can draw.
        forced: the fraction of the span that each place draws; None: what it happens to draw.
        is_forcing_new: whether places that are not in `forced` draw the largest value.
        batch_size: of the trial. That many real numbers are one for each sample.
        of_building: what small tensors are drawn from while a model is built; None at other times.
    """

    def __init__(self) -> None:
        self.seen: dict[_Site, _Span] = {}
        self.forced: Mapping[_Site, float | None] = {}
        self.is_forcing_new = False
        self.batch_size = 0
        self.is_active = False
        self.of_building: torch.Generator | None = None

    def value(self, span: _Span | None, frame: Any, *, counts: bool = True) -> Any:
        """Return what a draw is to be; None: what it is."""
        site = _site_of(frame) if span is not None else None
        if site is None or span is None:
            return None
        if site not in self.forced:
            if not counts:
                return None
            self.seen.setdefault(site, span)
        fraction = self.forced.get(site, 1.0 if self.is_forcing_new else None)
        return None if fraction is None else span.at(fraction)

    def counts(self, tensor: Any, span: _Span) -> bool | None:
        """Tell whether a tensor (or array) of draws is one that the host may branch on.

        Returns:
            None if it never is; False if it is not in a place that is met for the first time.
        """
        numel = tensor.numel() if isinstance(tensor, torch.Tensor) else tensor.size
        if tensor.ndim > 1:
            return None
        on_host = not isinstance(tensor, torch.Tensor) or tensor.device.type == "cpu"
        if on_host and span.count is not None:
            return True if numel <= _MOST_INTEGERS else None
        if numel > _MOST_ELEMENTS:
            return None
        return bool(numel == 1 or numel != self.batch_size)


_draws = _HostDraws()
"""One, as the generators are those of the process."""


def _span(span_of: _SpanOf, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Span | None:
    """Return what a call can draw; None if its arguments do not tell."""
    try:
        return span_of(*args, **kwargs)
    except (TypeError, ValueError, RuntimeError):
        return None


def _site_of(frame: Any) -> _Site | None:
    """Return the place in the user's code that draws; None where the draw decides nothing."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if any(name == own or name.startswith(f"{own}.") for own in _OWN):
            return None
        if name.partition(".")[0] not in _LIBRARIES:
            file = frame.f_code.co_filename
            if file.startswith(_STANDARD_LIBRARY) and _INSTALLED not in file:
                return None  # names of temporary files and the like
            return file, frame.f_lineno
        frame = frame.f_back
    return None


def _is_of_building(tensor: Any, kwargs: Mapping[str, Any], frame: Any) -> bool:
    """Tell whether a draw may decide on the structure of the model that is being built."""
    return (
        _draws.of_building is not None
        and type(tensor) is torch.Tensor
        and tensor.device.type == "cpu"
        and tensor.numel() <= _MOST_ELEMENTS
        and kwargs.get("generator") is None
        and _site_of(frame) is not None
    )


def _of_python(original: Callable[..., Any], span_of: _SpanOf, skip: int = 0) -> Callable[..., Any]:
    """Return a function of `random` or numpy whose result can be replaced.

    Args:
        original: the function.
        span_of: returns what it can draw, for its arguments.
        skip: arguments before these: 1 where it is called with `self`.
    """

    def drawn(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        frame = sys._getframe(1)
        # A function of `random` that is made of others loops until a draw suits it.
        if not _draws.is_active or frame.f_globals.get("__name__") == "random":
            return result
        span = _span(span_of, args[skip:], kwargs)
        counts: bool | None = True
        if span is not None and hasattr(result, "ndim"):
            counts = _draws.counts(result, span)
        if counts is None:
            return result
        value = _draws.value(span, frame, counts=counts)
        if value is None:
            return result
        if isinstance(result, list) and original.__name__ in ("choices", "sample"):
            return [value] * len(result)
        if getattr(result, "shape", ()):
            result[...] = value
            return result
        return type(result)(value) if hasattr(result, "dtype") else value

    return drawn


def _of_torch(original: Callable[..., Any], span_of: _SpanOf, skip: int = 0) -> Callable[..., Any]:
    """Return a function of torch whose result can be replaced."""

    def drawn(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if _is_of_building(result, kwargs, sys._getframe(1)):
            return original(*args, **{**kwargs, "generator": _draws.of_building})
        if not _draws.is_active or type(result) is not torch.Tensor or result.requires_grad:
            return result
        span = _span(span_of, args[skip:], kwargs)
        counts = None if span is None else _draws.counts(result, span)
        if counts is None:
            return result
        value = _draws.value(span, sys._getframe(1), counts=counts)
        return result if value is None else torch.full_like(result, value)

    return drawn


def _of_torch_in_place(original: Callable[..., Any], span_of: _SpanOf) -> Callable[..., Any]:
    """Return a method of tensors that draws into its own memory, or writes what it is told to."""

    def drawn(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if _is_of_building(self, kwargs, sys._getframe(1)):
            return original(self, *args, **{**kwargs, "generator": _draws.of_building})
        if _draws.is_active and type(self) is torch.Tensor and not self.requires_grad:
            span = _span(span_of, args, kwargs)
            counts = None if span is None else _draws.counts(self, span)
            if counts is not None:
                value = _draws.value(span, sys._getframe(1), counts=counts)
                if value is not None:
                    return self.fill_(value)
        return original(self, *args, **kwargs)

    return drawn


def _own_generators(numpy: Any) -> Iterator[tuple[Any, str, Any]]:
    """Yield classes of generators that the user's code makes for itself, seeded and watched."""

    class LikeItsParent(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, cls.__mro__[1])

    def methods(parent: Any) -> dict[str, Any]:
        return {
            name: _of_python(getattr(parent, name), span_of, skip=1)
            for name, span_of in _NUMPY.items()
            if hasattr(parent, name)
        }

    parent = numpy.random.RandomState
    state: Any = LikeItsParent("RandomState", (parent,), methods(parent))
    state.__init__ = lambda self, seed=None: parent.__init__(self, _SEED if seed is None else seed)
    yield numpy.random, "RandomState", state
    generator = type("Generator", (numpy.random.Generator,), methods(numpy.random.Generator))
    default = numpy.random.default_rng

    def default_rng(seed: Any = None) -> Any:
        made = default(_SEED if seed is None else seed)
        return made if made is seed else generator(made.bit_generator)

    yield numpy.random, "default_rng", default_rng


def _replacements() -> Iterator[tuple[Any, str, Any]]:
    """Yield (owner, name, watched function) of all functions that draw."""
    for name, span_of in _PYTHON.items():
        yield random, name, _of_python(getattr(random, name), span_of)
        yield random.Random, name, _of_python(getattr(random.Random, name), span_of, skip=1)
    own_seed = random.Random.seed

    def seed(self: random.Random, a: Any = None, *more: Any, **kwargs: Any) -> None:
        own_seed(self, _SEED if a is None else a, *more, **kwargs)

    yield random.Random, "seed", seed
    for name, span_of in _TORCH.items():
        yield torch, name, _of_torch(getattr(torch, name), span_of)
    for name, span_of in _TENSOR.items():
        yield torch.Tensor, name, _of_torch(getattr(torch.Tensor, name), span_of, skip=1)
    for name, span_of in _TENSOR_IN_PLACE.items():
        yield torch.Tensor, name, _of_torch_in_place(getattr(torch.Tensor, name), span_of)
    if (numpy := _numpy()) is not None:
        for name, span_of in _NUMPY.items():
            if hasattr(numpy.random, name):
                yield numpy.random, name, _of_python(getattr(numpy.random, name), span_of)
        yield from _own_generators(numpy)


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    """Let functions that draw be watched ones while inside.

    A module that is imported meanwhile keeps those that it takes by name (`from random import random`):
    they do nothing of their own while no draws are watched.
    """
    with contextlib.ExitStack() as undo:
        for owner, name, value in list(_replacements()):
            if name in vars(owner):
                undo.callback(setattr, owner, name, vars(owner)[name])
            else:  # inherited
                undo.callback(delattr, owner, name)
            setattr(owner, name, value)
        yield


@contextlib.contextmanager
def reproducible_building() -> Iterator[None]:
    """Let a model that draws its own sizes have the same ones in every process.

    Small draws of torch on the host come from a generator of their own: the one of torch is used for
    initial weights too, which a prediction does not draw.
    """
    seed_generators()
    _draws.of_building = torch.Generator()
    _draws.of_building.manual_seed(_SEED)
    try:
        with _installed():
            yield
    finally:
        _draws.of_building = None


# --------------------------------------------------------------------------- the largest step


class LargestStep:
    """Finds the values of the host's draws with which a step needs the most memory.

    Args:
        is_watching: False: draws are seeded only (compiled code must find torch's own functions).
    """

    def __init__(self, *, is_watching: bool = True) -> None:
        self._is_watching = is_watching
        # A batch of one may take another way through the model than all others.
        self._decided: dict[bool, dict[_Site, float | None]] = {True: {}, False: {}}

    @contextlib.contextmanager
    def searched(self, batch_size: int) -> Iterator[None]:
        """Seed the generators, and let the steps inside be the largest, as far as that is known.

        Args:
            batch_size: of the steps.
        """
        seed_generators()
        if not self._is_watching:
            yield
            return
        _draws.seen = {}
        _draws.forced = self._decided[batch_size == 1]
        _draws.batch_size = batch_size
        _draws.is_active = True
        try:
            with _installed():
                yield
        finally:
            _draws.is_active = False
            _draws.forced = {}

    @property
    def is_undecided(self) -> bool:
        """Whether the steps drew numbers whose influence is not known yet; asked inside `searched`."""
        return any(site not in _draws.forced for site in _draws.seen)

    def decide(self, run_step: Callable[[], StepSize]) -> None:
        """Run steps with other draws, and keep those of the largest step; called inside `searched`.

        Afterwards the trial has to start anew. Each place in the code that draws is tried by itself,
        while those that come later in the step draw their largest values.

        Args:
            run_step: runs one step and returns its size. Where it raises for another reason than
                memory, the user's code does not work with these draws, which are not used.
        """
        decided = self._decided[_draws.batch_size == 1]
        _draws.is_forcing_new = True
        try:
            while (site := next((s for s in _draws.seen if s not in decided), None)) is not None:
                decided[site] = None
                if len(decided) <= _MOST_SITES:
                    decided[site] = self._largest(site, decided, run_step)
        finally:
            _draws.is_forcing_new = False
            _draws.forced = decided

    def _largest(
        self, site: _Site, decided: Mapping[_Site, float | None], run_step: Callable[[], StepSize]
    ) -> float | None:
        """Return the fraction of the largest step; None if all steps are alike."""
        sizes: dict[float, StepSize | None] = {}
        span = _draws.seen[site]
        for fraction in span.fractions:
            if span.count is None and len(sizes) == 2 and len(set(sizes.values())) == 1:
                break  # the least and the most are alike: so is what is in between
            _draws.forced = {**decided, site: fraction}
            seed_generators()
            sizes[fraction] = _size_of(run_step)
        known = {fraction: size for fraction, size in sizes.items() if size is not None}
        if not known or len(set(sizes.values())) == 1:
            return None
        return max(known, key=lambda fraction: known[fraction])

    @property
    def places(self) -> tuple[str, ...]:
        """Where in the code numbers are drawn that decide how large a step is: `model.py:12`."""
        sites = {
            site
            for decided in self._decided.values()
            for site, fraction in decided.items()
            if fraction is not None
        }
        return tuple(f"{Path(file).name}:{line}" for file, line in sorted(sites))


def _size_of(run_step: Callable[[], StepSize]) -> StepSize | None:
    """Return the size of a step; None if the user's code cannot run it."""
    try:
        return run_step()
    except Exception as error:
        return None if classify(error) is FailureKind.OTHER else (sys.maxsize, sys.maxsize)
