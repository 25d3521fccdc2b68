"""What the shell offers for the values of options, while they are typed.

Values are completed in a process of their own each time, so nothing is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

Completer = Callable[[str], list[str]]


def one_of(choices: Sequence[str]) -> Completer:
    """Complete one of several values."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def names(choices: Sequence[str]) -> Completer:
    """Complete the last of several names between commas; none is offered twice."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        taken = before.split(",")
        left = [choice for choice in choices if choice not in taken and choice.startswith(last)]
        return [f"{before}{comma}{choice}" for choice in left]

    return complete


def gpus(incomplete: str) -> list[str]:
    """Complete the short name of a known GPU."""
    from bsfind.simulation.gpus.catalogue import known_gpus

    return [gpu.key for gpu in known_gpus() if gpu.key.startswith(incomplete.lower())]


def profiles(incomplete: str) -> list[str]:
    """Complete a profile of the nearest configuration file."""
    from bsfind.cli.configuration import find_configuration, profile_names
    from bsfind.errors import UsageError

    try:
        file = find_configuration(Path.cwd())
        found = profile_names(file) if file else []
    except UsageError:  # not TOML: the command will say so, the shell's prompt is no place for it
        found = []
    return [name for name in found if name.startswith(incomplete)]
