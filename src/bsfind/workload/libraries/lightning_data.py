"""The batches of a LightningModule: how `training_step` takes them, and what its data loader gives.

The data loader is that of the module, or of the LightningDataModule in the same file. Its first samples
tell the inputs. Nothing is downloaded: `prepare_data` is not called.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bsfind.errors import BsfindError
from bsfind.inputs import InputSpec
from bsfind.workload.inputs import BatchForm
from bsfind.workload.libraries.base import Proposal, input_like
from bsfind.workload.libraries.lightning_module import lightning_class
from bsfind.workload.libraries.targets import find_target
from bsfind.workload.user_errors import text_of

_SAMPLES = 32
"""Samples of a data loader that are looked at: the longest of them decides, and the range of integers."""

_MOST_PARTS = 64
"""Parts that a batch may be taken apart into."""

_OF_A_DICT = ("get", "items", "keys", "pop", "values")


# ------------------------------------------------------------------------------ the form of a batch


class _Taken(BaseException):
    """Ends `training_step` where it looks into its batch."""

    def __init__(self, form: BatchForm) -> None:
        super().__init__()
        self.form = form


class _Unknown:
    """Stands for a batch, and tells what is asked of it."""

    def __init__(self) -> None:
        self.parts = 0

    def __iter__(self) -> Iterator[None]:
        for self.parts in range(_MOST_PARTS):
            yield None
        raise _Taken(BatchForm(kind="sequence"))

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int):
            raise _Taken(BatchForm(kind="sequence"))
        if isinstance(key, str):
            raise _Taken(BatchForm(kind="mapping", name=key))
        raise _Taken(BatchForm())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _Taken(BatchForm(kind="mapping" if name in _OF_A_DICT else "whole"))


def form_of_batch(training_step: Callable[[Any], object]) -> BatchForm:
    """Call `training_step` with what stands for a batch; return how it takes that."""
    batch = _Unknown()
    try:
        training_step(batch)
    except _Taken as taken:
        return taken.form
    except Exception:
        if batch.parts:  # one more than was wanted: too many values to unpack
            return BatchForm(kind="sequence", parts=batch.parts)
    return BatchForm()


# -------------------------------------------------------------------------------- data loaders


class LightningData:
    """The data loaders of a LightningModule.

    Args:
        target: names the module.
        model: the module.

    Attributes:
        failures: why loaders gave no samples.
    """

    def __init__(self, target: str, model: nn.Module) -> None:
        self._target = target
        self._model: Any = model
        self.failures: list[str] = []

    @functools.cached_property
    def datamodule(self) -> Any:
        """The only LightningDataModule beside the module, set up to fit; None: there is none that works."""
        classes = set(_datamodules_beside(self._target, self._model))
        if len(classes) != 1:
            return None
        cls = classes.pop()
        try:
            made: Any = cls()
            made.trainer = self._model.trainer
            made.setup(stage="fit")
        except BsfindError:
            raise
        except Exception as error:
            self.failures.append(f"`{cls.__name__}` could not be set up: {text_of(error)}")
            return None
        return made

    def propose(self) -> Proposal | None:
        """Return inputs like the first samples of a loader; None if none gives any."""
        base = lightning_class(self._model)
        own = type(self._model)
        if getattr(own, "train_dataloader", None) is not getattr(base, "train_dataloader", None):
            found = self._of(self._model)
            if found is not None:
                return found
        return self._of(self.datamodule) if self.datamodule is not None else None

    def _of(self, owner: Any) -> Proposal | None:
        name = f"{type(owner).__name__}.train_dataloader()"
        try:
            loader = owner.train_dataloader()
            specs = _specs_of(_first_samples(loader))
        except BsfindError:
            raise
        except Exception as error:
            self.failures.append(f"`{name}` gave no samples: {text_of(error)}")
            return None
        if specs is None:
            self.failures.append(
                f"`{name}` gives batches that are not tensors, nor lists or dicts of tensors"
            )
            return None
        if _vary(loader, specs):
            why = f"the largest of the first {_SAMPLES} samples of `{name}`; larger ones are not covered"
            return Proposal(inputs=specs, why=why)
        return Proposal(inputs=specs, why=f"the first samples of `{name}`")


def _datamodules_beside(target: str, model: object) -> Iterator[type]:
    """Yield the classes of LightningDataModules in the files of the target and of the module's class."""
    names = {type(model).__module__}
    with contextlib.suppress(AttributeError):
        names.add(find_target(target).__module__)
    for name in names:
        for value in list(vars(sys.modules.get(name, sys)).values()):
            if isinstance(value, type) and any(
                cls.__name__ == "LightningDataModule" for cls in value.__mro__[1:]
            ):
                yield value


def _first_samples(loader: Any) -> Any:
    """Return a batch of the first samples of a loader, without its workers where it has a data set."""
    dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    if dataset is None or collate is None or getattr(loader, "batch_sampler", None) is None:
        return next(iter(loader))
    if isinstance(dataset, torch.utils.data.IterableDataset):
        return collate(list(itertools.islice(dataset, _SAMPLES)))
    return collate([dataset[index] for index in range(min(_SAMPLES, len(dataset)))])


def _vary(loader: Any, specs: Sequence[InputSpec]) -> bool:
    """Tell whether some of the first samples of a loader are smaller than all of them together."""
    shapes = [spec.shape for spec in specs]
    with contextlib.suppress(Exception):  # it has no data set, or collates no single sample
        for index in range(min(_SAMPLES, len(loader.dataset))):
            alone = _specs_of(loader.collate_fn([loader.dataset[index]]))
            if alone is not None and [spec.shape for spec in alone] != shapes:
                return True
    return False


def _specs_of(batch: Any) -> tuple[InputSpec, ...] | None:
    """Return the inputs that a batch is an example of; None if it is of another form."""
    parts: list[tuple[str | None, Any]] = [(None, batch)]
    if isinstance(batch, Mapping):
        parts = [(str(name), value) for name, value in batch.items()]
    elif isinstance(batch, (list, tuple)):
        parts = [(None, value) for value in batch]
    specs = [input_like(value, name) for name, value in parts]
    found = [spec for spec in specs if spec is not None]
    if not found or len(found) < len(specs) or len({len(value) for _, value in parts}) > 1:
        return None
    if any(name is not None and not name.isidentifier() for name, _ in parts):
        return None
    return tuple(found)
