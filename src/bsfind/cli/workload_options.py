"""The options about what is trained: target, inputs, training, several GPUs, precision (see `options`)."""

from __future__ import annotations

from bsfind import option_types as types
from bsfind.cli.parameters import Option, one_of
from bsfind.parallel import STRATEGIES
from bsfind.settings import LOSSES, PRECISIONS

_ALL = ("run", "check", "inspect")
_RUN = ("run",)
_TRAINS = ("run", "check")

WORKLOAD_OPTIONS: tuple[Option, ...] = (
    # ----------------------------------------------------------------------------------- Target
    Option(
        "--model-arg",
        panel="Target",
        commands=_ALL,
        metavar="KEY=VALUE",
        help="Keyword argument of the class or function; repeatable. "
        "`KEY=pkg.mod:attr()` passes what the call returns.",
    ),
    Option(
        "--app-dir",
        panel="Target",
        commands=_ALL,
        metavar="DIR",
        help="Folder that is put first on `sys.path`.",
    ),
    # ----------------------------------------------------------------------------------- Inputs
    Option(
        "--input-shape",
        panel="Inputs",
        commands=_ALL,
        kind=types.INPUT_SHAPE,
        metavar="SHAPE[:DTYPE[:LOW..HIGH]]",
        help="A positional input, such as `3,224,224` (without the batch dimension; float32) or "
        "`128:int64:0..30522`; repeatable.",
    ),
    Option(
        "--input",
        panel="Inputs",
        commands=_ALL,
        metavar="NAME=SHAPE[:DTYPE[:LOW..HIGH]]|@OTHER|=VALUE",
        help="A keyword input; repeatable. `labels=:int64:0..2` is one number per sample, `labels=@ids` the "
        "same tensor as the input `ids`; `return_loss=True` and `frames==16` are constants; `batch.image=…` "
        "is an item of a dict.",
    ),
    Option(
        "--seq-len",
        panel="Inputs",
        commands=_ALL,
        metavar="N,…",
        shows_default=False,
        help="Tokens of each sample, where inputs follow from the model (without it, as many as the model "
        "takes, up to 1024) or the function of `--batch-fn` has an argument `seq_len`. Several lengths have "
        "rows of their own; the answer is for the longest.",
    ),
    Option(
        "--image-size",
        panel="Inputs",
        commands=_ALL,
        metavar="PIXELS",
        shows_default=False,
        help="Height and width of images, where inputs follow from the model or the function of "
        "`--batch-fn` has an argument `image_size`.",
    ),
    Option(
        "--batch-fn",
        panel="Inputs",
        commands=_ALL,
        metavar="pkg.mod:fn",
        help="Makes the batches: `fn(batch_size, device)` returns a tensor, tuple, dict or (args, kwargs). "
        "If it makes some tensors on `device`, the others stay on the CPU; if none, all are moved. "
        "`bsfind.batches:` has `detection`, `detr`, `image_text`, `yolo` and `graphs`.",
    ),
    Option(
        "--batch-arg",
        panel="Inputs",
        commands=_ALL,
        metavar="KEY=VALUE",
        help="Keyword argument of that function; repeatable.",
    ),
    # --------------------------------------------------------------------------------- Training
    Option(
        "--mode",
        panel="Training",
        commands=_ALL,
        help="Training steps, or forward passes alone.",
    ),
    Option(
        "--loss",
        panel="Training",
        commands=_ALL,
        metavar="|".join((*LOSSES, "pkg.mod:fn")),
        help="Loss of the output. auto: the model's own, from synthetic labels if it takes some, or what "
        "suits the output; a mean where nothing does. A function is called as `fn(output)`.",
    ),
    Option(
        "--optimizer",
        panel="Training",
        commands=_ALL,
        metavar="NAME|pkg.mod:fn",
        complete=one_of(("adamw", "sgd", "adam")),
        help="adamw, sgd, adam, any name of torch.optim, or a function of the parameters.",
    ),
    Option(
        "--optimizer-arg",
        panel="Training",
        commands=_ALL,
        metavar="KEY=VALUE",
        help="Keyword argument of the optimizer; repeatable.",
    ),
    Option(
        "--step",
        panel="Training",
        commands=_ALL,
        metavar="pkg.mod:fn",
        help="Your own forward pass: `fn(model, *args, **kwargs)` runs inside autocast and returns the loss; "
        "None if it has stepped its own optimizers.",
    ),
    Option(
        "--grad-checkpoint",
        panel="Training",
        commands=_ALL,
        help="Activation checkpointing: recompute activations in the backward pass.",
    ),
    Option(
        "--channels-last",
        panel="Training",
        commands=_ALL,
        help="Use the channels_last memory format.",
    ),
    Option(
        "--compile",
        panel="Training",
        commands=_ALL,
        help="Run the model through torch.compile.",
    ),
    Option(
        "--grad-accum",
        panel="Training",
        commands=_ALL,
        metavar="N",
        help="Micro-batches per optimizer step; batch sizes are those of a micro-batch.",
    ),
    Option(
        "--with-eval",
        panel="Training",
        commands=_TRAINS,
        help="Evaluate after the steps of a trial, as a trainer does between epochs.",
    ),
    Option(
        "--eval-batch-size",
        panel="Training",
        commands=_TRAINS,
        metavar="N",
        shows_default=False,
        help="Samples in a batch of the evaluation; without it, as many as in training.",
    ),
    # --------------------------------------------------------------------------------- Parallel
    Option(
        "--parallel",
        panel="Parallel",
        commands=_ALL,
        metavar="|".join((*STRATEGIES, "pkg.mod:fn")),
        help="How several GPUs share the training: ddp, fsdp (FSDP2, `fully_shard`), hsdp, zero1, or "
        "`fn(model, mesh)`, which returns the wrapped model. Batch sizes are those of one GPU.",
    ),
    Option(
        "--world-size",
        panel="Parallel",
        commands=_ALL,
        metavar="N|auto",
        help="GPUs in all, one for each rank, which share the global batch; auto: the smallest number on "
        "which the model trains with fsdp.",
    ),
    Option(
        "--nproc-per-node",
        panel="Parallel",
        commands=_RUN,
        metavar="N|gpu",
        shows_default=False,
        help="Run so many ranks on the GPUs of this machine, under torchrun; gpu: one on each. Without it, "
        "one rank runs, and the others are absent.",
    ),
    Option(
        "--replicas",
        panel="Parallel",
        commands=_ALL,
        metavar="N",
        shows_default=False,
        help="With hsdp: groups of GPUs that have a whole model each; without it, 2.",
    ),
    Option(
        "--shard-by",
        panel="Parallel",
        commands=_ALL,
        metavar="CLASS,…|auto",
        help="With fsdp and hsdp: the classes of modules that are sharded one by one. auto: those of "
        "`_no_split_modules`, else the blocks that repeat.",
    ),
    Option(
        "--parallel-arg",
        panel="Parallel",
        commands=_ALL,
        metavar="KEY=VALUE",
        help="Argument of the strategy, such as `reshard_after_forward=false`, `bucket_cap_mb=100`, "
        "`static_graph=true`; repeatable.",
    ),
    Option(
        "--nccl-memory",
        panel="Parallel",
        commands=_ALL,
        metavar="SIZE",
        shows_default=False,
        help="What NCCL takes of each GPU, where it does not run; without it, that is modelled.",
    ),
    # -------------------------------------------------------------------------------- Precision
    Option(
        "--precision",
        panel="Precision",
        commands=_ALL,
        metavar="NAME,…",
        help=f"Of {', '.join(PRECISIONS)}; amp is amp-bf16 where the GPU has it, else amp-fp16.",
    ),
)
