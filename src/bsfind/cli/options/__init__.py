"""Every option, once: its flags, panel, environment variable, reader and help; a module for each panel.

Commands name the options they take in their signatures; `Annotated` carries the rest. Texts are
checked here, before torch is imported: a typo costs milliseconds.
"""

from bsfind.cli.options.device import ContextMemory, Device, Gpu, MemoryLimit
from bsfind.cli.options.inputs import BatchFn, Input, InputShape
from bsfind.cli.options.output import Color, ColorChoice, Export, Json, NoProgress, Quiet, Verbose
from bsfind.cli.options.search import (
    BatchSize,
    Compare,
    ConfirmSteps,
    GlobalBatch,
    Headroom,
    MaxBatchSize,
    MinBatchSize,
    MultipleOf,
    Objective,
    ObjectiveOption,
    Steps,
    TimeBudget,
    Tolerance,
    TrialTimeout,
    WorldSize,
)
from bsfind.cli.options.target import AppDir, ModelArg, Target
from bsfind.cli.options.training import (
    ChannelsLast,
    Compile,
    GradAccum,
    GradCheckpoint,
    Loss,
    Mode,
    ModeOption,
    Optimizer,
    OptimizerArg,
    Precision,
    Step,
)

__all__ = [
    "AppDir",
    "BatchFn",
    "BatchSize",
    "ChannelsLast",
    "Color",
    "ColorChoice",
    "Compare",
    "Compile",
    "ConfirmSteps",
    "ContextMemory",
    "Device",
    "Export",
    "GlobalBatch",
    "Gpu",
    "GradAccum",
    "GradCheckpoint",
    "Headroom",
    "Input",
    "InputShape",
    "Json",
    "Loss",
    "MaxBatchSize",
    "MemoryLimit",
    "MinBatchSize",
    "Mode",
    "ModeOption",
    "ModelArg",
    "MultipleOf",
    "NoProgress",
    "Objective",
    "ObjectiveOption",
    "Optimizer",
    "OptimizerArg",
    "Precision",
    "Quiet",
    "Step",
    "Steps",
    "Target",
    "TimeBudget",
    "Tolerance",
    "TrialTimeout",
    "Verbose",
    "WorldSize",
]
