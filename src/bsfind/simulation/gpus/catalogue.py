"""The catalogue of known GPUs, and how a name or a size finds one of them.

The data are in `gpus.csv` in this folder, whose head names the sources.
"""

from __future__ import annotations

import csv
import difflib
import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources

from bsfind.errors import UsageError
from bsfind.units import MIB, brief, format_bytes, parse_size

DEFAULT_GPU = "rtx-4090"
"""The GPU that is simulated if none is named; a GPU given by its size has its architecture."""

# Cards of one name whose memory differs by more than this fraction are ambiguous.
_SAME_MEMORY = 0.01
_LARGEST = 1 << 50

_NOISE = re.compile(
    "nvidia|geforce|tesla|quadro|amd|radeon|instinct|generation|edition|graphics|gpu"
)
_FORM_FACTOR = re.compile(r"sxm[0-9]*|pcie|hbm3e?|ac")
_SIZE_IN_NAME = re.compile(r"(?<![0-9.])([0-9]{1,4})[ _-]?gi?b?(?![a-z0-9])", re.IGNORECASE)
_MOST_GIB = 1024
_SIZE = re.compile(r"\s*[0-9.]+\s*(?:[kmgt](?:i?b)?|b)?\s*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class CatalogueGpu:
    """A GPU of the catalogue, or a generic one of a given size.

    Attributes:
        key: short name, unique in the catalogue: `rtx-3080-10gb`.
        name: name that torch reports; two cards may share it.
        total_bytes: `total_memory` that torch reports on Linux; None: not known.
        compute_capability: `8.9`; for an AMD GPU its gfx name.
        sm_count: number of multiprocessors.
        max_threads_per_sm: largest number of resident threads of a multiprocessor.
        estimated: the fields that are inferred from a card of the same class, not reported.
        generic: whether it is a size with the architecture of `DEFAULT_GPU` instead of a product.
    """

    key: str
    name: str
    total_bytes: int | None
    compute_capability: str
    sm_count: int | None
    max_threads_per_sm: int | None
    estimated: tuple[str, ...] = ()
    generic: bool = False

    @property
    def capability(self) -> tuple[int, int] | None:
        """The compute capability as a pair of numbers; None for an AMD GPU."""
        major, dot, minor = self.compute_capability.partition(".")
        return (int(major), int(minor)) if dot else None


def known_gpus() -> tuple[CatalogueGpu, ...]:
    """Return the catalogue, in the order of its file: by vendor and generation."""
    return _catalogue().gpus


def different_gpus() -> tuple[CatalogueGpu, ...]:
    """Return the GPUs that can be simulated, those with the least memory first.

    Of cards with the same compute capability, number of multiprocessors and memory (within 1 %), it is one.
    """
    found: list[CatalogueGpu] = []
    for gpu in sorted(known_gpus(), key=_memory):
        if gpu.capability and gpu.total_bytes and not any(_alike(gpu, other) for other in found):
            found.append(gpu)
    return tuple(found)


def find_gpu(text: str) -> CatalogueGpu:
    """Find a GPU by its name or its size.

    Case, spaces, dashes, the maker, `GeForce`, `RTX` and similar words are ignored; memory and form
    factor may be left out if they do not distinguish cards (`4090`, `rtx-4090`,
    `NVIDIA GeForce RTX 4090`, `a100-80g`). Of cards with the same compute capability, number of
    multiprocessors and memory (within 1 %), the one with the least memory is returned.

    A size (`24GiB`) is the memory that torch reports, on a generic card with the architecture of
    `DEFAULT_GPU` (compute capability 8.9, 128 multiprocessors).

    Raises:
        UsageError: the GPU is not known (the hint has the nearest names), is ambiguous, or its size
            is not valid.
    """
    catalogue = _catalogue()
    wanted = _squeezed(text)
    for spellings in catalogue.by_spelling:
        if found := spellings.get(wanted):
            return _one_of(text, found)
    # A number without a unit is a size in bytes if it is long enough, otherwise an unknown name.
    if _SIZE.fullmatch(text) and not (text.strip().isdigit() and len(text.strip()) < 7):
        return _generic(text)
    raise UsageError(
        f"`{brief(text)}` is not a GPU that bsfind knows", hint=_hint(wanted) + _size_in(text)
    )


# --------------------------------------------------------------------------------- finding a GPU


def _one_of(text: str, found: tuple[CatalogueGpu, ...]) -> CatalogueGpu:
    # Prefer memory that was reported to memory that was inferred.
    first, *others = sorted(found, key=lambda gpu: ("total_bytes" in gpu.estimated, _memory(gpu)))
    if all(_alike(first, other) for other in others):
        return first
    choices = [f"`{gpu.key}`" for gpu in found]
    raise UsageError(
        f"`{text}` can be several GPUs",
        detail="\n".join(
            f"{gpu.key}: {gpu.name}, "
            + ("memory not known" if gpu.total_bytes is None else format_bytes(gpu.total_bytes))
            for gpu in found
        ),
        hint=f"write {', '.join(choices[:-1])} or {choices[-1]}",
    )


def _alike(one: CatalogueGpu, other: CatalogueGpu) -> bool:
    return (one.compute_capability, one.sm_count) == (
        *(other.compute_capability, other.sm_count),
    ) and abs(_memory(one) - _memory(other)) <= _SAME_MEMORY * _memory(one)


def _memory(gpu: CatalogueGpu) -> int:
    return gpu.total_bytes or 0


def _generic(text: str) -> CatalogueGpu:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not MIB <= size <= _LARGEST:
        raise UsageError(
            f"`{brief(text.strip())}` is not the memory of a GPU, from 1 MiB to 1024 TiB",
            hint="write a size like `24GiB`",
        )
    like = find_gpu(DEFAULT_GPU)
    return CatalogueGpu(
        key=str(size),
        name=f"generic {format_bytes(size)} GPU",
        total_bytes=size,
        compute_capability=like.compute_capability,
        sm_count=like.sm_count,
        max_threads_per_sm=like.max_threads_per_sm,
        generic=True,
    )


def _hint(wanted: str) -> str:
    known: dict[str, str] = {}
    for spellings in _catalogue().by_spelling:
        for spelling, gpus in spellings.items():
            known.setdefault(spelling, gpus[0].key)
    # Longer (`6000`: `6000ada`) and shorter names (`4090ti`: `4090`) come before the names that
    # difflib finds, which compares letters (`8000`, `4070ti`).
    longer = sorted(spelling for spelling in known if wanted and spelling.startswith(wanted))
    shorter = sorted((s for s in known if wanted.startswith(s)), key=len, reverse=True)[:1]
    near = longer + shorter + difflib.get_close_matches(wanted, known, n=12, cutoff=0.6)
    keys = list(dict.fromkeys(known[spelling] for spelling in near))[:3]
    asked = f"did you mean {' or '.join(f'`{key}`' for key in keys)}? " if keys else ""
    return f"{asked}`bsfind gpus` lists the known GPUs; "


def _size_in(text: str) -> str:
    """Return the part of a hint that says which size to write instead of a name."""
    named = _SIZE_IN_NAME.search(text)
    if named is None or not 0 < int(named[1]) <= _MOST_GIB:
        return "a size such as `24GiB` works too"
    size = f"{int(named[1])}GiB"
    return (
        f"`--gpu {size}` predicts for a card of that size with the architecture of `{DEFAULT_GPU}`; of the "
        "memory that a card is sold with, PyTorch sees some per cent less"
    )


# ----------------------------------------------------------------------------------- the spellings


@dataclass(frozen=True)
class _Catalogue:
    """The catalogue, and the GPUs by spelling, from the most to the least specific spellings."""

    gpus: tuple[CatalogueGpu, ...]
    by_spelling: tuple[dict[str, tuple[CatalogueGpu, ...]], ...]


@functools.cache
def _catalogue() -> _Catalogue:
    text = (
        resources.files("bsfind.simulation.gpus").joinpath("gpus.csv").read_text(encoding="utf-8")
    )
    rows = [
        (_gpu(row), row)
        for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    ]
    return _Catalogue(
        gpus=tuple(gpu for gpu, _ in rows),
        by_spelling=(
            _index((gpu, (gpu.key, *_listed(row["aliases"], ";"))) for gpu, row in rows),
            _index((gpu, (gpu.name, *_with_size(gpu, row))) for gpu, row in rows),
            _index((gpu, _shortened(gpu, row)) for gpu, row in rows),
        ),
    )


def _gpu(row: dict[str, str]) -> CatalogueGpu:
    def number(column: str) -> int | None:
        return int(row[column]) if row[column] else None

    return CatalogueGpu(
        key=row["key"],
        name=row["name"],
        total_bytes=number("total_memory"),
        compute_capability=row["compute_capability"],
        sm_count=number("sm_count"),
        max_threads_per_sm=number("max_threads_per_sm"),
        estimated=tuple(
            "total_bytes" if column == "total_memory" else column
            for column in _listed(row["estimated"], " ")
        ),
    )


def _listed(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]


def _index(
    spelled: Iterable[tuple[CatalogueGpu, Iterable[str]]],
) -> dict[str, tuple[CatalogueGpu, ...]]:
    found: dict[str, dict[str, CatalogueGpu]] = {}
    for gpu, texts in spelled:
        for text in texts:
            found.setdefault(_squeezed(text), {})[gpu.key] = gpu
    return {spelling: tuple(gpus.values()) for spelling, gpus in found.items()}


def _with_size(gpu: CatalogueGpu, row: dict[str, str]) -> Iterator[str]:
    """Yield the name and the key with the memory at the end: `80g`, `80gb`, `80gib`."""
    for text in (gpu.name, gpu.key):
        for size in _sizes(row):
            yield f"{_without_size(text, row)} {size}"


def _shortened(gpu: CatalogueGpu, row: dict[str, str]) -> Iterator[str]:
    """Yield the name and the key without memory, without form factor, without both."""
    for text in (gpu.name, gpu.key):
        bare = _without_size(text, row)
        words = _words(bare)
        plain = " ".join(word for word in words if not _FORM_FACTOR.fullmatch(word))
        sxm = " ".join("sxm" if word.startswith("sxm") else word for word in words)
        mobile = bare.lower().replace("laptop", "mobile")
        for short in (bare, plain, sxm, mobile):
            yield short
            yield from (f"{short} {size}" for size in _sizes(row))


def _sizes(row: dict[str, str]) -> list[str]:
    return [f"{row['memory_gb']}{unit}" for unit in ("g", "gb", "gib")]


def _without_size(text: str, row: dict[str, str]) -> str:
    return " ".join(word for word in _words(text) if word not in _sizes(row))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _squeezed(text: str) -> str:
    """Return a name without case, separators and words that do not distinguish cards."""
    letters = _NOISE.sub("", "".join(_words(text)))
    return re.sub(r"^(rtx|gtx)(?=.)", "", letters)
