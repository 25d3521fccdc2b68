"""Which option sets which field of the settings, and the command line that asks for the same again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from bsfind.inputs import InputSpec
from bsfind.option_types import OptionType
from bsfind.parallel import Parallel
from bsfind.settings import DeviceChoice, Launch, SearchLimits, Settings, Workload

_LAST = (
    *("compare", "time_budget", "steps", "trial_timeout"),
    *("device", "gpu", "context_memory", "nccl_memory", "memory_limit", "torch_version"),
)
"""The options that a reproducing command line names behind the others, in this order."""


@dataclass(frozen=True)
class Setting:
    """A field of the settings that an option sets.

    Attributes:
        option: the option, as a Python identifier: `trial_timeout` for `--trial-timeout`.
        part: the attribute of `Settings` that has the field; "": `Settings` itself.
        field: the name of the field.
        default: its default.
        kind: how its values are read and written.
    """

    option: str
    part: str
    field: str
    default: Any
    kind: OptionType

    @property
    def shown_default(self) -> Any:
        """The default as help and signatures show it: a number, a flag, or a text."""
        return self.kind.shown(self.default)

    @property
    def is_of_search(self) -> bool:
        """Whether a `check`, which tries one size, goes without it."""
        is_limit = self.part == "limits" or self.option in ("compare", "nproc_per_node")
        return is_limit and self.option not in ("steps", "trial_timeout")

    def arguments(self, settings: Settings) -> list[str]:
        """Return the arguments of the command line for it; [] where it has its default."""
        owner = getattr(settings, self.part) if self.part else settings
        value = self.default if owner is None else getattr(owner, self.field)
        if value == self.default:
            return []
        if value is True:
            return [self._flag(value)]
        values = value if self.kind.repeats else (value,)
        return [argument for one in values for argument in (self._flag(one), self.kind.write(one))]

    def _flag(self, value: Any) -> str:
        if isinstance(value, InputSpec) and value.name is None:
            return "--input-shape"
        return f"--{self.option.replace('_', '-')}"


def _settings_of(cls: type, part: str) -> Iterator[Setting]:
    for found in fields(cls):
        if "kind" in found.metadata:
            option = found.metadata["option"] or found.name
            yield Setting(option, part, found.name, found.default, found.metadata["kind"])


SETTINGS: Mapping[str, Setting] = {
    setting.option: setting
    for cls, part in (
        *((Workload, "workload"), (Settings, ""), (Parallel, "parallel")),
        *((SearchLimits, "limits"), (DeviceChoice, "device"), (Launch, "launch")),
    )
    for setting in _settings_of(cls, part)
}
"""The fields that options set, by the options' names."""


def arguments_of(settings: Settings) -> list[str]:
    """Return the shortest command line (after `bsfind`) that asks for the same again."""
    is_check = settings.batch_size is not None
    written = [
        (name, setting.arguments(settings))
        for name, setting in SETTINGS.items()
        if not (is_check and setting.is_of_search)
        and not (name == "device" and settings.device.is_simulated)  # `--gpu` says so
    ]
    written.sort(key=lambda item: _LAST.index(item[0]) if item[0] in _LAST else -1)
    arguments = [argument for _, found in written for argument in found]
    if settings.workload.axis is not None:
        arguments += ["--batch-size", str(settings.workload.axis.batch_size)]
    if settings.launch is not None:
        return ["launch", *arguments, "--", *settings.launch.command]
    return ["check" if is_check else "run", settings.workload.target, *arguments]
