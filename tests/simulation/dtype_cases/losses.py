"""Losses with their targets."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F  # noqa: N812 - as everybody names it
from tests.simulation.dtype_cases import case
from tests.simulation.dtype_cases.case import constant, data, index

real_table = partial(case.table, others=case.REAL)

real_table("cross_entropy", F.cross_entropy, data(8, 4), index(8), regions=True)
real_table("cross_entropy, weight", F.cross_entropy, data(8, 4), index(8), constant(4))
real_table(
    "cross_entropy, smooth", partial(F.cross_entropy, label_smoothing=0.1), data(8, 4), index(8)
)
real_table("cross_entropy, dense", F.cross_entropy, data(2, 4, 8, 8), index(2, 8, 8))
real_table("cross_entropy, none", partial(F.cross_entropy, reduction="none"), data(8, 4), index(8))
real_table("cross_entropy, one", F.cross_entropy, data(4), index())
real_table("cross_entropy, scores", F.cross_entropy, data(8, 4), data(8, 4))
real_table("nll_loss", F.nll_loss, data(8, 4), index(8))
real_table("nll_loss, weight", F.nll_loss, data(8, 4), index(8), constant(4))
real_table("nll_loss, dense", F.nll_loss, data(2, 4, 8, 8), index(2, 8, 8))
real_table("bce", F.binary_cross_entropy, data(8, 4), data(8, 4))
real_table("bce, weight", F.binary_cross_entropy, data(8, 4), data(8, 4), constant(8, 4))
real_table("bce with logits", F.binary_cross_entropy_with_logits, data(8, 4), data(8, 4))
real_table(
    "bce with logits, weight",
    F.binary_cross_entropy_with_logits,
    data(8, 4),
    data(8, 4),
    constant(8, 4),
)
for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "poisson_nll_loss"):
    real_table(name, getattr(F, name), data(8, 4), data(8, 4))
real_table(
    "mse_loss, weight",
    lambda x, y, w: F.mse_loss(x, y, weight=w),
    data(8, 4),
    data(8, 4),
    constant(8, 4),
)
for name in ("soft_margin_loss", "multilabel_soft_margin_loss", "hinge_embedding_loss"):
    real_table(name, getattr(F, name), data(8, 4), constant(8, 4))
real_table("multi_margin_loss", F.multi_margin_loss, data(8, 4), index(8))
real_table("multilabel_margin_loss", F.multilabel_margin_loss, data(8, 4), index(8, 4))
real_table("margin_ranking_loss", F.margin_ranking_loss, data(8), data(8), data(8))
real_table("cosine_embedding_loss", F.cosine_embedding_loss, data(8, 4), data(8, 4), data(8))
real_table("triplet_margin_loss", F.triplet_margin_loss, data(8, 4), data(8, 4), constant(8, 4))
real_table("gaussian_nll_loss", F.gaussian_nll_loss, data(8, 4), data(8, 4), constant(8, 4))
real_table("cosine_similarity", F.cosine_similarity, data(8, 4), data(8, 4))


def _ctc(log_probs, targets):
    return F.ctc_loss(log_probs, targets, [16, 16], [4, 4])


real_table("ctc_loss", _ctc, data(16, 2, 8), index(2, 4))
