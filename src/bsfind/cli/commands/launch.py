"""`bsfind launch`: find the batch size of a training command."""

from __future__ import annotations

from typing import Any

from bsfind.cli.options import options_of
from bsfind.cli.parameters import COMMAND, command


@command(options_of("launch"), COMMAND)
def launch(options: dict[str, Any], given: frozenset[str]) -> int:
    """Find the batch size of your own training command.

    Runs the command with several batch sizes in the place of `{batch_size}`, watches its optimizer steps and
    its memory from inside, ends it after a few steps, and recommends the batch size to use.

    The command runs in the current folder, on the GPUs of this machine that it chooses. Variables keep WANDB
    and Neptune off, and BSFIND_TRIAL is set, for what else a script should not do in a trial.

    With `--gpu`, no GPU is needed (experimental): the command runs in one process with a simulated GPU, whose
    memory is that of the real one, and whose values are assumed.

    bsfind launch -- python train.py --batch-size {batch_size}
    bsfind launch --gpu a100-sxm4-80gb -- python train.py --batch-size {batch_size}
    bsfind launch -- torchrun --standalone --nproc-per-node 8 train.py --batch-size {batch_size}
    bsfind launch --variant fp32= --variant amp=--bf16 -- python train.py -b {batch_size} {variant}
    bsfind launch --set-env BS={batch_size} -- ./train.sh
    bsfind launch --substitute config.yaml -- python train.py --config config.yaml
    """
    from bsfind.cli.session import launch_session

    return launch_session(options, given)
