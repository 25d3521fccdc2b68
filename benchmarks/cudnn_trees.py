"""Fits the decision trees of cuDNN's engines to samples: `make cudnn-trees`.

    python -m benchmarks.cudnn_trees [--trees 5] [--target FILE]

Writes src/bsfind/simulation/kernels/cudnn_engines.zip from benchmarks/samples alone (see
convolution_samples.py), and tells in its manifest.json how it was made. All GPUs have to have been sampled.
The same samples and versions give the same bytes. Held-out samples are not looked at, nor are other
samples of their layers. Needs scikit-learn (`pip install --group trees`), which bsfind does not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from benchmarks.convolution_layers import LAYERS
from benchmarks.convolution_samples import MADE_WITH, SAMPLES, Sample, read_samples, sample_files
from sklearn.tree import DecisionTreeClassifier

from bsfind.simulation.kernels import cudnn_engines, cudnn_workspace
from bsfind.simulation.kernels.cudnn_engines import (
    CUDNN_VERSION,
    LEAF,
    MANIFEST,
    MULTIPROCESSORS,
    features,
    tree_key,
)
from bsfind.simulation.kernels.cudnn_problem import copies

TARGET = Path(cudnn_engines.__file__).with_name(cudnn_engines.DATA_FILE)

# Bytes beside the copies that count as alignment, or as tables; or this share of all.
ALIGNMENT, TABLES, TABLES_SHARE = 512, 16384, 1 / 128
# Partial tiles of kernels that share a tile among multiprocessors: at most this many bytes.
SHARED_TILES = {"weight_gradient": 3_300_000, "forward": 9_000_000, "input_gradient": 9_000_000}
# Workspaces of depthwise convolutions up to this size follow no formula.
SMALL_DEPTHWISE = 16_000_000
# A weight gradient has fewer partial results than this.
MANY_PARTS = 4096
# A workspace below this size does not matter.
LITTLE = 1 << 18
# The most bins that a feature has.
BINS = 255
# Samples weigh as the copies that there are, or that there might be, to this power.
STAKE_POWER = 0.25
# A tree is not split where this would tell less (bits, over all its samples). Where there are many samples
# a smaller gain suffices, or each new kind of layer would cost the others a part of their leaves.
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
    if problem.is_depthwise and workspace < SMALL_DEPTHWISE:
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
    return "share of x+w+y", "none", workspace / sum(c.padded)


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


class Prepared(NamedTuple):
    """What is fitted to: arrays of a row for each sample of a GPU that is not held out.

    Attributes:
        rows: their features.
        keys: which trees they are for.
        labels: (family, small), as text.
        values: see `cudnn_engines.Choice`.
        stakes: the workspace, or the tensors where these are larger, in bytes.
    """

    rows: Any
    keys: Any
    labels: Any
    values: Any
    stakes: Any


def prepare(gpu: str) -> Prepared:
    """Read a GPU's samples."""
    found, held_out = [], set()
    for sample in read_samples(gpu):
        if sample.model:
            held_out.add(sample.layer)
        elif not sample.is_held_out and sample.layer not in held_out:  # models come first
            found.append((features(sample.problem, MULTIPROCESSORS[gpu]), *_fitted(sample)))
    rows, keys, labels, values, stakes = zip(*found, strict=True)
    rounded = [float(f"{value:.3g}") for value in values]
    return Prepared(np.array(rows, np.float32), *map(np.array, (keys, labels, rounded, stakes)))


def _fitted(sample: Sample) -> tuple[str, str, float, int]:
    family, small, value = label_of(sample)
    stake = max(sample.workspace, sum(copies(sample.problem).padded))
    return tree_key(sample.problem), f"{family}/{small}", value, stake


def fit(bins: Any, target: Any, values: Any, stakes: Any, trees: int) -> bytes:
    """Fit the trees of one key, and pack them.

    One tree looks at all features at each node; several look at some, drawn anew, and are hardly
    pruned: what is a leaf of its own in one is outvoted by the others.

    Args:
        bins: of the features, a row for each sample.
        target: the numbers of the labels.
        values: see `cudnn_engines.Choice`.
        stakes: bytes that a mistake can cost.
        trees: how many.
    """
    weight = (stakes + 1e6) ** STAKE_POWER
    least_gain = LEAST_GAIN * min(1.0, (MANY_SAMPLES / len(bins)) ** 0.5)
    known: dict[tuple[int, float], int] = {}
    packed = []
    for number in range(trees):
        tree = DecisionTreeClassifier(
            criterion="entropy",
            max_features=None if trees == 1 else 0.4,
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
    header = struct.pack(f"<{2 + trees}I", len(known), trees, *(leaves for leaves, _ in packed))
    answer_labels = bytes(label for label, _ in known)
    answer_values = struct.pack(f"<{len(known)}f", *(value for _, value in known))
    return header + answer_labels + answer_values + b"".join(tree for _, tree in packed)


def fit_gpu(prepared: Prepared, trees: int) -> dict[str, bytes]:
    """Return the members of the archive for one GPU, without its name."""
    borders = borders_of(prepared.rows)
    columns = zip(borders, prepared.rows.T, strict=True)
    bins = np.stack([np.searchsorted(b, c) for b, c in columns], 1).astype(np.float32)
    labels, target = np.unique(prepared.labels, return_inverse=True)
    assert len(labels) < 1 << 8
    members = {}
    for key in np.unique(prepared.keys):
        inside = np.flatnonzero(prepared.keys == key)
        arrays = (bins, target, prepared.values, prepared.stakes)
        members[str(key)] = fit(*(array[inside] for array in arrays), trees)
    grid = {"borders": borders, "labels": [str(label).split("/") for label in labels]}
    return members | {"grid": json.dumps(grid, separators=(",", ":")).encode()}


def manifest(counts: dict[str, int], trees: int) -> dict[str, Any]:
    """Return what the archive says of how it was made.

    Args:
        counts: how many samples were fitted, by GPU.
        trees: how many there are of each kind.
    """
    made_with = [json.loads((SAMPLES / gpu / MADE_WITH).read_text()) for gpu in counts]
    (torch,) = {made["torch"] for made in made_with}
    (cudnn,) = {made["cudnn"] for made in made_with}
    if cudnn != CUDNN_VERSION:
        sys.exit(f"the samples are those of cuDNN {cudnn}, and bsfind models {CUDNN_VERSION}")
    return {
        "cudnn": cudnn,
        "torch": torch,
        "date": max(made["since"] for made in made_with),
        "command": f"python -m benchmarks.cudnn_trees --trees {trees}",
        "libraries": {name: version(name) for name in ("numpy", "scikit-learn", "scipy")},
        "layers": digest([LAYERS]),
        "gpus": {
            gpu: {"fitted_samples": count, "sha256": digest(sample_files(gpu))}
            for gpu, count in counts.items()
        },
    }


def digest(paths: list[Path]) -> str:
    """Return the SHA-256 of files, one after another."""
    found = hashlib.sha256()
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest()


def write_archive(target: Path, members: dict[str, bytes]) -> None:
    """Write the archive; the same members give the same bytes."""
    partial = target.with_suffix(".new")
    with zipfile.ZipFile(partial, "w") as archive:
        for name, content in sorted(members.items()):
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, 9)
    partial.replace(target)


def main() -> None:
    """Fit, and write the data file of the package."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trees", type=int, default=5, help="of each pass, type and memory format")
    parser.add_argument("--target", type=Path, default=TARGET)
    arguments = parser.parse_args()
    if lacking := [gpu for gpu in MULTIPROCESSORS if not sample_files(gpu)]:
        sys.exit(f"no samples of {', '.join(lacking)}: run `make cudnn-samples` first")
    members, counts = {}, {}
    for gpu in MULTIPROCESSORS:
        prepared = prepare(gpu)
        counts[gpu] = len(prepared.rows)
        for name, content in fit_gpu(prepared, arguments.trees).items():
            members[f"{gpu}/{name}"] = content
        print(gpu, counts[gpu], "samples", flush=True)
    members[MANIFEST] = json.dumps(manifest(counts, arguments.trees), indent=1).encode()
    write_archive(arguments.target, members)
    print(f"{arguments.target}: {arguments.target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
