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
MAX_ENTRIES = 1_000_000


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


def segments_of(entries):
    """Return [address, bytes] of each cudaMalloc of the allocator's history, in order."""
    return [[e["addr"], e["size"]] for e in entries if e["action"] == "segment_alloc"]


def history():
    """Return the allocator's history since it was switched on."""
    entries = torch.cuda.memory._snapshot()["device_traces"][0]
    if len(entries) >= MAX_ENTRIES:
        raise RuntimeError("the history has too few entries")
    return entries


class Start:
    """The GPU as the first request finds it. The history is recorded from here on.

    Args:
        fraction: of `set_per_process_memory_fraction`; None: no limit.
    """

    def __init__(self, fraction=None):
        torch.cuda.init()
        torch.cuda.set_device(0)
        self.free_bytes, self.total_bytes = torch.cuda.mem_get_info()
        self.fraction = fraction
        if fraction is not None:
            torch.cuda.set_per_process_memory_fraction(fraction)
        torch.cuda.memory._record_memory_history("all", context=None, max_entries=MAX_ENTRIES)

    def trace(self, events, segments, snapshot=None):
        """Return the document of data/README.md."""
        stats = torch.cuda.memory_stats()
        limit = None if self.fraction is None else int(self.fraction * self.total_bytes)
        return {
            "torch": torch.__version__,
            "settings": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""),
            "total_bytes": self.total_bytes,
            "free_bytes": self.free_bytes,
            "limit_bytes": limit,
            "events": events,
            "segments": segments,
            "snapshot": snapshot,
            "result": {
                "allocated_bytes": torch.cuda.memory_allocated(),
                "reserved_bytes": torch.cuda.memory_reserved(),
                "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
                "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
                **{name: stats[name] for name in COUNTERS},
            },
        }


def record_requests(profile="mixed", seed=0, requests=2000, fraction=None, snapshot_at=None):
    """Make random requests, and return their trace. Must be the first to use CUDA."""
    start = Start(fraction)
    streams = [0, torch.cuda.Stream().cuda_stream]
    malloc = torch._C._cuda_cudaCachingAllocator_raw_alloc
    free = torch._C._cuda_cudaCachingAllocator_raw_delete

    rng = random.Random(seed)
    next_size = Sizes(profile, rng)
    events, live, num_mallocs, snapshot = [], [], 0, None

    def free_one(index):
        number, address = live.pop(index)
        free(address)
        events.append([number])

    for step in range(requests):
        if step % 200 == 0:
            malloc_share = rng.uniform(0.30, 0.62)
        if snapshot_at is not None and snapshot is None and len(events) >= snapshot_at:
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

    if snapshot is not None:
        for segment in snapshot["segments"]:
            segment["stream"] = streams.index(segment["stream"])
    return start.trace(events, segments_of(history()), snapshot)


def record_program(run, fraction=None):
    """Run a program that trains on the GPU, and return its trace. Must be the first to use CUDA.

    An out-of-memory error of the program ends it, and is in the trace.
    """
    start = Start(fraction)
    emptied = []  # where in the history
    empty_cache = torch.cuda.empty_cache

    def noticed():
        empty_cache()
        emptied.append(len(history()))

    torch.cuda.empty_cache = noticed
    try:
        run()
    except torch.cuda.OutOfMemoryError:
        pass
    finally:
        torch.cuda.empty_cache = empty_cache
    torch.cuda.synchronize()
    entries = history()
    streams, numbers = {0: 0}, {}
    events, num_mallocs = [], 0
    for index, entry in enumerate(entries):
        while emptied and emptied[0] <= index:
            events.append([])
            emptied.pop(0)
        if entry["action"] == "free_requested":
            events.append([numbers.pop(entry["addr"])])
        elif entry["action"] in ("alloc", "oom"):
            address = entry["addr"] if entry["action"] == "alloc" else None
            stream = streams.setdefault(entry["stream"], len(streams))
            events.append([entry["size"], stream, address])
            if address is not None:
                numbers[address] = num_mallocs
            num_mallocs += 1
    events += [[] for _ in emptied]
    return start.trace(events, segments_of(entries))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--profile", choices=["small", "mixed", "large", "ties"], default="mixed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--fraction", type=float, help="set_per_process_memory_fraction")
    parser.add_argument("--snapshot-at", type=int, help="after so many events")
    args = parser.parse_args()
    trace = record_requests(args.profile, args.seed, args.requests, args.fraction, args.snapshot_at)
    text = json.dumps(trace, separators=(",", ":"))
    args.output.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(args.output, len(trace["events"]), "events", trace["result"])


if __name__ == "__main__":
    main()
