"""Fit the trees of `bsfind.simulation.kernels.cudnn_engines` to sampled workspaces.

    python benchmarks/fit_convolution_workspaces.py SAMPLES.jsonl...

The samples are those of benchmarks/convolution_workspaces.py. Those that it holds out (a part, and
the layers of whole models, whose files have to be among them) are not looked at. The trees of a GPU
that there are no samples of stay as they are. Needs numpy and scikit-learn, which bsfind does not.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.tree import DecisionTreeClassifier

sys.path.insert(0, str(Path(__file__).parent))
from convolution_workspaces import Sample, is_held_out, layer_of, read_samples

from bsfind.simulation.kernels import cudnn_engines, cudnn_workspace
from bsfind.simulation.kernels.cudnn_engines import LEAF, MULTIPROCESSORS, features, tree_key
from bsfind.simulation.kernels.cudnn_workspace import copies

TARGET = Path(cudnn_engines.__file__).with_name(cudnn_engines.DATA_FILE)

# Bytes beside the copies that count as alignment, or as tables; or this share of all.
ALIGNMENT, TABLES, TABLES_SHARE = 512, 16384, 1 / 128
# Partial tiles of kernels that share a tile among multiprocessors: at most this many bytes.
SHARED_TILES = {"weight_gradient": 3_300_000, "forward": 9_000_000, "input_gradient": 9_000_000}
# Workspaces of depthwise convolutions up to this have no formula.
SMALL_DEPTHWISE = 16_000_000
# More partial results than this are none.
MANY_PARTS = 4096
# A workspace that is of no consequence.
LITTLE = 1 << 18
# Bins of a feature.
BINS = 255
# Samples weigh as the copies that there are, or that there might be, to this power.
STAKE_POWER = 0.25
# Splits of a tree that tell less than this (bits, over all its samples) are none; of many samples less
# has to suffice, or each new kind of layer would cost the others a part of their leaves.
LEAST_GAIN, MANY_SAMPLES = 4e-5, 25_000


def label_of(sample: Sample) -> tuple[str, str, float]:
    """Return (family, small, value) that give a sample's workspace."""
    problem, workspace = sample.problem, sample.workspace
    c = copies(problem)
    sizes = {name: size(problem, c) for name, size in cudnn_workspace.FAMILIES.items()}
    for name, size in sizes.items():
        rest = workspace - size
        if 0 <= rest < TABLES:
            small = "none" if rest == 0 else "alignment" if rest <= ALIGNMENT else "tables"
            return name, small, 0.0
    bases = {name: base(problem, c) for name, base in cudnn_workspace.SPLIT_BASES.items()}
    partials = {name: cudnn_workspace.partial_bytes(problem, c, name) for name in bases}
    if problem.kind != "weight_gradient":
        bases = {"split": bases["split"]}
    elif not problem.channels_last:
        del bases["copies and split"]
    for name, base in bases.items():
        parts = (workspace - base) / partials[name]
        if 0.9 < parts < MANY_PARTS and abs(parts - round(parts)) < 0.02:
            return name, "none", parts
    if workspace < LITTLE:
        return "nothing", "tables", 0.0
    if problem.groups > 1 == problem.group_channels and workspace < SMALL_DEPTHWISE:
        return "bytes", "none", float(workspace)
    if 0 < workspace - sizes["needed"] < SHARED_TILES[problem.kind]:
        return "needed and more", "none", float(workspace - sizes["needed"])
    for name, size in sizes.items():
        if 0 <= workspace - size < workspace * TABLES_SHARE:
            return name, "tables", 0.0
    if problem.kind == "weight_gradient":
        reachable = [name for name, base in bases.items() if workspace > base]
        if reachable:
            name = max(reachable, key=lambda name: bases[name])
            parts = (workspace - bases[name]) / partials[name]
            if 0 < parts < MANY_PARTS:
                return name, "none", parts
    return "share of x+w+y", "none", workspace / (c.x + c.w + c.y)


def borders_of(rows: Any) -> list[Any]:
    """Return where the bins of each feature end: between its values, or many of them."""
    borders = []
    for column in rows.T:
        values = np.unique(column)
        if len(values) > BINS:
            values = np.unique(np.quantile(column, np.linspace(0, 1, BINS), method="nearest"))
        middles = ((values[1:] + values[:-1]) / 2).astype(np.float32)
        borders.append([float(f"{middle:.7g}") for middle in middles])
    return borders


def breadth_first(nodes: Any, answer_of: dict[int, int]) -> tuple[int, bytes]:
    """Return the number of leaves of a fitted tree, and the tree as `cudnn_engines` reads it."""
    feature, limit, answers = bytearray(), bytearray(), []
    order = [0]
    for node in order:  # which grows
        left = int(nodes.children_left[node])
        if left < 0:
            feature.append(LEAF)
            answers.append(answer_of[node])
        else:
            feature.append(int(nodes.feature[node]))
            limit.append(int(nodes.threshold[node]))
            order += [left, int(nodes.children_right[node])]
    low, high = bytes(a % 256 for a in answers), bytes(a // 256 for a in answers)
    return len(answers), bytes(feature) + bytes(limit) + low + high


def fit(samples: list[Sample], bins: Any, labels: list[tuple[str, str]], trees: int) -> bytes:
    """Fit the trees of one key, and pack them.

    The trees are hardly pruned: what is a leaf of its own in one is outvoted by the others.

    Args:
        samples: of the key.
        bins: of their features.
        labels: what there is of (family, small) so far; grows.
        trees: how many.
    """
    answers = [label_of(sample) for sample in samples]
    for family, small, _ in answers:
        if (family, small) not in labels:
            labels.append((family, small))
    numbers = {label: number for number, label in enumerate(labels)}
    target = np.array([numbers[answer[:2]] for answer in answers])
    values = np.array([float(f"{answer[2]:.3g}") for answer in answers])
    weight = np.array([max(s.workspace, _stake(s)) + 1e6 for s in samples]) ** STAKE_POWER
    least_gain = LEAST_GAIN * min(1.0, (MANY_SAMPLES / len(samples)) ** 0.5)
    known: dict[tuple[int, float], int] = {}
    packed = []
    for number in range(trees):
        tree = DecisionTreeClassifier(
            criterion="entropy",
            max_features=0.4,
            min_impurity_decrease=least_gain,
            random_state=number,
        ).fit(bins, target, weight)
        leaf = tree.apply(bins)
        order = np.argsort(leaf, kind="stable")
        answer_of = {}
        for inside in np.split(order, np.flatnonzero(np.diff(leaf[order])) + 1):
            best = int(np.bincount(target[inside], weight[inside]).argmax())
            of_label = np.sort(values[inside[target[inside] == best]])
            answer = (best, float(of_label[len(of_label) // 2]))
            answer_of[int(leaf[inside[0]])] = known.setdefault(answer, len(known))
        packed.append(breadth_first(tree.tree_, answer_of))
    assert len(known) < 1 << 16
    assert len(labels) < 1 << 8
    header = struct.pack(f"<{2 + trees}I", len(known), trees, *(leaves for leaves, _ in packed))
    answer_labels = bytes(label for label, _ in known)
    answer_values = struct.pack(f"<{len(known)}f", *(value for _, value in known))
    return header + answer_labels + answer_values + b"".join(tree for _, tree in packed)


def _stake(sample: Sample) -> int:
    c = copies(sample.problem)
    return c.x + c.w + c.y


def main() -> None:
    """Fit, and write the data file of the package."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("samples", nargs="+", type=Path)
    parser.add_argument("--trees", type=int, default=5)
    parser.add_argument("--few", type=int, default=3, help="trees for channels last")
    parser.add_argument("--target", type=Path, default=TARGET)
    arguments = parser.parse_args()
    members: dict[str, bytes] = {}
    if arguments.target.exists():
        with zipfile.ZipFile(arguments.target) as before:
            members = {name: before.read(name) for name in before.namelist()}
    samples = [sample for path in arguments.samples for sample in read_samples(path)]
    held_out = {layer_of(sample) for sample in samples if sample.model}
    by_gpu: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if not is_held_out(sample) and layer_of(sample) not in held_out:
            by_gpu[sample.gpu].append(sample)
    for gpu, of_gpu in sorted(by_gpu.items()):
        for name in [name for name in members if name.startswith(f"{gpu}/")]:
            del members[name]
        rows = np.array(
            [features(s.problem, MULTIPROCESSORS[gpu]) for s in of_gpu], dtype=np.float32
        )
        borders = borders_of(rows)
        bins = np.stack(
            [np.searchsorted(b, c) for b, c in zip(borders, rows.T, strict=True)], 1
        ).astype(np.float32)
        keys = np.array([tree_key(s.problem) for s in of_gpu])
        labels: list[tuple[str, str]] = []
        for key in np.unique(keys):
            inside = np.flatnonzero(keys == key)
            is_rare = "channels_last" in key
            trees = arguments.few if is_rare else arguments.trees
            if "depthwise" in key:
                trees = 7  # small ones
            packed = fit([of_gpu[i] for i in inside], bins[inside], labels, trees)
            members[f"{gpu}/{key}"] = packed
            print(gpu, key, len(inside), flush=True)
        grid = {"borders": borders, "labels": labels}
        members[f"{gpu}/grid"] = json.dumps(grid, separators=(",", ":")).encode()
    partial = arguments.target.with_suffix(".new")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in sorted(members.items()):
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, 9)
    partial.replace(arguments.target)
    print(f"{arguments.target}: {arguments.target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
