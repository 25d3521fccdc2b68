"""transformers: classes that are built from a configuration, and inputs that follow from it."""

from __future__ import annotations

import difflib
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from bsfind.errors import TargetError, UsageError
from bsfind.inputs import InputSpec
from bsfind.records import Assumption
from bsfind.settings import Workload
from bsfind.workload.libraries.base import (
    IMAGE_SIZE,
    MAXIMUM_LENGTH,
    Proposal,
    arguments_of,
    batches_of,
    first_of,
    floats,
    height_and_width,
    integers,
    is_of,
)
from bsfind.workload.libraries.image_text import batches_of_text, marks_places
from bsfind.workload.libraries.series import TIME_FEATURES, inputs_of_series

_LENGTHS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"),
    *("max_text_positions",),
    *("seq_length", "max_source_positions", "max_target_positions"),
)
"""Fields of configurations for the most tokens that a model takes."""

_WITH_BOXES = ("ForObjectDetection", "DetrForSegmentation")
_WITH_MASKS = ("ForUniversalSegmentation", "ForInstanceSegmentation")
"""Endings of the names of classes that are trained with lists of labels."""

_UNSET = {"vocab_size": 33, "prediction_length": 24}
"""Fields that some configurations have no default for, with examples: many models cannot be built without."""

_ZERO = {"num_time_features": TIME_FEATURES}
"""Fields whose default of 0 leaves an input without a size, with examples."""

_CHOICES = 4
"""Answers to choose from, in models of multiple choice."""

_SOUND_SAMPLES = 160_000
"""Samples of a sound: ten seconds at 16 kHz."""

_SOUND_FRAMES = 1000
"""Frames of a spectrogram: ten seconds."""


def from_default_configuration(found: Any) -> Callable[..., nn.Module] | None:
    """Return a function that builds a class of transformers from the defaults of its configuration.

    The arguments of the function are fields of the configuration. A class or function that is not
    called with a configuration alone gives None.

    Args:
        found: what a target names.
    """
    config_class = getattr(found, "config_class", None)
    if not inspect.isclass(found) or not inspect.isclass(config_class):
        return None
    required = [
        p.name
        for p in inspect.signature(found).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if required != ["config"]:
        return None

    build: Any = found
    configuration: Any = config_class

    def make(**fields: Any) -> nn.Module:
        if "config" in fields:
            given: nn.Module = build(**fields)
            return given
        check_fields(configuration(), fields)
        config = configuration(**fields)
        set_tokens(config, build)
        try:
            model: nn.Module = build(config)
        except (TypeError, ValueError) as error:
            unset = {f: value for f, value in _UNSET.items() if getattr(config, f, value) is None}
            if not unset:
                raise
            unset |= {f: value for f, value in _ZERO.items() if getattr(config, f, value) == 0}
            options = " ".join(f"--model-arg {f}={value}" for f, value in unset.items())
            raise TargetError(
                f"the defaults of `{configuration.__name__}` have no `{'`, `'.join(unset)}`",
                hint=f"set {'it' if len(unset) == 1 else 'them'}: `{options}`",
            ) from error
        _FROM_DEFAULTS.add(model)
        return model

    return make


def set_tokens(config: Any, cls: type[nn.Module]) -> None:
    """Set the special tokens of a configuration that a class cannot be trained without.

    Args:
        config: the configuration, which is changed.
        cls: a class of transformers.
    """
    if config.is_encoder_decoder:
        decoder = getattr(config, "decoder", None)  # MusicGen's
        parts: list[Any] = [config, *([decoder] if hasattr(decoder, "to_dict") else [])]
        for part in parts:
            if getattr(part, "decoder_start_token_id", None) is None:
                part.decoder_start_token_id = 0  # T5 makes no decoder tokens of labels without one
    if (
        cls.__name__.endswith("ForSequenceClassification")
        and getattr(config, "pad_token_id", 0) is None
    ):
        config.pad_token_id = 0  # GPT-2 and others look for the end of each text with it


def assumed_configuration(model: nn.Module) -> Assumption | None:
    """Return what was assumed where a class was built from the defaults of its configuration."""
    if model not in _FROM_DEFAULTS:
        return None
    return Assumption(
        what="configuration",
        value=f"the defaults of `{type(model.config).__name__}`",
        why="no configuration was named; `--model-arg FIELD=VALUE` sets one of its fields, and "
        "`hf:FOLDER` takes a `config.json`",
    )


_FROM_DEFAULTS: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def check_fields(config: Any, fields: Mapping[str, Any]) -> None:
    """Make sure that a configuration, which takes any field, has those that are to be set.

    Raises:
        TargetError: it has not; the hint names the nearest field.
    """
    for name in fields:
        known = [*vars(config), *getattr(config, "attribute_map", {})]
        if name == "attn_implementation" or name in known or hasattr(config, name):
            continue
        nearest = difflib.get_close_matches(name, [n for n in known if not n.startswith("_")], n=1)
        raise TargetError(
            f"`{type(config).__name__}` has no field `{name}`",
            hint=f"did you mean `--model-arg {nearest[0]}=…`?" if nearest else "",
        )


def propose(model: Any, workload: Workload) -> Proposal | None:
    """Return inputs that a model of transformers takes; None if they do not follow from its configuration.

    Raises:
        UsageError: bsfind does not make what such a model is trained with.
    """
    if is_of(model, "peft") and callable(getattr(model, "get_base_model", None)):
        model = model.get_base_model()
    if not is_of(model, "transformers", "PreTrainedModel"):
        return None
    if workload.mode == "train" and type(model).__name__.endswith((*_WITH_BOXES, *_WITH_MASKS)):
        return _lists_of_labels(model)
    inputs = _Inputs(model, workload)
    if marks_places(model):
        return inputs.with_places()
    found = tuple(inputs.find())
    if not found:
        return None
    return Proposal(
        inputs=found,
        why=f"`{type(model.config).__name__}`: {', '.join(dict.fromkeys(inputs.reasons))}",
        follows=frozenset(inputs.follows),
    )


def _lists_of_labels(model: Any) -> Proposal:
    """Return images and lists of what is in each, as detectors and models of masks are trained with.

    Raises:
        UsageError: the model takes something else besides, as a text.
    """
    name, takes = type(model).__name__, arguments_of(model)
    needs = {argument for argument, is_optional in takes.items() if not is_optional}
    made = {"pixel_values", "labels", "mask_labels", "class_labels"}
    if not needs <= made or takes.keys() & {"input_ids", "task_inputs"}:
        others = ", ".join(f"`{argument}`" for argument in needs - made)
        raise UsageError(
            f"`{name}` is trained with lists of labels and {others or 'texts'}, which bsfind does not make",
            hint="make the batches yourself: `--batch-fn pkg.mod:fn`",
        )
    classes = model.config.num_labels
    size = height_and_width(getattr(model.config, "image_size", None))
    why = f"`{type(model.config).__name__}`: {classes} labels"
    why += ", its `image_size`" if size else ", and images of the usual size"
    return batches_of(
        "detr" if name.endswith(_WITH_BOXES) else "mask2former",
        f"{why}; `--image-size` sets another",
        image_size=size,
        classes=classes,
        masks=name.endswith("DetrForSegmentation"),
    )


class _Inputs:
    """Finds the inputs of one model, and why they are as they are."""

    def __init__(self, model: Any, workload: Workload) -> None:
        self._model = model
        self._config = model.config
        self._name = type(model).__name__
        self._workload = workload
        self._arguments = arguments_of(model)
        self.reasons: list[str] = []
        self.follows: set[str] = set()

    def find(self) -> Iterator[InputSpec]:
        """Yield the inputs; none at all if one of them is not known."""
        main = self._model.main_input_name
        has_text = "input_ids" in self._arguments
        found = []
        if has_text:
            found += self._text("input_ids", self._text_config())
        if "pixel_values" in self._arguments:
            found += self._images()
        for name in ("input_features", "input_values"):
            if name in self._arguments:
                found += self._sound(name)
        if "decoder_input_values" in self._arguments:  # SpeechT5, whose labels are spectrograms
            frames = _SOUND_FRAMES // self._config.reduction_factor
            found.append(floats("decoder_input_values", frames, self._config.num_mel_bins))
            self.reasons.append(f"{_SOUND_FRAMES:,} frames of speech: sixteen seconds")
        if main == "past_values":
            is_trained = self._workload.mode == "train"
            found += inputs_of_series(self._model, self._arguments, is_trained=is_trained)
            self.reasons.append("the lengths of its series")
        names = {spec.name for spec in found}
        missing = [n for n, optional in self._arguments.items() if not optional and n not in names]
        if main not in names or missing:
            return
        yield from found
        if self._needs_decoder_tokens():
            yield from self._decoder_text()

    def with_places(self) -> Proposal:
        """Return texts in which a token marks the places of images.

        Raises:
            UsageError: what the model takes besides is not known.
        """
        config = self._text_config()
        images = self._images() if "pixel_values" in self._arguments else [None]
        return batches_of_text(
            self._model, images[0], self._length(config), self._vocabulary(config)
        )

    # ------------------------------------------------------------------------------- text

    def _text_config(self, *, decoder: bool | None = None) -> Any:
        try:
            return self._config.get_text_config(decoder=decoder)
        except ValueError:  # there are several: text goes into the encoder, sound into the decoder
            for _, part in first_of(self._config, "text_encoder"):
                return part
            raise

    def _text(self, name: str, config: Any) -> list[InputSpec]:
        vocabulary = self._vocabulary(config)
        if vocabulary is None:
            return []
        shape = [self._length(config)]
        if self._name.endswith("ForMultipleChoice"):
            shape = [_CHOICES, *shape]
            self.reasons.append(f"{_CHOICES} choices")
        found = [integers(name, vocabulary, *shape)]
        if name == "input_ids" and "attention_mask" in self._arguments:
            found.append(integers("attention_mask", 2, *shape, low=1))
            self.reasons.append("no padding")
        if name == "input_ids" and "global_attention_mask" in self._arguments:
            found.append(integers("global_attention_mask", 1, *shape))
            self.reasons.append("no token that attends to all")
        return found

    def _vocabulary(self, config: Any) -> int | None:
        size = getattr(config, "vocab_size", None)
        if not isinstance(size, int):
            return None
        self.reasons.append(f"`vocab_size` {size:,}")
        return size

    def _length(self, config: Any) -> int:
        """Return the number of tokens: what was asked for, or the most that the model takes, capped."""
        self.follows.add("seq_len")
        most: int | None
        field, most = next(
            ((name, value) for name, value in first_of(config, *_LENGTHS) if _is_count(value)),
            ("", None),
        )
        unused = 0 if most is None else self._unused_positions()
        if most is not None:
            most -= unused
        asked = self._workload.seq_len
        if asked is not None:
            if most is not None and asked > most:
                raise UsageError(
                    f"`--seq-len {asked}` is more than the {most} tokens that `{self._name}` takes",
                    hint=f"`--model-arg {field}={asked + unused}` builds it for more",
                    limit=most,
                )
            return asked
        if most is not None and most <= MAXIMUM_LENGTH:
            self.reasons.append(f"`{field}` {most:,}")
            return most
        at_most = f" of the {most:,} that it takes (`{field}`)" if most is not None else ""
        self.reasons.append(f"{MAXIMUM_LENGTH:,} tokens{at_most}; `--seq-len` sets another length")
        return MAXIMUM_LENGTH

    def _unused_positions(self) -> int:
        """Return how many rows of a table of positions stand in front of the first token's.

        RoBERTa and its relatives count positions from the padding token's on.
        """
        for name, module in self._model.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                return 0 if module.padding_idx is None else module.padding_idx + 1
        return 0

    def _needs_decoder_tokens(self) -> bool:
        if "decoder_input_ids" not in self._arguments:
            return False
        workload = self._workload
        makes_labels = workload.mode == "train" and workload.loss == "auto" and not workload.step
        return not makes_labels or "labels" not in self._arguments

    def _decoder_text(self) -> list[InputSpec]:
        return self._text("decoder_input_ids", self._text_config(decoder=True))

    # ------------------------------------------------------------------------------- images

    def _images(self) -> list[InputSpec]:
        parts = ("vision_config", "encoder")
        config = next((part for _, part in first_of(self._config, *parts)), self._config)
        channels = next(
            (value for _, value in first_of(config, "num_channels", "in_channels", "in_chans")), 3
        )
        field, size = next(
            (
                (name, size)
                for name, value in first_of(config, "image_size")
                if (size := height_and_width(value)) is not None
            ),
            ("", (IMAGE_SIZE, IMAGE_SIZE)),
        )
        self.follows.add("image_size")
        asked = height_and_width(self._workload.image_size)
        if asked is not None:
            size = asked
        elif field:
            self.reasons.append(f"`{field}` {size[0]} × {size[1]}")
        else:
            self.reasons.append(f"no size of images, so {IMAGE_SIZE} × {IMAGE_SIZE}")
        frames = getattr(config, "num_frames", None)
        if frames is not None:
            self.reasons.append(f"`num_frames` {frames}")
            return [floats("pixel_values", frames, channels, *size)]
        return [floats("pixel_values", channels, *size)]

    # ------------------------------------------------------------------------------- sound

    def _sound(self, name: str) -> Sequence[InputSpec]:
        config = self._config
        mel, positions = (
            getattr(config, n, None) for n in ("num_mel_bins", "max_source_positions")
        )
        if mel is not None and positions is not None:  # Whisper
            self.reasons.append(f"`num_mel_bins` {mel}, `max_source_positions` {positions:,}")
            return [floats(name, mel, 2 * positions)]
        if mel is not None and getattr(config, "max_length", None):  # AST
            self.reasons.append(f"`max_length` {config.max_length:,}, `num_mel_bins` {mel}")
            return [floats(name, config.max_length, mel)]
        audio = getattr(config, "audio_config", config)
        if getattr(audio, "spec_size", None) and not getattr(audio, "enable_fusion", False):  # CLAP
            self.reasons.append(f"`num_mel_bins` {audio.num_mel_bins}, ten seconds of sound")
            return [floats(name, 1, _SOUND_FRAMES + 1, audio.num_mel_bins)]
        if (channels := getattr(config, "audio_channels", None)) is not None:  # codecs
            self.reasons.append(f"`sampling_rate` {config.sampling_rate:,}: one second")
            return [floats(name, channels, config.sampling_rate)]
        for field, width in first_of(
            config, "input_feat_per_channel", "feature_projection_input_dim"
        ):
            self.reasons.append(f"`{field}` {width}, {_SOUND_FRAMES:,} frames: ten seconds")
            return [floats(name, _SOUND_FRAMES, width)]
        if getattr(config, "conv_stride", None) is not None:  # wav2vec 2.0 and its relatives
            self.reasons.append(f"{_SOUND_SAMPLES:,} samples: ten seconds at 16 kHz")
            return [floats(name, _SOUND_SAMPLES)]
        return ()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value > 0
