"""A training script as users write them, for a GPU that is not there."""

from __future__ import annotations

import argparse
import copy
import threading
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, get_worker_info

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int)
parser.add_argument("--kind", default="plain")
args = parser.parse_args()
kind = args.kind


class Images(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images that a worker makes, with operators of the CPU."""

    def __len__(self) -> int:
        return 3000

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert get_worker_info() is not None
        image = torch.full((3, 16, 16), float(index)) + 1
        assert image.sum().item() == 3 * 16 * 16 * (index + 1)  # it has values
        return image, torch.tensor(index % 10)


def evaluate(model: nn.Module, loader: DataLoader[tuple[torch.Tensor, torch.Tensor]]) -> float:
    model.eval()
    correct = 0
    with torch.no_grad(), torch.amp.autocast("cuda"):
        for x, y in loader:
            correct += (model(x.to("cuda", non_blocking=True)).argmax(1) == y.cuda()).sum().item()
            break
    model.train()
    return correct / 3000


def train_with_amp() -> None:
    model: nn.Module = nn.Sequential(
        *(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(32, 10)),
    ).to("cuda")
    average = copy.deepcopy(model)
    model = torch.compile(model) if kind == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cuda")
    loader = DataLoader(Images(), args.batch_size, shuffle=True, num_workers=1, pin_memory=True)
    print("before", evaluate(model, loader))
    for x, y in loader:
        assert x.device.type == "cpu"
        assert x.mean() >= 1
        x, y = x.to("cuda", non_blocking=True), y.to("cuda", non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        with torch.amp.autocast("cuda"):
            loss = nn.functional.cross_entropy(model(x), y)
        if not torch.isfinite(loss):
            raise RuntimeError("the loss is not finite")
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(weight, 0.01)
        torch.cuda.synchronize()
        mib = torch.cuda.max_memory_allocated() >> 20
        print(f"loss {loss:.3f} {1 / loss.item()} norm {norm:.2f}, {mib} MiB", flush=True)
        torch.save({"model": model.state_dict(), "of": optimizer.state_dict()}, "last.pt")
        model.load_state_dict(torch.load("last.pt", map_location="cuda")["model"])
        assert Path("last.pt").stat().st_size < 100_000


def train_line_by_line() -> None:
    model = nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 512)).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    if kind == "group":
        torch.distributed.init_process_group("nccl")
    if kind == "device":
        torch.set_default_device("cuda")
    for _ in range(40):
        x = torch.randn(args.batch_size, 512, device=None if kind == "device" else "cuda")
        y = model(x)
        if kind == "selects":
            y = y[y[:, 0] > 0]
        loss = y.square().mean()
        loss.backward()
        if kind == "checks" and loss.item() < 5:
            raise ValueError("the loss is too small")
        if kind == "loops":
            while loss.item() > 0.5:
                pass
        if kind == "catches":
            try:
                y[y > 0].sum()
            except Exception:
                print("went on")
        if kind == "stream":
            with torch.cuda.stream(torch.cuda.Stream()):
                x.record_stream(torch.cuda.current_stream())
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            event.synchronize()
            free, total = torch.cuda.mem_get_info()
            assert free == total - torch.cuda.memory_reserved() - 200 * 2**20
            assert torch.cuda.memory_stats()["reserved_bytes.all.current"] > 0
        optimizer.step()
        optimizer.zero_grad()


if kind == "thread":
    thread = threading.Thread(target=train_line_by_line)
    thread.start()
    thread.join()
elif kind in ("plain", "compiled"):
    train_with_amp()
else:
    train_line_by_line()
