"""One training run that the simulator and PyTorch's CUDA build must agree on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bsfind.inputs import InputSpec, parse_input, parse_input_shape
from bsfind.settings import Workload

__all__ = ["AMP", "STANDARD", "Case", "Run", "case"]

STANDARD = ("fp32", "amp-fp16", "amp-bf16")
"""The precisions of a case that names none."""

AMP = ("amp-fp16", "amp-bf16")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A case at one precision and batch size.

    Attributes:
        case: what is trained.
        precision: a key of `bsfind.workload.precision`.
        batch_size: samples.
        steps: optimizer steps.
    """

    case: Case
    precision: str
    batch_size: int
    steps: int = 3

    def __str__(self) -> str:
        return f"{self.case.name}-{self.precision}-{self.batch_size}"

    def to_json(self) -> dict[str, Any]:
        """Return what the fake GPU runs, as JSON types."""
        return {
            "name": self.case.name,
            "workload": (self.case.written_out or self.case.workload).to_message(),
            "precision": self.precision,
            "batch_size": self.batch_size,
            "steps": self.steps,
            "builds_on_gpu": self.case.builds_on_gpu,
        }


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and how it is trained.

    Attributes:
        name: unique in a corpus.
        family: of models: `vision`, `language`, ...
        kind: which operators its memory is made of: `convolutional`, `attention`, `recurrent`,
            or `other`.
        workload: what bsfind would be asked.
        batch_sizes: to try; the first one in tests.
        precisions: to try.
        branches_on_values: the model reads values that it computed and takes another way because of
            them. The fake GPU computes nothing, so its way may not be the one of hardware.
        builds_on_gpu: the constructor itself needs the GPU.
        written_out: the same model with the values that it reads written into it, for the fake GPU, which
            reads zeros; None: the fake GPU runs `workload`.
    """

    name: str
    family: str
    kind: str
    workload: Workload
    batch_sizes: tuple[int, ...] = (4,)
    precisions: tuple[str, ...] = STANDARD
    branches_on_values: bool = False
    builds_on_gpu: bool = False
    written_out: Workload | None = None

    def runs(self) -> Iterator[Run]:
        """Yield every combination of batch size and precision."""
        for batch_size in self.batch_sizes:
            for precision in self.precisions:
                yield Run(case=self, precision=precision, batch_size=batch_size)


def case(
    family: str,
    module: str,
    name: str,
    attribute: str,
    *inputs: str,
    args: Mapping[str, Any] | None = None,
    kind: str = "other",
    batch_sizes: tuple[int, ...] = (4,),
    precisions: tuple[str, ...] = STANDARD,
    branches_on_values: bool = False,
    builds_on_gpu: bool = False,
    written_out: str | None = None,
    **workload: Any,
) -> Case:
    """Return a case, written as on bsfind's command line.

    Args:
        family: see `Case`.
        module: where the model is.
        name: see `Case`.
        attribute: the model's class or factory in `module`.
        inputs: `3,64,64` as for `--input-shape`, `ids=16:int64:0..100` as for `--input`.
        args: keyword arguments of the class or factory.
        kind: see `Case`.
        batch_sizes: see `Case`.
        precisions: see `Case`.
        branches_on_values: see `Case`.
        builds_on_gpu: see `Case`.
        written_out: the attribute of the model of `Case.written_out`.
        workload: further fields of `Workload`; names of functions (`step`, `loss`, `optimizer`,
            `batch_fn`) that begin with a colon are in `module`.
    """
    for field in ("step", "loss", "optimizer", "batch_fn"):
        if str(workload.get(field, "")).startswith(":"):
            workload[field] = f"{module}{workload[field]}"
    optimizer_args = workload.pop("optimizer_args", {})
    asked = Workload(
        target=f"{module}:{attribute}",
        model_args=_as_text(args or {}),
        inputs=tuple(_spec(text) for text in inputs),
        optimizer_args=_as_text(optimizer_args),
        **workload,
    )
    return Case(
        name=name,
        family=family,
        kind=kind,
        workload=asked,
        batch_sizes=batch_sizes,
        precisions=precisions,
        branches_on_values=branches_on_values,
        builds_on_gpu=builds_on_gpu,
        written_out=replace(asked, target=f"{module}:{written_out}") if written_out else None,
    )


def _spec(text: str) -> InputSpec:
    return parse_input(text) if "=" in text else parse_input_shape(text)


def _as_text(arguments: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in arguments.items())
