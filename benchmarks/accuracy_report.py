"""Writes what the accuracy benchmark found where it is read: `python -m benchmarks.accuracy_report`.

From benchmarks/results/simulation_accuracy_*.json:
    src/bsfind/simulation/gpus/accuracy.json   the figures that reports of bsfind show beside a prediction
    docs/accuracy.md                      the page, with what is exact and what is not

The page has the figures of cudnn_trees_accuracy.py and cudnn_asked.py, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy_summary import BOUNDED_KINDS, KINDS, UNCOMPARED_KIND, bounds
from benchmarks.convolution_layers import held_out_models
from tests.simulation.known_differences import DIFFERENCES, NOT_COMPARED

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FIGURES = ROOT / "src" / "bsfind" / "simulation" / "gpus" / "accuracy.json"
PAGE = ROOT / "docs" / "accuracy.md"
PUBLISHED = RESULTS / "published_table_rtx3090.json"
POINTS = RESULTS / "published_points.json"
TREES = RESULTS / "cudnn_trees.json"
RELEASES = RESULTS / "torch_releases_h100.json"
ASKED = RESULTS / "cudnn_asked.json"


def main() -> None:
    """Write both files."""
    documents = [
        json.loads(path.read_text()) for path in sorted(RESULTS.glob("simulation_accuracy_*.json"))
    ]
    if not documents:
        raise SystemExit("no results: run `python -m benchmarks.simulation_accuracy` first")
    FIGURES.write_text(json.dumps(figures(documents), indent=2) + "\n")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(page(documents)) + "\n")
    print(f"wrote {FIGURES.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}")


def _compared(documents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in _ran(documents) if row["kind"] != UNCOMPARED_KIND]


def _ran(documents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for document in documents for row in document["rows"] if row["status"] == "ok"]


def figures(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the document of `bsfind.simulation.gpus.accuracy`."""
    rows = _compared(documents)
    gpus = " and ".join(dict.fromkeys(row["gpu"] for row in rows))
    (torch,) = {row["torch"] for row in rows}
    date = max(document["date"] for document in documents)
    against = f"torch {torch} on a fake {gpus}, cuDNN's own plans, {date}"
    kinds = {
        kind: _bound(bounds(some))
        for kind in BOUNDED_KINDS
        if (some := [row for row in rows if row["kind"] == kind])
    }
    return {
        "torch": _release(torch),
        "against": against,
        "kinds": kinds,
        "kinds_asked": _kinds_asked(),
        "releases": {_release(one["torch"]): _compared_release(one) for one in _releases()},
        "traces": {
            traced_by: {_release(one["torch"]): _compared_release(one) for one in some}
            for traced_by, some in _traces().items()
        },
    }


def _bound(found: dict[str, Any]) -> dict[str, Any]:
    return {"runs": found["runs"]} | {
        name: {part: found[name][part] for part in ("median", "p95")}
        for name in ("allocated", "reserved")
    }


def _kinds_asked() -> dict[str, Any]:
    """Return the figures of predictions that ask cuDNN."""
    if not ASKED.is_file():
        return {}
    document = json.loads(ASKED.read_text())
    every = document["every"]
    against = (
        f"torch {every['torch']} on a fake {every['gpu']} with the cuDNN that was asked, "
        f"{document['date']}"
    )
    return {
        "convolutional": _bound(every["convolutional"]) | {"against": against, "asks_cudnn": True}
    }


def _compared_release(one: dict[str, Any]) -> dict[str, Any]:
    return {
        "against": f"torch {one['torch']} on a fake {one['gpu']}, without cuDNN, {one['date']}",
        "runs": one["runs"],
        "exact": one["exact"],
        "largest": {part: one[part]["largest"] for part in ("allocated", "reserved")},
    }


def _release(torch: str) -> str:
    return ".".join(torch.split(".")[:2])


def _releases() -> list[dict[str, Any]]:
    """Return how releases compare that trace themselves."""
    return [one for one in _all_releases() if _release(one["torch"]) == _release(one["traced_by"])]


def _traces() -> dict[str, list[dict[str, Any]]]:
    """Return how releases compare that another one traces, by the name of that one."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in _all_releases():
        if _release(one["torch"]) != _release(one["traced_by"]):
            found.setdefault(_release(one["traced_by"]), []).append(one)
    return found


def _all_releases() -> list[dict[str, Any]]:
    return json.loads(RELEASES.read_text()) if RELEASES.exists() else []


def _other_releases() -> Iterator[str]:
    """Yield how the rules compare with other releases of PyTorch."""
    if not (releases := _releases()):
        return
    yield from (
        "## Other releases of PyTorch",
        "",
        "The rules follow PyTorch 2.6 to 2.14. For these releases they were compared with the CUDA build on "
        f"the fake {releases[0]['gpu']} (`make torch-releases`): small models of the tests, which the rules "
        "were written for, with a stub in cuDNN's place, so that the workspaces of convolutions are not "
        "compared. It is no error bound. Releases that are not in the table were not compared.",
        "",
    )
    yield from _release_table(releases)
    traces = [one for some in _traces().values() for one in some]
    if not traces:
        return
    yield from (
        "### For another release than the installed one",
        "",
        "`--torch-version` takes what the installed release traces, its Python code and operators, and "
        "predicts what the allocator and the kernels of another release do with that. For these pairs it was "
        "compared with that other release, in the same way (`make torch-pairs`); it refuses all others. Runs "
        "that are listed here and not above differ because code of PyTorch differs between the releases.",
        "",
    )
    yield from _release_table(traces)


def _release_table(releases: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield (
        "| torch | CUDA | traced by | runs | exact | same allocations | allocated: p95 | largest "
        "| reserved: p95 | largest |"
    )
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for one in releases:
        errors = (
            one[part][name] for part in ("allocated", "reserved") for name in ("p95", "largest")
        )
        counts = (one[name] for name in ("runs", "exact", "same_events"))
        cells = (one["torch"], one["cuda"], _release(one["traced_by"]), *counts)
        yield f"| {' | '.join(map(str, cells))} | {' | '.join(f'{error:.2%}' for error in errors)} |"
    yield from ("", "What is not exact:", "")
    for one in releases:
        pair = _release(one["torch"])
        if _release(one["traced_by"]) != pair:
            pair += f" traced by {_release(one['traced_by'])}"
        for row in one["different"]:
            yield f"- torch {pair}, `{row['run']}`: {_how(row)}"
    yield ""


def _how(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return f"{row['status']}: {row['message']}"
    if not (row["allocated_differs"] or row["reserved_differs"]):
        text = "equal peaks, other allocations"
    else:
        text = f"allocated {row['allocated_error']:+.2%}, reserved {row['reserved_error']:+.2%}"
    return f"{text} (with torch 2.13 too: a known difference)" if row["known"] else text


def page(documents: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the page."""
    rows = _compared(documents)
    every = bounds(rows)
    models = {row["model"] for row in rows}
    gpus = ", ".join(dict.fromkeys(row["gpu"] for row in rows))
    yield from (
        "# How exact predictions are",
        "",
        "<!-- Written by benchmarks/accuracy_report.py; changes by hand are lost. -->",
        "",
        f"{len(rows)} training runs of {len(models)} published models (timm, torchvision, "
        "transformers, and some by hand), predicted and then run: three steps in fp32, amp-fp16 or "
        "amp-bf16, with SGD or AdamW.",
        "",
        f"They ran on PyTorch's unmodified CUDA build ({rows[0]['torch']}) with cuDNN's own plans, on "
        f"[a fake GPU](../tests/fakegpu/README.md) ({gpus}): allocator, dispatcher, autocast and "
        "optimizers are the real ones, kernels do nothing. No real GPU was measured for this page; figures "
        "that others measured on real ones are [below](#figures-of-real-gpus).",
        "",
        f"**{every['exact']:.0%} of the runs are exact to the byte**, both peaks; peak allocated in "
        f"{every['allocated']['exact']:.0%}, peak reserved in {every['reserved']['exact']:.0%}.",
        "",
        "| models | runs | exact | allocated: median | p95 | largest | reserved: median | p95 | largest |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    )
    for kind in KINDS:
        if some := [row for row in rows if row["kind"] == kind]:
            yield _line(kind, bounds(some))
    yield _line("**all**", every)
    if kept_out := [row for row in rows if _is_kept_out(row)]:
        yield _line("of these: layers kept out (see below)", bounds(kept_out))
    yield from _kinds(documents)
    yield from (
        "",
        "Which kernels cuDNN chooses for a convolution is not a formula: bsfind's answer is fitted to "
        "what it chose for many layers, those of published networks among them, so that convolutional "
        f"models are not news to it. No layer of {', '.join(held_out_models())} was used.",
        "",
    )
    yield from _workspaces()
    yield from _asked()
    yield from _searches(documents)
    yield from _published()
    yield from _points()
    yield from _other_releases()
    yield from _inexact(rows)
    yield from _not_compared(documents)
    if DIFFERENCES:
        yield from (
            "## Known differences",
            "",
            "What the tests of the simulator tolerate, and why:",
            "",
        )
        yield from (
            f"- `{key}`: allocated {known.allocated:.2%}, reserved {known.reserved:.2%}: {known.why}"
            for key, known in DIFFERENCES.items()
        )
    yield from (
        "",
        "What the tests do not compare, because the fake GPU computes no values and takes another way:",
        "",
    )
    yield from (f"- `{name}`: {why}" for name, why in NOT_COMPARED.items())


def _kinds(documents: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield what the kinds of models are, and which have no bound."""
    uncompared = [row for row in _ran(documents) if row["kind"] == UNCOMPARED_KIND]
    others = {row["model"] for row in _compared(documents) if row["kind"] == "other"}
    yield from (
        "",
        "A model's kind is that of the operators of its traced step: *convolutional* if its forward pass "
        "has at least as many convolutions as calls of attention (fused, or a softmax between two batched "
        "products), *attention* if it has fewer, *other* if it has neither. A report shows the figures of "
        "its kind as its error bound, for the version of torch that they were measured on. There is no "
        f"bound for *other* ({len(others)} models written by hand are too few for one), none for steps whose "
        "shapes depend on values (no such model was compared), and none for models with recurrent layers: "
        "the sizes of their workspaces and reserves are a formula that has not been "
        "compared with cuDNN on a GPU. For these runs the fake GPU had the same formula, so "
        f"{len(uncompared)} runs of {len({row['model'] for row in uncompared})} such models are not counted "
        "here. The tests of the simulator give both sides the same sizes, and compare the order of "
        "allocations, the outputs and how long each block lives.",
    )


def _workspaces() -> Iterator[str]:
    """Yield how well the trees of cuDNN's engines do, and how well fewer or other ones."""
    if not TREES.exists():
        return
    document = json.loads(TREES.read_text())
    drawn, models = (document["rows"][0][f"{kind} all"]["samples"] for kind in ("drawn", "models"))
    cudnn = f"{document['cudnn'] // 10000}.{document['cudnn'] // 100 % 100}"
    yield from (
        "## Workspaces of convolutions",
        "",
        f"Decision trees stand for the choices of cuDNN {cudnn} (`make cudnn-samples`, `make cudnn-trees`), "
        f"compared here with what it chose for calls that no tree was fitted to: {drawn} of drawn layers and "
        f"{models} of the layers of whole models, on five GPUs (`make cudnn-accuracy`). *Near* are "
        "workspaces within 1% or 1 MiB, *error* is the sum of the differences as a share of all bytes. The "
        "trees vote; the package has the archive of the first line.",
        "",
        "| trees | fitted samples | archive | drawn: exact | near | error | models: exact | near | error |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    )
    for row in document["rows"]:
        fitted = row["fitted_samples"]
        cells = [
            f"{row['archive']}, {'at most ' if row['trees'] > 1 else ''}{row['trees']}",
            f"{fitted:,}" if fitted else "not kept",
            f"{row['bytes'] / 1e6:.2f} MB",
        ]
        for kind in ("drawn all", "models all"):
            found = row[kind]
            cells += [f"{found['exact']:.1%}", f"{found['within_1_percent_or_1_mib']:.1%}"]
            cells.append(f"{found['error_of_the_sum_of_bytes']:.1%}")
        yield f"| {' | '.join(cells)} |"
    yield ""


def _asked() -> Iterator[str]:
    """Yield what it is worth to ask cuDNN instead of the trees."""
    if not ASKED.is_file():
        return
    document = json.loads(ASKED.read_text())
    compared = [row for row in document["rows"] if row["source"] == "trees"]
    models = sorted({row["model"] for row in compared})
    gpus = ", ".join(dict.fromkeys(row["gpu"] for row in compared if "gpu" in row))
    every = document["every"]
    yield from (
        "### With cuDNN's own library",
        "",
        "Where the environment has cuDNN (every CUDA wheel of torch brings it), bsfind asks it instead of "
        "the trees ([how](how-it-works.md#workspaces-of-convolutions)), and its reports show the error bound "
        f"of the last line: the {every['models']} convolutional models of the figures above on a fake "
        f"{every['gpu']}. The first two lines have the {len(models)} models with which the trees do worst "
        f"({', '.join(models)}), for {gpus} (`make cudnn-asked`). The fake GPU has the same library: so the "
        "figures show that bsfind asks as PyTorch does, not that cuDNN answers as on a GPU.",
        "",
        "| workspaces | runs | exact | allocated: median | p95 | largest | reserved: median | p95 "
        "| largest |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        _line("of the trees", document["trees"]["all"]),
        _line("of cuDNN", document["asked"]["all"]),
        _line("of cuDNN, all models", every["convolutional"]),
        "",
        *_not_exact(document["rows"]),
    )


def _not_exact(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the runs that cuDNN was asked for and that are not exact."""
    wrong = [
        row
        for row in rows
        if row["source"] == "asked" and not (row["status"] == "ok" and row["exact"])
    ]
    if not wrong:
        return
    yield from ("Not exact where cuDNN was asked:", "")
    for row in wrong:
        run = f"`{row['model']}` {row['precision']}, batch size {row['batch_size']}"
        if row["status"] != "ok":
            yield f"- {run}: {row['status']}: {row['message']}"
            continue
        errors = (f"{part} {row[f'{part}_error']:+.2%}" for part in ("allocated", "reserved"))
        yield f"- {run}, {row['gpu']}: {', '.join(errors)}"
    yield ""


def _published() -> Iterator[str]:
    """Yield what a public table of a real GPU says."""
    if not PUBLISHED.is_file():
        return
    found = json.loads(PUBLISHED.read_text())
    yield from (
        "## A real RTX 3090",
        "",
        "timm's authors published the largest batch sizes of a ladder that their models trained with on an "
        f"RTX 3090: for {found['between']} of {found['models']} models the predicted maximum lies between "
        "the size that ran and the next, which did not (`make published-table`). The same table was used to "
        "choose one constant of these predictions: what CUDA 11.3, which loads all kernels, takes outside "
        "the allocator (1.56 GiB) is the figure that agrees best with it.",
        "",
    )


def _points() -> Iterator[str]:
    """Yield how far predictions are from memory that others measured on real GPUs."""
    if not POINTS.is_file():
        return
    found = json.loads(POINTS.read_text())
    known = [row for row in found["rows"] if row["error"] is not None]
    chosen = [row["id"] for row in found["rows"] if not row["blind"]]
    yield from (
        "## Figures of real GPUs",
        "",
        f"{found['figures']} figures of training memory that others measured on real GPUs and published, "
        "each against one prediction (`make real-points`, "
        "[table](../benchmarks/data/published_points.csv), "
        "[result](../benchmarks/results/published_points.json)): "
        f"the median error of the {found['computed']} that can be computed is {found['median_error']:.2%}, "
        f"{found['within_3_percent']} are within 3 %, the largest is {found['largest_error']:.1%}.",
        "",
        f"Most ran with earlier versions of PyTorch than {_modelled()}, which is the one that predicts. What "
        "their software did otherwise is stated for each row below, as an option of the command or a column "
        "of the table; no figure of the source is changed. "
        + (
            f"Not blind, because a constant was chosen with them: {', '.join(chosen)}."
            if chosen
            else "No constant of bsfind was chosen with any of them. The descriptions were written with the "
            "figures at hand, from what the sources and their code say."
        ),
        "",
        "| figure | GPU | torch | measured | predicted | error |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    )
    for row in known:
        source = f"[{row['id']}]({row['url']}), {row['reading']}"
        sizes = [f"{row[name] / 2**20:,.0f} MiB" for name in ("published_bytes", "predicted_bytes")]
        cells = [source, row["gpu"], row["torch"], *sizes, f"{row['error']:+.2%}"]
        yield f"| {' | '.join(cells)} |"
    yield ""
    reasons: dict[str, list[str]] = {}
    for row in found["rows"]:
        if row["corrections"]:
            reasons.setdefault(row["corrections"], []).append(row["id"])
    yield from ("What is corrected:", "")
    yield from (f"- {', '.join(ids)}: {what}" for what, ids in reasons.items())
    yield ""
    if notes := [row for row in found["rows"] if row["note"]]:
        yield from ("Notes:", "")
        yield from (f"- {row['id']}: {row['note']}" for row in notes)
        yield ""
    if missing := [row for row in found["rows"] if row["not_computed"]]:
        yield from ("Not computed:", "")
        yield from (f"- {row['id']}: {row['not_computed']}" for row in missing)
        yield ""


def _modelled() -> str:
    """Return the version of torch that predictions model."""
    return str(json.loads(FIGURES.read_text())["torch"])


def _line(name: str, found: dict[str, Any]) -> str:
    cells = [name, str(found["runs"]), f"{found['exact']:.0%}"]
    for peak in ("allocated", "reserved"):
        cells += [f"{found[peak][part]:.2%}" for part in ("median", "p95", "largest")]
    return f"| {' | '.join(cells)} |"


def _is_kept_out(row: dict[str, Any]) -> bool:
    """Tell whether a model's layers were kept out when the choices of cuDNN were fitted."""
    return row["model"].partition("_")[2] in held_out_models()


def _searches(documents: Sequence[dict[str, Any]]) -> Iterator[str]:
    rows = [row for document in documents for row in document["searches"] if row["status"] == "ok"]
    if not rows:
        return
    equal = sum(row["predicted"] == row["real"] for row in rows)
    errors = sorted(abs(row["predicted"] / row["real"] - 1) for row in rows)
    yield from (
        "## Largest batch sizes",
        "",
        f"For a card of 24 GB ({rows[0]['gpu']}), {len(rows)} searches: {equal} predicted the very "
        f"batch size that runs while the next does not; the largest error is {errors[-1]:.1%}.",
        "",
    )
    wrong = [row for row in rows if row["predicted"] != row["real"]]
    if wrong:
        yield from ("| model | precision | predicted | real |", "| --- | --- | ---: | ---: |")
        yield from (
            f"| {row['model']} | {row['precision']} | {row['predicted']} | {row['real']} |"
            for row in wrong
        )
        yield ""


def _inexact(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the runs that are not exact, the worst first."""
    inexact = [row for row in rows if not row["exact"]]
    if not inexact:
        return
    inexact.sort(key=_worst, reverse=True)
    yield from (
        "## What is not exact",
        "",
        "Errors of the peaks; a positive one is a prediction that is too high.",
        "",
        "| model | precision | batch size | optimizer | allocated | reserved |",
        "| --- | --- | ---: | --- | ---: | ---: |",
    )
    for row in inexact:
        errors = [_percent(row[f"{name}_error"]) for name in ("allocated", "reserved")]
        cells = [row["model"], row["precision"], str(row["batch_size"]), row["optimizer"], *errors]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _worst(row: dict[str, Any]) -> float:
    errors = (row["allocated_error"], row["reserved_error"])
    return max(1.0 if error is None else abs(error) for error in errors)


def _percent(error: float | None) -> str:
    if error is None:
        return "out of memory"
    return "exact" if error == 0 else f"{error:+.3%}"


def _not_compared(documents: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield what could not be compared: refused by the simulator, or not run by the fake GPU."""
    rows = [row for document in documents for row in document["rows"] if row["status"] != "ok"]
    if not rows:
        return
    yield from ("## What could not be compared", "")
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        side = "the simulator" if row["status"] == "failed" else "the fake GPU"
        reasons.setdefault((side, row["message"]), []).append(
            f"{row['model']} ({row['precision']})"
        )
    for (side, message), models in reasons.items():
        yield f"- {', '.join(models)}: {side}: `{message}`"
    yield ""


if __name__ == "__main__":
    main()
