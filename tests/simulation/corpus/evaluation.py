"""Models of other families with an evaluation pass after the steps."""

from __future__ import annotations

from functools import partial

from tests.simulation.corpus import dense_prediction, language, vision
from tests.simulation.corpus.case import case

_convolutional = partial(case, "evaluation", kind="convolutional", with_eval=True)
_gpt = partial(case, "evaluation", language.__name__, kind="attention", with_eval=True)
_ids = "ids=128:int64:0..1000"

CASES = (
    _convolutional(vision.__name__, "resnet_evaluated", "ResNet", "3,96,96", eval_batch_size=32),
    _convolutional(vision.__name__, "vgg_evaluated", "Vgg", "3,64,64", loss="cross-entropy"),
    _convolutional(
        dense_prediction.__name__,
        *("unet_evaluated", "UNet", "3,96,96"),
        loss="cross-entropy",
        eval_batch_size=16,
    ),
    _gpt("gpt_evaluated", "Gpt", _ids, "labels=128:int64:0..1000"),
    _gpt("gpt_logits_evaluated", "Gpt", _ids, loss="cross-entropy", eval_batch_size=16),
)
