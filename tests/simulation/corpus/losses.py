"""Every loss of torch.nn, but `AdaptiveLogSoftmaxWithLoss`, whose masks need values."""

from __future__ import annotations

from functools import partial

import torch
from tests.simulation.corpus.case import case
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Losses(nn.Module):
    """The sum of several losses of one network's output.

    Args:
        group: which losses.
    """

    def __init__(self, group: str, classes: int = 1000) -> None:
        super().__init__()
        self.net, self.group = nn.Linear(64, classes), group
        self.register_buffer("weight", torch.rand(classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(getattr(self, self.group)(self.net(x)))

    def classification(self, y: torch.Tensor) -> list[torch.Tensor]:
        n, classes = y.shape
        target = torch.randint(0, classes, (n,), device=y.device)
        soft = torch.rand(n, classes, device=y.device).softmax(1)
        return [
            F.cross_entropy(y, target),
            F.cross_entropy(y, target, weight=self.weight, label_smoothing=0.1),
            F.cross_entropy(y, target, reduction="sum", ignore_index=3),
            F.cross_entropy(y, target, reduction="none").mean(),
            F.cross_entropy(y, soft),
            F.nll_loss(y.log_softmax(1), target),
            F.multi_margin_loss(y.float(), target),
            F.kl_div(y.log_softmax(1), soft, reduction="batchmean"),
        ]

    def regression(self, y: torch.Tensor) -> list[torch.Tensor]:
        target = torch.rand_like(y)
        return [
            F.mse_loss(y, target),
            F.l1_loss(y, target),
            F.l1_loss(y, target, reduction="none").mean(),
            F.smooth_l1_loss(y, target),
            F.huber_loss(y, target, delta=0.5),
            F.poisson_nll_loss(y, target),
            F.gaussian_nll_loss(y.float(), target.float(), torch.ones_like(y, dtype=torch.float32)),
        ]

    def binary(self, y: torch.Tensor) -> list[torch.Tensor]:
        target = (torch.rand_like(y) > 0.5).to(y.dtype)
        with torch.autocast(y.device.type, enabled=False):
            plain = F.binary_cross_entropy(y.float().sigmoid(), target.float())
        return [
            plain,
            F.binary_cross_entropy_with_logits(y, target),
            F.binary_cross_entropy_with_logits(y, target, pos_weight=self.weight, reduction="sum"),
            F.soft_margin_loss(y, target * 2 - 1),
            F.hinge_embedding_loss(y, target * 2 - 1),
            F.multilabel_soft_margin_loss(y, target),
        ]

    def embedding(self, y: torch.Tensor) -> list[torch.Tensor]:
        other, third = y.roll(1, 0), y.roll(2, 0)
        sign = torch.ones(y.shape[0], device=y.device)
        triplet = nn.TripletMarginWithDistanceLoss(distance_function=nn.PairwiseDistance())
        return [
            F.cosine_embedding_loss(y, other, sign),
            F.margin_ranking_loss(y[:, 0], other[:, 0], sign),
            F.triplet_margin_loss(y, other, third),
            triplet(y, other, third),
        ]


class PixelLoss(nn.Module):
    """Cross-entropies over pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 19, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.net(x)
        target = torch.randint(0, 19, (x.shape[0], *x.shape[2:]), device=x.device)
        return (
            F.cross_entropy(y, target, ignore_index=255)
            + F.cross_entropy(y, target, label_smoothing=0.1, reduction="none").mean()
        )


_case = partial(case, "losses", __name__, batch_sizes=(100,))

CASES = (
    *(
        _case(f"losses_{group}", "Losses", "64", args={"group": group})
        for group in ("classification", "regression", "binary", "embedding")
    ),
    _case("losses_pixels", "PixelLoss", "3,64,64", batch_sizes=(4,)),
)
