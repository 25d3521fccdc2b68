"""`--with-eval`: the evaluation pass after the steps of a trial, predicted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.cli.processes import MODELS, bsfind, document

pytestmark = pytest.mark.slow

NET = (f"{MODELS}/well_behaved.py:ConvNet", "--input-shape", "3,64,64", "--gpu", "2GiB")
FP32 = ("--precision", "fp32")

LIT = '''
import torch
from torch import nn


class LightningModule(nn.Module):
    """What bsfind takes for Lightning's: of a package of this name."""

    automatic_optimization = True

    def validation_step(self, *args):
        """Nothing, as in Lightning."""


LightningModule.__module__ = "lightning.pytorch.core.module"


class Lit(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(64, 64)

    def training_step(self, batch):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Validated(Lit):
    def validation_step(self, batch, batch_idx):
        assert not self.training and self.trainer.validating and not torch.is_grad_enabled()
        assert self.net.weight.grad is not None
        return self.net(batch.repeat(1, 8).reshape(-1, 64))
'''


def test_a_large_batch_of_the_evaluation_sets_the_peak() -> None:
    check = ("check", *NET, *FP32, "-b", "16")
    (plain,) = document(*check)["results"][0]["trials"]
    assert plain["evaluation"] is None
    found = document(*check, "--with-eval", "--eval-batch-size", "256")
    (trial,) = found["results"][0]["trials"]
    evaluation = trial["evaluation"]
    assert evaluation["batch_size"] == 256
    assert evaluation["is_decisive"]
    assert trial["peaks_by_step"] == plain["peaks_by_step"]
    assert trial["peak_allocated_bytes"] == evaluation["peak_allocated_bytes"]
    assert trial["peak_allocated_bytes"] > 4 * plain["peak_allocated_bytes"]
    # Images, the convolution's output, and that of batch normalisation: nothing is kept for a backward pass.
    assert trial["peak_allocated_bytes"] > 256 * (3 + 2 * 32) * 64 * 64 * 4
    assert "--with-eval --eval-batch-size 256" in found["reproduce"]
    screen = bsfind(*check, "--with-eval", "--eval-batch-size", "256")
    told = " ".join(screen.stdout.split())
    assert "training and evaluation" in told
    assert "evaluation (forward pass and loss)" in told
    assert re.search(
        r"Evaluation sets the peak: training up to [\d.]+ MiB allocated, the evaluation of 256 samples up to",
        told,
    )


def test_what_runs_out_of_memory_is_named() -> None:
    asked = (*NET, *FP32, "--with-eval")
    done = bsfind("run", *asked, "--eval-batch-size", "4096")
    assert done.returncode == 1
    told = " ".join(done.stdout.split())
    assert "batch size 1 does not run: in the evaluation of 4,096 samples: out of memory" in told
    assert "hint: a smaller batch may fit in the evaluation: `--eval-batch-size 2048`" in told
    found = document("run", *asked)
    (result,) = found["results"]
    trials = {trial["batch_size"]: trial for trial in result["trials"]}
    best, failed = (trials[result[n]] for n in ("max_batch_size", "smallest_failed_batch_size"))
    assert best["evaluation"]["batch_size"] == best["batch_size"]
    assert not best["evaluation"]["is_decisive"]
    assert best["peak_allocated_bytes"] == max(best["peaks_by_step"])
    assert failed["evaluation"] is None  # in its steps
    assumed = {made["what"]: made["value"] for made in found["workload"]["assumptions"]}
    assert assumed["evaluation"] == "forward pass and loss"


def test_a_lightning_module_is_evaluated_by_its_validation_step(tmp_path: Path) -> None:
    (tmp_path / "lit.py").write_text(LIT)
    asked = (*("--input-shape", "64", "--gpu", "1GiB"), *FP32, "-b", "1000", "--with-eval")
    found = document("check", f"{tmp_path}/lit.py:Validated", *asked)
    (trial,) = found["results"][0]["trials"]
    assert trial["evaluation"]["is_decisive"]
    assumed = {made["what"]: made["value"] for made in found["workload"]["assumptions"]}
    assert assumed["evaluation"] == "the module's validation_step"
    done = bsfind("check", f"{tmp_path}/lit.py:Lit", *asked)
    assert done.returncode == 2
    assert "`Lit` has no `validation_step`" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--with-eval", "--mode", "infer"), "`--with-eval` has no meaning with `--mode infer`"),
        (("--eval-batch-size", "8"), "`--eval-batch-size` requires `--with-eval`"),
    ],
)
def test_options_that_do_not_go_together(options: tuple[str, ...], told: str) -> None:
    done = bsfind("run", *NET, *options)
    assert done.returncode == 2
    assert told in done.stderr
