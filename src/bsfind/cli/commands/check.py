"""`bsfind check`: does this batch size fit?"""

from __future__ import annotations

import typer

from bsfind.cli import options as opt


def check(
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
    no_lock: opt.NoLock = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    export: opt.Export = None,
    plot: opt.Plot = False,
    github: opt.GitHub = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
    color: opt.Color = opt.ColorChoice.auto,
    profile: opt.Profile = None,
) -> int:
    """Try one batch size: does it fit?

    Exit 0 if it fits in every precision in which the model runs, 1 if not.

    bsfind check mypkg.models:Net --batch-size 64 --input-shape 3,224,224
    bsfind check mypkg.models:Net -b 64 --input-shape 3,224,224 --memory-limit 8GiB
    bsfind check mypkg.models:Net -b 64 --input-shape 3,224,224 --gpu a10g
    """
    from bsfind.cli.provenance import given_options, tell_provenance
    from bsfind.cli.session import run_session  # `--help` goes without it

    tell_provenance(context)
    return run_session(context.params, given_options(context))
