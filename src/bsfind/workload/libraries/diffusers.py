"""diffusers: what its models of noise and its autoencoders are called with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from bsfind.errors import UsageError
from bsfind.inputs import InputSpec
from bsfind.settings import Workload
from bsfind.workload.libraries.base import (
    Proposal,
    arguments_of,
    first_of,
    floats,
    height_and_width,
    integers,
    is_of,
)

_SAMPLE_SIZE = 64
"""Height and width of a sample where the configuration names none: an image of 512 × 512 in latents."""

_FRAMES = 13
"""Frames of a clip in latents where the configuration names none: 49 frames of a video."""

_TEXTS = {
    "joint_attention_dim": 512,
    "caption_channels": 300,
    "text_embed_dim": 226,
    "text_dim": 512,
    "encoder_hid_dim": 77,
    "cross_attention_dim": 77,
}
"""Fields for the width of an encoded prompt, and its tokens: T5's in the pipelines, CLIP's 77."""

_TIMESTEPS = 1000


def propose(model: nn.Module, workload: Workload) -> Proposal | None:
    """Return inputs that a model of diffusers takes; None if it is not of diffusers.

    Raises:
        UsageError: it takes something that bsfind does not make.
    """
    if not is_of(model, "diffusers", "ModelMixin"):
        return None
    inputs = _Inputs(model, workload)
    return Proposal(
        inputs=tuple(inputs.find()),
        why=f"the configuration of `{type(model).__name__}`: {', '.join(inputs.reasons)}",
        follows=frozenset(("image_size",)),
    )


class _Inputs:
    """Finds the inputs of one model, and why they are as they are."""

    def __init__(self, model: Any, workload: Workload) -> None:
        self._model = model
        self._config = model.config
        self._name = type(model).__name__
        self._arguments = arguments_of(model)
        self.reasons: list[str] = []
        self._size = self._sample_size(workload)

    def find(self) -> Iterator[InputSpec]:
        """Yield an input for each argument of `forward` that a call needs."""
        for name, is_optional in self._arguments.items():
            found = self._inputs(name)
            yield from found
            if not found and not is_optional:
                raise self._unknown(f"`{name}`")

    def _unknown(self, what: str) -> UsageError:
        return UsageError(
            f"`{self._name}` takes {what}, which bsfind does not make",
            hint="make the batches yourself: `--batch-fn pkg.mod:fn`",
        )

    def _field(self, *names: str) -> Any:
        return next((value for _, value in first_of(self._config, *names)), None)

    def _inputs(self, name: str) -> Sequence[InputSpec]:
        """Return the inputs for an argument; none if there is nothing to pass."""
        if name in ("sample", "hidden_states"):
            return self._sample(name)
        if name == "timestep":
            return [integers(name, _TIMESTEPS)]
        if name == "encoder_hidden_states":
            return self._prompt(name)
        if name == "added_cond_kwargs":
            return self._conditions(name)
        if name in ("img_ids", "txt_ids"):  # positions, of every sample the same
            tokens = self._packed() if name == "img_ids" else _TEXTS["joint_attention_dim"]
            return [floats(name, tokens, len(self._field("axes_dims_rope") or (0, 0, 0)))]
        if name == "controlnet_cond":
            return self._image(name)
        if name == "guidance" and self._field("guidance_embeds"):
            return [floats(name)]
        if name == "added_time_ids":
            width = self._field("projection_class_embeddings_input_dim")
            return [floats(name, width // self._config.addition_time_embed_dim)]
        if name == "class_labels" and (classes := self._classes):
            return [integers(name, classes)]
        if name == "pooled_projections" and (width := self._field("pooled_projection_dim")):
            return [floats(name, width)]
        return ()

    @property
    def _classes(self) -> int | None:
        found: int | None = self._field("num_class_embeds", "num_embeds_ada_norm")
        return found

    # ------------------------------------------------------------------------------- samples

    def _sample_size(self, workload: Workload) -> tuple[int, int]:
        """Return the height and width of a sample."""
        asked = height_and_width(workload.image_size)
        if asked is not None:
            return asked
        size = height_and_width(self._field("sample_size"))
        if size is None and self._field("sample_height"):
            size = self._config.sample_height, self._config.sample_width
        if size is not None:
            self.reasons.append(f"`sample_size` {size[0]} × {size[1]}")
            return size
        self.reasons.append(f"no `sample_size`, so {_SAMPLE_SIZE}; `--image-size` sets another")
        return _SAMPLE_SIZE, _SAMPLE_SIZE

    def _packed(self) -> int:
        """Return the tokens of a sample of which each token is 2 × 2 pixels, as in Flux."""
        return (self._size[0] // 2) * (self._size[1] // 2)

    def _sample(self, name: str) -> Sequence[InputSpec]:
        channels = self._field("in_channels")
        if channels is None:
            return ()
        self.reasons.append(f"`in_channels` {channels}")
        if "img_ids" in self._arguments:
            self.reasons.append("a token for each 2 × 2 pixels")
            return [floats(name, self._packed(), channels)]
        if "1D" in self._name:
            return [floats(name, channels, self._size[0])]
        frames = self._frames()
        if frames is None:
            return [floats(name, channels, *self._size)]
        is_frames_first = "SpatioTemporal" in self._name or "CogVideoX" in self._name
        of_clip = (frames, channels) if is_frames_first else (channels, frames)
        return [floats(name, *of_clip, *self._size)]

    def _frames(self) -> int | None:
        """Return the number of frames in a clip of latents; None for images."""
        is_video = any(word in self._name for word in ("3D", "Video", "Motion", "SpatioTemporal"))
        if not is_video and not any(isinstance(m, nn.Conv3d) for m in self._model.modules()):
            return None
        frames = self._field("num_frames")
        if frames is None and self._field("sample_frames"):
            frames = (self._config.sample_frames - 1) // self._config.temporal_compression_ratio + 1
        if isinstance(frames, int):
            self.reasons.append(f"{frames} frames")
            return frames
        self.reasons.append(f"{_FRAMES} frames, as the configuration names none")
        return _FRAMES

    def _image(self, name: str) -> Sequence[InputSpec]:
        """Return the image that a ControlNet follows, as large as the sample when it is decoded."""
        halvings = self._field("conditioning_embedding_out_channels")
        if halvings is None:
            return ()
        scale = 2 ** (len(halvings) - 1)
        channels = self._config.conditioning_channels
        return [floats(name, channels, *(scale * size for size in self._size))]

    # ------------------------------------------------------------------------------- prompts

    def _prompt(self, name: str) -> Sequence[InputSpec]:
        for field, width in first_of(self._config, *_TEXTS):
            if isinstance(width, int):
                tokens = self._field("max_text_seq_length") or _TEXTS[field]
                self.reasons.append(f"`{field}` {width:,}, {tokens} tokens")
                return [floats(name, tokens, width)]
        return ()

    def _conditions(self, name: str) -> Sequence[InputSpec]:
        """Return the items of the dict of further conditions, as SDXL and PixArt take them."""
        kind = self._field("addition_embed_type")
        if kind == "text_time":
            of_times = 6 * self._config.addition_time_embed_dim  # sizes and crops
            width = self._config.projection_class_embeddings_input_dim - of_times
            return [floats(f"{name}.text_embeds", width), floats(f"{name}.time_ids", 6)]
        if kind not in (None, "text"):
            raise self._unknown(f"`{name}` of the kind `{kind}`")
        if getattr(self._model, "use_additional_conditions", False):
            return [floats(f"{name}.resolution", 2), floats(f"{name}.aspect_ratio", 1)]
        return ()
