"""As much of a detector as bsfind looks at."""

from __future__ import annotations

from types import SimpleNamespace

from torch import nn


class Detector(nn.Module):
    """A detector with keypoints."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.transform = SimpleNamespace(fixed_size=(300, 300), min_size=(300,))
        scores = SimpleNamespace(out_features=classes)
        points = SimpleNamespace(kps_score_lowres=SimpleNamespace(out_channels=17))
        self.roi_heads = SimpleNamespace(
            box_predictor=SimpleNamespace(cls_score=scores),
            mask_predictor=None,
            keypoint_predictor=points,
        )
