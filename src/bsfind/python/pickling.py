"""Pickles Python objects for a worker: without cloudpickle, those whose classes it can import.

The functions here that the pickles refer to run in the worker.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import io
import linecache
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import IO, Any

from bsfind.errors import UsageError
from bsfind.import_path import parse_import_path, resolve, resolve_function
from bsfind.python import gpu_variables
from bsfind.python.notebook import shell
from bsfind.python.object_paths import has_cloudpickle, importable

_LOADER = '''"""What bsfind was given as Python objects; in the worker, the module `__main__`."""

def _load_for_bsfind():
    import linecache, pathlib, pickle, sys, types

    sys.modules["__main__"] = sys.modules[__name__]
    with pathlib.Path(__file__).with_suffix(".pickle").open("rb") as data:
        sys.path.extend(folder for folder in pickle.load(data) if folder not in sys.path)
        globals()["bsfind_passed"] = types.SimpleNamespace(**pickle.load(data))
        for name, lines in pickle.load(data).items():
            linecache.cache[name] = (sum(map(len, lines)), None, lines, name)
        pickle.load(data)()

_load_for_bsfind()
'''


def write_pickle(objects: dict[str, Any], file: Path) -> list[str]:
    """Write a Python file that has these objects when the worker runs it, as `bsfind_passed.NAME`.

    Args:
        objects: by name.
        file: the file; the pickle is beside it.

    Returns:
        Names of variables that the objects refer to, which stay the CPU in the worker too.

    Raises:
        UsageError: a tensor is on a GPU, or cloudpickle is not installed.
        Exception: whatever the code of the objects raises.
    """
    sources: dict[str, list[str]] = {}
    variables = vars(sys.modules["__main__"])
    code = gpu_variables.sources() if has_cloudpickle() else []
    statements = gpu_variables.asking_statements(code, variables)
    modules = gpu_variables.modules_of(statements, variables)
    on_host: dict[str, None] = {}
    with file.with_suffix(".pickle").open("wb") as data:
        pickle.dump(sys.path, data)
        _pickler(data, sources, on_host).dump(objects)
        pickle.dump(sources, data)
        asks = functools.partial(gpu_variables.ask_again, statements, modules)
        _pickler(data, {}, {}).dump(asks)
    file.write_text(_LOADER, encoding="utf-8")
    return [name for name in on_host if name not in statements]


def _pickler(
    stream: IO[bytes], sources: dict[str, list[str]], on_host: dict[str, None]
) -> pickle.Pickler:
    """Return what pickles for the worker; with cloudpickle, also what has no import path.

    Args:
        stream: where to.
        sources: gets the lines of code that is in no file, by the name that tracebacks show.
        on_host: gets the names of variables and attributes that are the CPU as a device.
    """
    base: Any = pickle.Pickler
    if has_cloudpickle():
        import cloudpickle

        base = cloudpickle.Pickler

    class Pickler(base):  # type: ignore[misc]
        def reducer_override(self, thing: Any) -> Any:
            if isinstance(thing, CodeType):
                name = _name_of_code(thing.co_filename)
                if not Path(thing.co_filename).is_file():
                    sources[name] = linecache.getlines(thing.co_filename)
                return code_named, (name, *self.dispatch_table[CodeType](thing))
            if isinstance(thing, (type, FunctionType)) and thing.__module__ == "__main__":
                # In the worker, the script that runs is not `__main__`.
                try:
                    return resolve, (parse_import_path(importable(thing).path),)
                except UsageError:
                    if base is pickle.Pickler:
                        raise
            if isinstance(thing, _MainVariables):
                return main_variables, ()
            _check_tensor(thing)
            if (recipe := _recipe_of_compiled(thing)) is not None:
                return recipe
            for name in gpu_variables.names_of_host(_values(thing)):
                on_host[name] = None
            return NotImplemented if base is pickle.Pickler else super().reducer_override(thing)

    pickler: Any = Pickler(stream, pickle.HIGHEST_PROTOCOL)
    if base is not pickle.Pickler:
        # cloudpickle's copy of the variables of a module: here, what the worker has for them.
        pickler.globals_ref[id(vars(sys.modules["__main__"]))] = _MainVariables(stands_for="")
    return pickler  # type: ignore[no-any-return]


class _MainVariables(dict[str, str]):
    """Stands for the variables of `__main__`."""


def main_variables() -> dict[str, Any]:
    """Return the variables of `__main__`, which all functions of the program share."""
    return vars(sys.modules["__main__"])


def _recipe_of_compiled(thing: Any) -> tuple[Any, ...] | None:
    """Return how the worker makes what `torch.compile` returned, or what `module.compile` changed.

    Neither can be pickled as it is (torch/_dynamo/eval_frame.py, torch/nn/modules/module.py, torch 2.6-2.13).
    """
    function, compiler, original, again = thing, None, None, "compiled"
    if type(thing).__name__ == "OptimizedModule":
        compiler, original = getattr(thing, "dynamo_ctx", None), getattr(thing, "_orig_mod", None)
    elif hasattr(type(thing), "_call_impl") and vars(thing).get("_compiled_call_impl") is not None:
        function, original = vars(thing)["_compiled_call_impl"], copy.copy(thing)
        again = "compiled_in_place"
    elif isinstance(thing, FunctionType):
        original = vars(thing).get("_torchdynamo_orig_callable")
    if original is None:
        return None
    if compiler is None and isinstance(function, FunctionType):
        compiler = inspect.getclosurevars(function).nonlocals.get("self")
    if compiler is None:
        return None
    path = f"bsfind.workload.compilation:{again}"
    return call, (path, pickle.dumps(compiler), original)


def call(path: str, *arguments: Any) -> Any:
    """Call the function of an import path: the worker can import what this process cannot."""
    return resolve_function(path)(*arguments)


def code_named(name: str, make: Callable[..., CodeType], arguments: tuple[Any, ...]) -> CodeType:
    """Return a code object under the name of its file, which cloudpickle does not keep."""
    return make(*arguments).replace(co_filename=name)


def _name_of_code(file: str) -> str:
    """Return what tracebacks of the worker show for a file: `Cell In[3]` for a cell of a notebook."""
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        kind, name = shell().compile.format_code_name(file)
        return f"{kind} {name}"
    return file.strip("<>") if file.startswith("<") else file


def path_to_culprit(named: Any, seen: frozenset[int] = frozenset()) -> Iterator[str]:
    """Yield the names from an object to the variable for which it cannot be pickled."""
    for name, thing in named:
        if id(thing) in seen:
            continue
        try:
            _pickler(io.BytesIO(), {}, {}).dump(thing)
        except Exception:
            yield name
            yield from path_to_culprit(_variables(thing).items(), seen | {id(thing)})
            return


def _variables(thing: Any) -> dict[str, Any]:
    """Return what a function or the methods of a class refer to, by name."""
    if isinstance(thing, type):
        methods = [each for each in vars(thing).values() if isinstance(each, FunctionType)]
        return {name: value for each in methods for name, value in _variables(each).items()}
    if not isinstance(thing, FunctionType):
        return {}
    used = inspect.getclosurevars(thing)
    return {**used.globals, **used.nonlocals}


def _values(thing: Any) -> dict[str, Any]:
    """Return what a function, a class or an object refers to, by the names that a message shows."""
    if isinstance(thing, FunctionType):
        arguments = inspect.signature(thing).parameters.values()
        defaults = {f"{thing.__name__}.{each.name}": each.default for each in arguments}
        return {**inspect.getclosurevars(thing).globals, **defaults}
    name = thing.__name__ if isinstance(thing, type) else type(thing).__name__
    own = getattr(thing, "__dict__", {})
    return {f"{name}.{attribute}": value for attribute, value in own.items()}


def _check_tensor(thing: Any) -> None:
    """Refuse a tensor on a GPU that a function refers to: the worker's GPU may be another.

    Raises:
        UsageError: it is one.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(thing, torch.Tensor):
        return
    if thing.device.type not in ("cpu", "meta"):
        raise UsageError(
            f"what was passed refers to a tensor on `{thing.device}`, of shape {list(thing.shape)}",
            hint="make it inside the function, or keep it on the CPU and move it there",
        )
