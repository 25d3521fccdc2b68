"""Fills the placeholders of a launched command: in its arguments, its environment, and copies of files."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bsfind.errors import UsageError
from bsfind.settings import BATCH_SIZE_PLACEHOLDER, VARIANT_PLACEHOLDER, Launch

_LARGEST_FILE = 16 << 20

WITHOUT_VARIANTS = "command"
"""The name of the row of a command that has no variants."""

TRACKERS: Mapping[str, str] = {"WANDB_MODE": "disabled", "NEPTUNE_MODE": "debug"}
"""Environment variables that keep trials out of trackers of experiments."""


_SEVERAL_MACHINES = re.compile(r"--(?:nnodes|num[-_]machines)[= ](?!1(?:\s|:|$))")
"""The options of torchrun and of `accelerate launch`; `1:4` begins with one machine."""


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A command that can be run: its arguments, and what its environment has besides."""

    arguments: list[str]
    variables: dict[str, str]

    @property
    def as_typed(self) -> str:
        """How it is written in a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return " ".join([*settings, shlex.join(self.arguments)])


def names_of(launch: Launch) -> list[str]:
    """Return the names of the rows: of the variants, in their order."""
    return [name for name, _ in launch.variants] or [WITHOUT_VARIANTS]


def trackers_off(launch: Launch) -> dict[str, str]:
    """Return the variables that are set for the trials: those that the user has not set."""
    given = {name for name, _ in launch.set_env} | set(os.environ)
    return {name: value for name, value in TRACKERS.items() if name not in given}


def check(launch: Launch) -> None:
    """Make sure that there is a command with placeholders, and that it can be found.

    Raises:
        UsageError: what is missing, or stands for nothing, or wants several machines.
    """
    texts = [*launch.command, *(text for _, text in launch.set_env)]
    for name in launch.substitute:
        text = _content(name)
        if not any(name in text for text in texts):
            raise UsageError(
                f"`--substitute {name}`: the command does not name this file",
                hint="its path has to be written as in the command, where that of the copy takes its place",
            )
        texts.append(text)
    if not any(BATCH_SIZE_PLACEHOLDER in text for text in texts):
        raise UsageError(
            "nothing tells the command its batch size: there is no `{batch_size}`",
            hint="write it where the number stands: `python train.py --batch-size {batch_size}`, `--set-env "
            "BS={batch_size}`, or in a file that `--substitute` names",
        )
    names = [name for name, _ in launch.variants]
    if len(set(names)) < len(names):
        raise UsageError("`--variant` has the same name twice")
    has_place = any(VARIANT_PLACEHOLDER in text for text in texts)
    if names and not has_place:
        raise UsageError(
            "`--variant` changes nothing: there is no `{variant}` in the command",
            hint="write it where the arguments belong: `python train.py {variant}`",
        )
    if has_place and not names:
        raise UsageError(
            "`{variant}` stands for nothing", hint="name variants: `--variant amp=--bf16`"
        )
    for filled in (fill(launch, name, 1, None) for name in names_of(launch)):
        if launch.listen is None and _SEVERAL_MACHINES.search(" ".join(filled.arguments)):
            raise several_machines()
        path = filled.variables.get("PATH", os.environ.get("PATH"))
        if shutil.which(filled.arguments[0], path=path) is None:
            raise UsageError(
                f"there is no program `{filled.arguments[0]}`",
                hint="the command follows `--`, the program first: `bsfind launch -- python train.py …`",
            )


def several_machines() -> UsageError:
    """Return the error of a command that trains on several machines."""
    return UsageError(
        "the command trains on several machines: `bsfind launch` hears only the ranks of this one",
        hint="`--listen HOST` hears those of others, where the command starts them, as srun does; or launch "
        "it on one machine: `torchrun --nnodes 1 …`",
    )


def fill(launch: Launch, name: str, batch_size: int, folder: Path | None) -> Filled:
    """Return the command of a variant with a batch size.

    Args:
        launch: the command.
        name: of the variant.
        batch_size: what stands for the placeholder.
        folder: where copies of files are written; None: none are made.

    Raises:
        UsageError: a file of `--substitute` cannot be read.
    """
    variant = dict(launch.variants).get(name, "")
    copies: dict[str, str] = {}
    for number, source in enumerate(launch.substitute):
        if folder is None:
            break
        place = folder / str(number)
        place.mkdir(exist_ok=True)
        copy = place / Path(source).name
        copy.write_text(_filled(_content(source), batch_size, variant), encoding="utf-8")
        copies[source] = str(copy)

    def with_copies(text: str) -> str:
        for source, copy in copies.items():
            text = text.replace(source, copy)
        return text

    arguments: list[str] = []
    for argument in launch.command:
        if argument == VARIANT_PLACEHOLDER:
            found = [_filled(part, batch_size, "") for part in shlex.split(variant)]
        else:
            found = [_filled(argument, batch_size, variant)]
        arguments += map(with_copies, found)
    variables = {
        key: with_copies(_filled(text, batch_size, variant)) for key, text in launch.set_env
    }
    return Filled(arguments=arguments, variables=variables)


def _filled(text: str, batch_size: int, variant: str) -> str:
    """Fill placeholders; all other braces stay as they are."""
    return text.replace(VARIANT_PLACEHOLDER, variant).replace(
        BATCH_SIZE_PLACEHOLDER, str(batch_size)
    )


def _content(name: str) -> str:
    try:
        with Path(name).open("rb") as stream:
            data = stream.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            raise UsageError(f"`--substitute {name}`: the file has more than 16 MiB")
        return data.decode()
    except OSError as error:
        raise UsageError(
            f"`--substitute {name}`: cannot be read: {error.strerror or error}"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"`--substitute {name}`: the file is not text in UTF-8") from None
