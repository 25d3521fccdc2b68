"""As much of diffusers as bsfind looks at."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import nn


class ModelMixin(nn.Module):
    """The base class."""

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**fields)

    @classmethod
    def from_config(cls, fields: Mapping[str, Any]) -> ModelMixin:
        """Return the model of a configuration."""
        return cls(**fields)


class UNet(ModelMixin):
    """Takes noise, a time and a prompt."""

    def forward(self, sample, timestep, encoder_hidden_states, class_labels=None):  # type: ignore[no-untyped-def]
        """Never run."""


class WithAudio(ModelMixin):
    """Takes what bsfind knows nothing of."""

    def forward(self, hidden_states, audio):  # type: ignore[no-untyped-def]
        """Never run."""


class PackedTransformer(ModelMixin):
    """Takes tokens and their positions, as Flux does."""

    def forward(self, hidden_states, encoder_hidden_states, img_ids, txt_ids, guidance=None):  # type: ignore[no-untyped-def]
        """Never run."""


class Video3DModel(ModelMixin):
    """Takes clips."""

    def forward(self, hidden_states, timestep):  # type: ignore[no-untyped-def]
        """Never run."""


class ControlNet(ModelMixin):
    """Takes an image beside the sample."""

    def forward(self, sample, controlnet_cond, added_cond_kwargs=None):  # type: ignore[no-untyped-def]
        """Never run."""
