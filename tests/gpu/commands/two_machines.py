"""Starts the ranks of two machines, as srun does: both are this one, and each has one of its GPUs."""

import os
import socket
import subprocess
import sys

with socket.create_server(("127.0.0.1", 0)) as free:
    port = str(free.getsockname()[1])
torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
torchrun += ["--master-addr", "127.0.0.1", "--master-port", port]
machines = [
    subprocess.Popen(
        [*torchrun, "--node-rank", number, *sys.argv[1:]],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": number},
    )
    for number in ("0", "1")
]
sys.exit(max(machine.wait() for machine in machines))
