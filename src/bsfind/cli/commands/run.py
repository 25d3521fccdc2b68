"""`bsfind run`: find the batch size."""

from __future__ import annotations

import typer

from bsfind.cli import options as opt


def run(
    context: typer.Context,
    target: opt.Target,
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
    min_batch_size: opt.MinBatchSize = 1,
    max_batch_size: opt.MaxBatchSize = None,
    fail_under: opt.FailUnder = None,
    multiple_of: opt.MultipleOf = 1,
    tolerance: opt.Tolerance = "0.5%",
    headroom: opt.Headroom = "5%",
    objective: opt.ObjectiveOption = opt.Objective.largest,
    global_batch: opt.GlobalBatch = None,
    world_size: opt.WorldSize = 1,
    compare: opt.Compare = "",
    steps: opt.Steps = 3,
    confirm_steps: opt.ConfirmSteps = 20,
    trial_timeout: opt.TrialTimeout = "10m",
    time_budget: opt.TimeBudget = None,
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
    """Find the batch size that a model should train with.

    Trains the model for a few steps on synthetic inputs at several batch sizes, in each precision,
    records the peak memory of every trial, and recommends the batch size and precision to use.

    With `--gpu`, or at a terminal without a GPU, nothing runs: the same is predicted.

    bsfind run mypkg.models:Net --input-shape 3,224,224
    bsfind run train.py:make_model --input input_ids=512:int64:0..50257 --precision amp,bf16
    bsfind run mypkg.models:Net --input-shape 3,224,224 --gpu rtx-4090
    BS=$(bsfind run mypkg.models:Net --input-shape 3,224,224 --precision amp -q)
    """
    from bsfind.cli.provenance import given_options, tell_provenance
    from bsfind.cli.session import run_session  # `--help` goes without it

    tell_provenance(context)
    return run_session(context.params, given_options(context))
