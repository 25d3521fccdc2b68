"""`bsfind inspect`: what is the memory made of at this batch size?"""

from __future__ import annotations

import typer

from bsfind.cli import options as opt


def inspect(
    context: typer.Context,
    target: opt.Target,
    batch_size: opt.BatchSize,
    model_arg: opt.ModelArg = None,
    app_dir: opt.AppDir = ".",
    input_shape: opt.InputShape = None,
    input: opt.Input = None,
    batch_fn: opt.BatchFn = None,
    mode: opt.ModeOption = opt.Mode.train,
    loss: opt.Loss = "auto",
    optimizer: opt.Optimizer = "adamw",
    optimizer_arg: opt.OptimizerArg = None,
    step: opt.Step = None,
    grad_checkpoint: opt.GradCheckpoint = False,
    channels_last: opt.ChannelsLast = False,
    compile: opt.Compile = False,
    grad_accum: opt.GradAccum = 1,
    precision: opt.Precision = "fp32,amp",
    steps: opt.Steps = 3,
    trial_timeout: opt.TrialTimeout = "10m",
    device: opt.Device = "auto",
    gpu: opt.Gpu = None,
    context_memory: opt.ContextMemory = None,
    memory_limit: opt.MemoryLimit = None,
    json: opt.Json = False,
    top: opt.Top = 10,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
    color: opt.Color = opt.ColorChoice.auto,
    profile: opt.Profile = None,
) -> int:
    """Show what memory is made of at one batch size, and which modules hold it.

    Nothing runs: the GPU of this machine, or `--gpu`, is simulated.

    Exit 0 if it fits in every precision asked for, 1 if not.

    bsfind inspect mypkg.models:Net --batch-size 64 --input-shape 3,224,224
    bsfind inspect mypkg.models:Net -b 64 --input-shape 3,224,224 --precision amp --gpu a10g
    """
    from bsfind.cli.inspection import run_inspection  # `--help` goes without it
    from bsfind.cli.provenance import given_options, tell_provenance

    tell_provenance(context)
    return run_inspection(context.params, given_options(context))
