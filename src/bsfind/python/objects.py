"""Models and functions that a Python program passes as objects, as the worker can import them.

A worker is another process, which imports what it trains:

    importable by name                `package.module:Net`, and the folder that it is found in
    defined in the script that runs   `path/script.py:Net` (the worker runs the script, not as main), if the
                                      script asks `if __name__ == "__main__"`
    everything else                   pickled into a folder, for as long as the search lasts

pickle takes instances of classes that can be imported. cloudpickle (the extra `bsfind[notebook]`) also takes
what another process cannot import: what the cells of a notebook and the prompt define, closures and lambdas,
with the variables that they refer to. All of it is one pickle, so that two functions share their variables.
"""

from __future__ import annotations

import functools
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

from bsfind.errors import UsageError
from bsfind.python.object_paths import ADVICE, ModelRef, folder_of, has_cloudpickle, importable
from bsfind.python.pickling import path_to_culprit, write_pickle


class PassedObjects:
    """The objects that one search is given.

    Args:
        folder: where `write` puts those that no other process can import.

    Attributes:
        on_host: names of variables that they refer to, which are the CPU in each process; `write` sets it.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "passed.py"
        self._prefix = f"{self._file}:bsfind_passed."
        self._objects: dict[str, Any] = {}
        self.on_host: list[str] = []

    def model(self, model: Any) -> ModelRef:
        """Return where the worker finds a model.

        Args:
            model: an import path, a class, a function, or an instance.

        Raises:
            UsageError: another process cannot get it.
        """
        if isinstance(model, str):
            return ModelRef(model)
        if isinstance(model, (type, FunctionType)):
            return self._named(model)
        try:
            is_module = callable(getattr(model, "parameters", None))
            if is_module:
                _check_on_host(model)
        except UsageError:
            raise
        except Exception as error:  # whatever its own code raises
            raise _cannot_be_passed(f"this `{type(model).__name__}`", error) from None
        if not is_module and not callable(model):
            raise UsageError(
                f"a `{type(model).__name__}` is not a model",
                hint="pass an import path, an `nn.Module` class or instance, or a function that returns one",
            )
        return ModelRef(self._added(model), folder_of(type(model)) if is_module else None)

    def function(self, function: Any, option: str) -> str:
        """Return the name or the import path of a loss, an optimizer, a step or a batch function.

        Raises:
            UsageError: another process cannot get it.
        """
        if isinstance(function, str):
            return function
        module = getattr(function, "__module__", "") or ""
        if isinstance(function, type) and module.startswith("torch.optim."):
            return function.__name__  # as the command line names it
        if option == "loss" and (name := _loss_with_targets(function)) is not None:
            return name
        if isinstance(function, (type, FunctionType)):
            return self._named(function).path
        if not callable(function):
            hint = "pass its class, or a function of the parameters that returns it"
            raise UsageError(
                f"`{option}` is a `{type(function).__name__}`, not a function",
                hint=hint if option == "optimizer" else "",
            )
        return self._added(function)

    def _named(self, thing: type | FunctionType) -> ModelRef:
        try:
            return importable(thing)
        except UsageError:
            if not has_cloudpickle():
                raise
        return ModelRef(self._added(thing))

    def _added(self, thing: Any) -> str:
        called = thing.func if isinstance(thing, functools.partial) else thing
        name = re.sub(r"\W+", "", getattr(called, "__name__", type(called).__name__))
        while self._objects.get(name, thing) is not thing:
            name += "_"
        self._objects[name] = thing
        return f"{self._prefix}{name}"

    def __bool__(self) -> bool:
        """Whether there is something that exists during the search alone."""
        return bool(self._objects)

    def shown(self, text: str) -> str:
        """Return a text without the folder that exists during the search alone."""
        return text.replace(self._prefix, "")

    def write(self) -> None:
        """Pickle what no other process can import.

        Raises:
            UsageError: that is not possible.
        """
        if not self._objects:
            return
        try:
            self.on_host = write_pickle(self._objects, self._file)
        except UsageError:
            raise
        except Exception as error:  # whatever the code of the objects raises
            names = tuple(path_to_culprit(self._objects.items()))
            what = f"`{names[-1]}`" if names else "what was passed"
            through = f", which `{names[-2]}` refers to," if len(names) > 1 else ""
            raise _cannot_be_passed(f"{what}{through}", error) from None


_LOSSES_WITH_TARGETS = {
    "CrossEntropyLoss": "cross-entropy",
    "cross_entropy": "cross-entropy",
    "MSELoss": "mse",
    "mse_loss": "mse",
}


def _loss_with_targets(loss: Any) -> str | None:
    """Return the name of torch's losses for which bsfind makes targets; None for others.

    A module whose arguments are not the defaults computes another loss.
    """
    kind = loss if isinstance(loss, (type, FunctionType)) else type(loss)
    name = _LOSSES_WITH_TARGETS.get(kind.__name__)
    if name is None or not (kind.__module__ or "").startswith("torch.nn."):
        return None
    if kind is not loss and repr(vars(loss)) != repr(vars(kind())):
        return None
    return name


def _cannot_be_passed(what: str, error: Exception) -> UsageError:
    return UsageError(
        f"{what} cannot be handed to the process that runs the model",
        detail="".join(traceback.format_exception_only(error)).strip(),
        hint="make it inside the function that uses it; or put the code into a module "
        "(`%%writefile models.py` in a notebook), and pass 'models.py:Net'"
        if has_cloudpickle()
        else ADVICE,
    )


def _check_on_host(model: Any) -> None:
    """Refuse a model that holds memory of the GPU, which the search would then count as taken.

    Raises:
        UsageError: a parameter or buffer is on a device.
    """
    tensors: list[Callable[[], Any]] = [model.parameters]
    if callable(getattr(model, "buffers", None)):
        tensors.append(model.buffers)
    for place in {tensor.device.type for make in tensors for tensor in make()} - {"cpu", "meta"}:
        raise UsageError(
            f"the model is on `{place}` already: its memory there cannot be searched",
            hint="pass its class and `model_arg`, or the instance after `model.cpu()`",
        )
