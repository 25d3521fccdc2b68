"""Record what PyTorch's allocator answers to random requests: `python record_trace.py --help`.

Needs a GPU, or the fake one of tests/fakegpu. The options of the allocator are taken from
PYTORCH_CUDA_ALLOC_CONF. data/README.md describes the file.
"""

import argparse
import gzip
import json
import os
import random
from pathlib import Path

import torch

MIB = 1 << 20
TIED_SIZES = [512, 1024, 4096, *(n * MIB for n in (1, 2, 3, 4, 10, 12, 16, 22, 64))]
COUNTERS = ("num_alloc_retries", "num_ooms")


class Sizes:
    """Random sizes of one profile; half of them were asked for before, as in training."""

    def __init__(self, profile, rng):
        self.profile = profile
        self.rng = rng
        self.seen = []

    def __call__(self):
        rng = self.rng
        if self.seen and rng.random() < 0.5:
            return rng.choice(self.seen)
        if self.profile == "ties":
            size = rng.choice(TIED_SIZES)
        else:
            low, high = {"small": (0, 20), "mixed": (8, 28.5), "large": (20, 30)}[self.profile]
            size = int(2 ** rng.uniform(low, high))
        if len(self.seen) < 12:
            self.seen.append(size)
        elif rng.random() < 0.05:
            self.seen[rng.randrange(12)] = size
        return size


def segments_now():
    keys = ("address", "total_size", "stream", "segment_type", "is_expandable")
    return [
        {key: segment[key] for key in keys}
        | {"blocks": [{k: b[k] for k in ("size", "state")} for b in segment["blocks"]]}
        for segment in torch.cuda.memory_snapshot()
    ]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--profile", choices=["small", "mixed", "large", "ties"], default="mixed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--fraction", type=float, help="set_per_process_memory_fraction")
    parser.add_argument("--snapshot-at", type=int, help="after so many events")
    args = parser.parse_args()

    torch.cuda.init()
    torch.cuda.set_device(0)
    free_at_start, total = torch.cuda.mem_get_info()
    if args.fraction is not None:
        torch.cuda.set_per_process_memory_fraction(args.fraction)
    streams = [0, torch.cuda.Stream().cuda_stream]
    malloc = torch._C._cuda_cudaCachingAllocator_raw_alloc
    free = torch._C._cuda_cudaCachingAllocator_raw_delete

    rng = random.Random(args.seed)
    next_size = Sizes(args.profile, rng)
    events, live, num_mallocs, snapshot = [], [], 0, None

    def free_one(index):
        number, address = live.pop(index)
        free(address)
        events.append([number])

    for step in range(args.requests):
        if step % 200 == 0:
            malloc_share = rng.uniform(0.30, 0.62)
        if args.snapshot_at is not None and snapshot is None and len(events) >= args.snapshot_at:
            snapshot = {"after": len(events), "segments": segments_now()}
        draw = rng.random()
        if draw < 0.003:
            torch.cuda.empty_cache()
            events.append([])
        elif live and draw > malloc_share:
            free_one(rng.randrange(len(live)) if rng.random() < 0.7 else -1)
        else:
            size, stream = next_size(), rng.choice([0, 0, 0, 1])
            try:
                address = malloc(size, streams[stream])
            except torch.cuda.OutOfMemoryError:
                address = None
            events.append([size, stream, address])
            if address is not None:
                live.append((num_mallocs, address))
            num_mallocs += 1
            if address is None:
                for _ in range(len(live) // 2):
                    free_one(rng.randrange(len(live)))

    stats = torch.cuda.memory_stats()
    trace = {
        "torch": torch.__version__,
        "settings": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""),
        "total_bytes": total,
        "free_bytes": free_at_start,
        "limit_bytes": None if args.fraction is None else int(args.fraction * total),
        "events": events,
        "snapshot": snapshot,
        "result": {
            "allocated_bytes": torch.cuda.memory_allocated(),
            "reserved_bytes": torch.cuda.memory_reserved(),
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
            **{name: stats[name] for name in COUNTERS},
        },
    }
    if snapshot is not None:
        for segment in snapshot["segments"]:
            segment["stream"] = streams.index(segment["stream"])
    args.output.write_bytes(
        gzip.compress(json.dumps(trace, separators=(",", ":")).encode(), mtime=0)
    )
    print(args.output, len(events), "events", trace["result"])


if __name__ == "__main__":
    main()
