"""A training script of several ranks, over NCCL, in several ways that go well or wrong."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import time

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int)
parser.add_argument("--kind", default="plain")
parser.add_argument("--spawn", type=int, help="how many ranks this process starts")
args = parser.parse_args()


def wrapped(model: nn.Module) -> nn.Module:
    if args.kind == "fsdp":
        for layer in (model[0], model[2], model):
            fully_shard(layer)
        return model
    return nn.parallel.DistributedDataParallel(model.cuda())


def go_wrong() -> None:
    """Do what is to go wrong in the second step of rank 1."""
    if args.kind == "mistake":
        raise ValueError("rank 1 does not find its data")
    if args.kind == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if args.kind == "hangs":
        time.sleep(1000)


def train(rank: int) -> None:
    torch.cuda.set_device(rank % torch.cuda.device_count())
    torch.distributed.init_process_group("nccl", rank=rank, world_size=args.spawn or -1)
    model = nn.Sequential(nn.Linear(64, 32_768), nn.GELU(), nn.Linear(32_768, 8))
    model = wrapped(model)
    optimizer = torch.optim.AdamW(model.parameters())
    if args.kind == "unequal" and rank == 1:
        more = torch.zeros(100 << 20, dtype=torch.uint8, device="cuda")  # noqa: F841
    data = torch.utils.data.TensorDataset(torch.zeros(20_000, 64), torch.zeros(20_000, 8))
    for number, (x, y) in enumerate(torch.utils.data.DataLoader(data, args.batch_size)):
        if number == 1 and rank == 1:
            if args.kind == "ends":
                return
            go_wrong()
        try:
            nn.functional.mse_loss(model(x.cuda()), y.cuda()).backward()
        except torch.OutOfMemoryError:
            if args.kind != "catches":
                raise
        optimizer.step()
        optimizer.zero_grad()
        if number < 3:
            time.sleep(0.2)  # PyTorch's watchdog frees the first buckets within 0.1 s


def a_free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


if __name__ == "__main__":
    if args.spawn:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": a_free_port()}
        torch.multiprocessing.spawn(train, nprocs=args.spawn)
    else:
        train(int(os.environ["RANK"]))
