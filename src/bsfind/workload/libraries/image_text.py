"""transformers: models whose text has a token for each part of an image, such as LLaVA and Qwen-VL."""

from __future__ import annotations

from typing import Any

import torch

from bsfind.errors import UsageError
from bsfind.inputs import InputSpec
from bsfind.workload.libraries.base import Proposal, arguments_of, first_of

_TOKENS = ("image_token_id", "image_token_index")
_OTHER_TOKENS = ("video_token_id", "audio_token_id")
"""Fields of configurations for the tokens that mark the places of images and of other things."""

_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")

_MADE = frozenset(("input_ids", "attention_mask", "pixel_values", "image_grid_thw", *_TOKEN_TYPES))
"""Arguments of `forward` that the batches have."""

_FRAMES = 2
"""Equal frames in each patch of an image, in models that take videos in the same way."""

_FOLLOWS = frozenset(("image_size", "seq_len"))


def marks_places(model: Any) -> bool:
    """Tell whether the text of a model of transformers has tokens that mark the places of something."""
    takes = arguments_of(model)
    return (
        "input_ids" in takes
        and (model.main_input_name != "input_ids" or "pixel_values" in takes)
        and any(first_of(model.config, *_TOKENS, *_OTHER_TOKENS))
    )


def batches_of_text(
    model: Any, images: InputSpec | None, seq_len: int, vocabulary: int | None
) -> Proposal:
    """Return texts with one image each.

    Args:
        model: a model of which `marks_places` is true.
        images: its images; None: it takes none.
        seq_len: tokens of each text.
        vocabulary: how many different tokens there are; None: that is not known.

    Raises:
        UsageError: what it takes is not known.
    """
    takes, config = arguments_of(model), model.config
    field, token = next(first_of(config, *_TOKENS), ("", None))
    if token is not None and vocabulary is not None and token >= vocabulary:
        raise UsageError(
            f"`{field}` {token} is none of the {vocabulary:,} tokens of `{type(model).__name__}`",
            hint=f"set `{field}` or `vocab_size` in its configuration",
        )
    needs = {name for name, is_optional in takes.items() if not is_optional}
    arguments: dict[str, Any] = {}
    if images is not None and token is not None and vocabulary is not None and needs <= _MADE:
        height, width = images.shape[-2:]
        vision = getattr(config, "vision_config", None)
        arguments = (
            _cut(vision, height, width)
            if "image_grid_thw" in takes
            else _whole(model, (images.shape[-3], height, width))
        )
    if not arguments:
        field = next(name for name, _ in first_of(config, *_TOKENS, *_OTHER_TOKENS))
        raise UsageError(
            f"`{type(model).__name__}` takes text in which `{field}` marks the places of images or sounds",
            hint="make such batches yourself: `--batch-fn pkg.mod:fn`",
        )
    places = arguments["image_tokens"]
    types = next((name for name in _TOKEN_TYPES if name in takes), None)
    made = {
        "image_size": height if height == width else (height, width),
        "seq_len": seq_len,
        "vocabulary": vocabulary,
        "image_token": token,
        **arguments,
        **({"token_types": types} if types else {}),
    }
    return Proposal(
        why=f"`{type(config).__name__}`: one image of {height} × {width} in each text, which takes "
        f"{places:,} of its {seq_len:,} tokens; `--seq-len` and `--image-size` set others",
        follows=_FOLLOWS,
        batch_fn="bsfind.batches:image_text",
        batch_args=tuple((name, str(value)) for name, value in made.items()),
    )


def _cut(vision: Any, height: int, width: int) -> dict[str, Any]:
    """Return the arguments of batches with images that are cut into patches; `{}` if they are not known."""
    side, merged, frames = (
        getattr(vision, name, None)
        for name in ("patch_size", "spatial_merge_size", "temporal_patch_size")
    )
    if not isinstance(side, int) or not isinstance(merged, int) or frames != _FRAMES:
        return {}
    step = side * merged
    if height % step or width % step:
        raise UsageError(
            f"images of {height} × {width} cannot be cut into parts of {step} × {step}",
            hint=f"`--image-size {max(1, height // step) * step}`",
        )
    return {"image_tokens": (height // step) * (width // step), "patch": side}


def _whole(model: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the arguments of batches with whole images: the model says how many tokens one takes."""
    features = getattr(model, "get_image_features", None)
    width = getattr(model.config.get_text_config(), "hidden_size", None)
    if features is None or not isinstance(width, int):
        return {}
    like = next(model.parameters())
    for images in (0, 1):
        pixels = torch.ones((1, *(1,) * images, *shape), dtype=like.dtype, device=like.device)
        try:
            with torch.no_grad():
                found = features(pixel_values=pixels)
        except Exception:  # the model's own code: it takes something else
            continue
        found = getattr(found, "pooler_output", found)
        parts = found if isinstance(found, (list, tuple)) else [found]
        count = sum(part.numel() for part in parts) // width
        if count:
            return {"image_tokens": count, **({"images": images} if images else {})}
    return {}
