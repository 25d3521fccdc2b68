"""Variables of a program that depend on the GPU: `device = "cuda" if torch.cuda.is_available() else "cpu"`.

On a machine without a GPU, such a variable names the CPU, also for a prediction of a GPU. The statements
that bind these variables are run again by the worker, where torch answers for the GPU of the search. Only
statements are that ask torch, and do nothing else.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from bsfind.python.notebook import shell

_NODES = (
    *(ast.Assign, ast.AnnAssign, ast.If, ast.IfExp, ast.BoolOp, ast.boolop, ast.UnaryOp),
    *(ast.unaryop, ast.Compare, ast.cmpop, ast.Call, ast.keyword, ast.Attribute, ast.Name),
    *(ast.expr_context, ast.Constant, ast.JoinedStr, ast.FormattedValue),
)
"""What statements that are run again consist of."""

_QUESTIONS = ("is_", "get_device", "current_", "device_count", "mem_get_info")
"""How the names of torch's functions begin that ask for something."""

_BUILTINS = ("bool", "getattr", "hasattr", "int", "str")


def sources() -> list[str]:
    """Return the code that has run as `__main__`, in order: the cells of a notebook, or the script."""
    if (history := getattr(shell(), "history_manager", None)) is not None:
        return [str(cell) for cell in history.input_hist_parsed]
    file = getattr(sys.modules["__main__"], "__file__", None)
    try:
        return [Path(file).read_text(encoding="utf-8")] if file else []
    except (OSError, UnicodeDecodeError):
        return []


def asking_statements(code: Iterable[str], variables: Mapping[str, Any]) -> dict[str, str]:
    """Return the statements that bind variables to what torch answers about GPUs.

    Args:
        code: texts of modules, in the order in which they ran.
        variables: those that they left behind.

    Returns:
        The last statement of each variable, by its name, in order. There is none for a variable that
        something else has bound since, or whose statement reads what may be another in the worker.
    """
    found: dict[str, str] = {}
    read: dict[str, set[str]] = {}
    for text in code:
        try:
            statements = ast.parse(text).body
        except (SyntaxError, ValueError):
            continue
        for statement in statements:
            bound = set(_bound(statement))
            names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)} - bound
            asks = _asks(statement, variables, found)
            for name in [name for name in found if name in bound or read[name] & bound]:
                del found[name]
            if asks:
                found.update(dict.fromkeys(bound, ast.unparse(statement)))
                read.update(dict.fromkeys(bound, names))
    return found


def modules_of(statements: Mapping[str, str], variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return what statements read besides each other: modules and functions of torch, by name."""
    nodes = [node for text in statements.values() for node in ast.walk(ast.parse(text))]
    names = {node.id for node in nodes if isinstance(node, ast.Name)} - statements.keys()
    return {name: variables[name] for name in names if name in variables}


def ask_again(statements: Mapping[str, str], modules: Mapping[str, Any]) -> None:
    """Bind the variables of `__main__` again; the worker calls it.

    Args:
        statements: of `asking_statements`.
        modules: of `modules_of`.
    """
    bound = dict(modules)
    for text in dict.fromkeys(statements.values()):
        exec(text, bound)
    variables = vars(sys.modules["__main__"])
    variables.update({name: bound[name] for name in statements if name in bound})


def names_of_host(variables: Mapping[str, Any]) -> list[str]:
    """Return the names of variables that are a device, and not one of CUDA."""

    def is_host(value: Any) -> bool:
        is_name = isinstance(value, str) or type(value).__name__ == "device"
        return is_name and str(value) in ("cpu", "mps", "mps:0")

    return [
        name
        for name, value in variables.items()
        if name.lower().endswith("device") and "._" not in name and is_host(value)
    ]


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement may bind."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]


def _asks(statement: ast.stmt, variables: Mapping[str, Any], found: Mapping[str, str]) -> bool:
    """Tell whether a statement does nothing but bind names to what follows from torch's answers."""
    asks = False
    for node in ast.walk(statement):
        if not isinstance(node, _NODES):
            return False
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if not all(isinstance(target, ast.Name) for target in targets):
                return False
        elif isinstance(node, ast.Call):
            if (is_question := _is_question(node.func, variables)) is None:
                return False
            asks |= is_question
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            if not (node.id in found or _is_of_torch(node.id, variables)):
                return False
            asks |= node.id in found
    return asks


def _is_question(function: ast.expr, variables: Mapping[str, Any]) -> bool | None:
    """Tell whether a call asks torch for something; None: what it calls may do anything."""
    called = _resolved(function, variables)
    name = getattr(called, "__name__", "")
    if called is getattr(builtins, name, None) and name in _BUILTINS:
        return False
    if (getattr(called, "__module__", None) or "").partition(".")[0] != "torch":
        return None
    if isinstance(called, type):
        return False if name in ("device", "dtype") else None
    return True if name.startswith(_QUESTIONS) else None


def _resolved(expression: ast.expr, variables: Mapping[str, Any]) -> Any:
    """Return what a name such as `torch.cuda.is_available` stands for; None: nothing of a module."""
    if isinstance(expression, ast.Name):
        return variables.get(expression.id, getattr(builtins, expression.id, None))
    if not isinstance(expression, ast.Attribute):
        return None
    owner = _resolved(expression.value, variables)
    return getattr(owner, expression.attr, None) if isinstance(owner, ModuleType) else None


def _is_of_torch(name: str, variables: Mapping[str, Any]) -> bool:
    """Tell whether a name stands for a module, class or function of torch, or for a built-in function."""
    if name not in variables:
        return name in _BUILTINS
    value = variables[name]
    module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    return (module or "").partition(".")[0] == "torch"
