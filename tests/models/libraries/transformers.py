"""As much of transformers as bsfind looks at: models that are built from a configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn


class PretrainedConfig:
    """Takes any field, as transformers does."""

    attribute_map: Mapping[str, str] = {}
    is_encoder_decoder = False
    pad_token_id: int | None = None

    def __init__(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, self.attribute_map.get(name, name), value)

    def get_text_config(self, decoder: bool | None = None) -> Any:
        """Return the part of it that is about text."""
        if hasattr(self, "text_encoder"):
            raise ValueError("Multiple valid text configs were found")
        return getattr(self, "text_config", self)


class PreTrainedModel(nn.Module):
    """The base class."""

    config_class: type = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(4, 4)

    def forward(self, input_ids=None, attention_mask=None, labels=None):  # type: ignore[no-untyped-def]
        """Never run."""


class TextConfig(PretrainedConfig):
    """Of a language model."""

    attribute_map: Mapping[str, str] = {"width": "hidden_size"}

    def __init__(self, **fields: Any) -> None:
        defaults = {"vocab_size": 100, "hidden_size": 8, "max_position_embeddings": 4096}
        super().__init__(**{**defaults, **fields})

    @classmethod
    def from_dict(cls, read: Mapping[str, Any]) -> TextConfig:
        """Return the configuration with these fields."""
        return cls(**read)


class TextForCausalLM(PreTrainedModel):
    """A language model with its own loss."""

    config_class = TextConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, input_ids=None, attention_mask=None, labels=None):  # type: ignore[no-untyped-def]
        """Return the logits, and the loss if there are labels."""
        hidden = self.embedding(input_ids)
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        logits = self.head(hidden)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"logits": logits, **({"loss": loss} if loss is not None else {})}


class RoutedForCausalLM(TextForCausalLM):
    """Routes every other token of a sequence to an expert, which takes no more than its capacity of them."""

    CAPACITY = 100
    READS_COUNTS = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.expert = nn.Linear(config.hidden_size, 24)
        self.back = nn.Linear(24, config.hidden_size)

    def forward(self, input_ids=None, attention_mask=None, labels=None):  # type: ignore[no-untyped-def]
        """Return the logits, and the loss if there are labels."""
        hidden = self.embedding(input_ids)
        position = torch.arange(hidden.shape[1], device=hidden.device, dtype=hidden.dtype)
        taken = (hidden[..., 0] * 0 + position) % 2 == 0
        taken = taken & (taken.cumsum(1) <= self.CAPACITY)
        sample, token = torch.where(taken)
        parts = [hidden[sample, token]]
        if self.READS_COUNTS:
            parts = parts[0].split(taken.sum(1).tolist())
        hidden = hidden.index_put(
            (sample, token), self.back(torch.cat([self.expert(part) for part in parts]))
        )
        logits = self.head(hidden)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}


class MaskedForCausalLM(RoutedForCausalLM):
    """Does not split what it routes."""

    READS_COUNTS = False


class TextForMultipleChoice(TextForCausalLM):
    """Never run."""


class WithPaddingPosition(PreTrainedModel):
    """Counts positions from the padding token's on, as RoBERTa does."""

    config_class = TextConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, 4, padding_idx=1)


class WithDecoder(PreTrainedModel):
    """Takes tokens for its decoder."""

    config_class = TextConfig

    def forward(self, input_ids=None, decoder_input_ids=None):  # type: ignore[no-untyped-def]
        """Never run."""


class ImageModel(PreTrainedModel):
    """Takes images."""

    main_input_name = "pixel_values"

    def forward(self, pixel_values=None, labels=None):  # type: ignore[no-untyped-def]
        """Never run."""


class ImageForObjectDetection(ImageModel):
    """Is trained with lists of labels."""


class ImageForUniversalSegmentation(ImageModel):
    """Is trained with lists of masks."""


class TextAndImageForObjectDetection(ImageModel):
    """Is trained with texts and lists of labels."""

    def forward(self, pixel_values, input_ids, labels=None):  # type: ignore[no-untyped-def]
        """Never run."""


class ImageAndTextModel(PreTrainedModel):
    """Takes both."""

    def forward(self, input_ids=None, pixel_values=None, attention_mask=None):  # type: ignore[no-untyped-def]
        """Never run."""


class ImageInTextModel(ImageAndTextModel):
    """Takes texts in which tokens mark the places of images, which have one for each 8 x 8 pixels."""

    def forward(  # type: ignore[no-untyped-def]
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        token_type_ids=None,
        labels=None,
    ):
        """Never run."""

    def get_image_features(self, pixel_values):  # type: ignore[no-untyped-def]
        """Return what stands in the places of the images, one list for each."""
        *rest, height, width = pixel_values.shape
        assert len(rest) == self.config.image_dims
        return [pixel_values.new_zeros(height * width // 64, self.config.text_config.hidden_size)]


class PatchesInTextModel(PreTrainedModel):
    """The same with images that are cut into patches."""

    def forward(  # type: ignore[no-untyped-def]
        self, input_ids=None, pixel_values=None, image_grid_thw=None, mm_token_type_ids=None
    ):
        """Never run."""


class SoundModel(PreTrainedModel):
    """Takes sounds."""

    main_input_name = "input_values"

    def forward(self, input_values=None, attention_mask=None):  # type: ignore[no-untyped-def]
        """Never run."""


class SpectrogramModel(PreTrainedModel):
    """Takes spectrograms, and tokens for its decoder."""

    main_input_name = "input_features"

    def forward(self, input_features=None, decoder_input_ids=None, labels=None):  # type: ignore[no-untyped-def]
        """Never run."""


class WithUnknownInput(PreTrainedModel):
    """Takes what bsfind knows nothing of."""

    main_input_name = "states"

    def forward(self, states, labels=None):  # type: ignore[no-untyped-def]
        """Never run."""


class PatchesForPrediction(PreTrainedModel):
    """Takes the context of a series."""

    main_input_name = "past_values"

    def forward(self, past_values, future_values=None):  # type: ignore[no-untyped-def]
        """Never run."""


class PatchesForClassification(PreTrainedModel):
    """Takes the context of a series, and its class."""

    main_input_name = "past_values"

    def forward(self, past_values, target_values=None):  # type: ignore[no-untyped-def]
        """Never run."""


class LagsForPrediction(PreTrainedModel):
    """Takes a series with the features of each of its times."""

    main_input_name = "past_values"

    def forward(  # type: ignore[no-untyped-def]
        self,
        past_values,
        past_time_features,
        past_observed_mask,
        static_categorical_features=None,
        static_real_features=None,
        future_values=None,
        future_time_features=None,
    ):
        """Never run."""


class AutoConfig:
    """Reads a folder."""

    @staticmethod
    def from_pretrained(folder: str, *, trust_remote_code: bool) -> Any:
        """Return the configuration that is written in a folder."""
        assert not trust_remote_code
        read = json.loads(Path(folder, "config.json").read_text())
        if read["model_type"] != "text":
            raise ValueError("Unrecognized model")
        return TextConfig(**read)
