"""A training script as users write them, in several ways that go well or wrong."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int)
parser.add_argument("--kind", default="plain")
parser.add_argument("--samples", type=int, default=20_000)
parser.add_argument("--workers", type=int, default=0)
parser.add_argument("--hidden", type=int, default=32_768)
parser.add_argument("--drop-last", action="store_true")
parser.add_argument("--epochs", type=int, default=100)
args = parser.parse_args()

if args.kind == "mistake":
    torch.undefined()
device = "cpu" if args.kind == "host" else "cuda"
model = nn.Sequential(nn.Linear(64, args.hidden), nn.GELU(), nn.Linear(args.hidden, 8)).to(device)
optimizer = torch.optim.AdamW(model.parameters())
other = nn.Sequential(nn.Linear(8, args.hidden), nn.GELU(), nn.Linear(args.hidden, 1)).to(device)
of_other = torch.optim.Adam(other.parameters()) if args.kind == "gan" else None

batch_size = 16 if args.kind == "ignores" else args.batch_size
data = TensorDataset(torch.zeros(args.samples, 64), torch.zeros(args.samples, 8))
loader = DataLoader(data, batch_size, num_workers=args.workers, drop_last=args.drop_last)

if args.kind == "silent":
    while True:
        time.sleep(0.1)
if args.kind == "detaches":
    subprocess.Popen(["sleep", "1000"], start_new_session=True)


def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(model(x), y)


def train_gan(x: torch.Tensor, number: int) -> None:
    assert of_other is not None
    of_other.zero_grad()
    other(model(x).detach()).mean().backward()
    of_other.step()
    if number % 5 == 4:  # one step of the generator after five of the critic
        optimizer.zero_grad()
        (-other(model(x)).mean()).backward()
        optimizer.step()


kept = []
for _ in range(args.epochs):
    for number, batch in enumerate(loader):
        x, y = (part.to(device) for part in batch)
        if args.kind == "gan":
            train_gan(x, number)
        elif args.kind == "accumulates":
            (loss_of(x, y) / 2).backward()
            if number % 2 == 1:
                optimizer.step()
                optimizer.zero_grad()
        elif args.kind == "catches":
            try:
                loss_of(x, y).backward()
            except torch.OutOfMemoryError:
                print("skipped a batch")
            optimizer.step()
            optimizer.zero_grad()
        else:
            loss = loss_of(x, y)
            loss.backward()
            if args.kind == "own-optimizer":
                import bsfind

                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.1 * parameter.grad
                        parameter.grad = None
                bsfind.step()
            else:
                optimizer.step()
                optimizer.zero_grad()
            if args.kind == "leaks":
                kept.append(model(x).sum())
            if args.kind == "crashes":
                raise ValueError(f"a batch of {len(x)} is no good")
            if args.kind == "exits":
                sys.exit(3)
            if args.kind == "dies":
                os.kill(os.getpid(), 9)
