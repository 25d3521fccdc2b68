"""Models of libraries: how they are found and built, and the inputs that follow from them.

The libraries are stand-ins (tests/models/libraries); where transformers is installed, its own classes
are asked too.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import nn

from bsfind.errors import TargetError, UsageError
from bsfind.inputs import parse_input
from bsfind.settings import Workload
from bsfind.workload.inputs import batch_function
from bsfind.workload.libraries.proposals import with_inputs
from bsfind.workload.libraries.timm import assumed_classes
from bsfind.workload.libraries.transformers import (
    assumed_configuration,
    from_default_configuration,
)
from bsfind.workload.model import build_model
from bsfind.workload.user_errors import user_error

STAND_INS = Path(__file__).parents[1] / "models" / "libraries"
LIBRARIES = {"transformers", "timm", "torchvision", "diffusers"}


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the stand-ins be imported, whatever is installed."""

    def forget() -> dict[str, Any]:
        mine = [name for name in sys.modules if name.partition(".")[0] in LIBRARIES]
        return {name: sys.modules.pop(name) for name in mine}

    monkeypatch.syspath_prepend(str(STAND_INS))
    installed = forget()
    try:
        yield
    finally:
        forget()
        sys.modules.update(installed)


def inputs_of(model: nn.Module, **options: Any) -> list[str]:
    workload, assumed = with_inputs(Workload(**{"target": "a:b", **options}), model)
    assert assumed is not None
    assert assumed.what == "inputs"
    return [str(spec) for spec in workload.inputs]


def transformers_model(name: str, **fields: Any) -> Any:
    return build_model(f"transformers:{name}", fields)


# ------------------------------------------------------------------------------------- targets


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("target", ["timm:net50", "timm:net101.some_tag"])
def test_timm_by_name(target: str) -> None:
    model = build_model(target, {"in_chans": 1, "num_classes": 5})
    assert model.head.out_features == 5
    assert inputs_of(model) == ["1,32,32"]
    assert inputs_of(model, image_size=64) == ["1,64,64"]


@pytest.mark.usefixtures("libraries")
def test_a_backbone_of_timm_gets_classes() -> None:
    assert assumed_classes(build_model("timm:net50", {})) is None
    backbone = build_model("timm:backbone50", {"num_classes": 0})
    assert isinstance(backbone.head, nn.Identity)
    assert assumed_classes(backbone) is None
    model = build_model("timm:backbone50", {})
    assert model.head.out_features == 1000
    assumed = assumed_classes(model)
    assert assumed is not None
    assert assumed.value == "--model-arg num_classes=1000"


@pytest.mark.usefixtures("libraries")
def test_torchvision_by_name() -> None:
    model = build_model("torchvision:net", {"classes": 5})
    assert model[0].out_features == 5
    for target in ("torchvision:net", "mypkg.models:make"):
        assert inputs_of(model, target=target) == ["3,96,96"]


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    ("target", "arguments", "said"),
    [
        ("timm:net52", {}, "`timm:net50`"),
        ("torchvision:nett", {}, "`torchvision:net`"),
        ("timm:net50", {"pretrained": True}, "leave `--model-arg pretrained=True` out"),
        ("torchvision:net", {"weights": "DEFAULT"}, "leave `--model-arg weights=DEFAULT` out"),
        ("transformers:TextForCausalLM", {"hidden_sise": 4}, "`--model-arg hidden_size=…`"),
    ],
)
def test_what_a_library_does_not_have(target: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(TargetError) as error:
        build_model(target, arguments)
    assert said in error.value.hint


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(TargetError) as error:
        build_model("timm:resnet50", {})
    assert error.value.message == "`timm` is not installed"
    assert "pip install timm" in error.value.hint


@pytest.mark.usefixtures("libraries")
def test_a_class_of_transformers_has_its_default_configuration() -> None:
    model = transformers_model("TextForCausalLM", width=16)
    assert model.config.hidden_size == 16
    assumed = assumed_configuration(model)
    assert assumed is not None
    assert assumed.value == "the defaults of `TextConfig`"
    with_decoder = transformers_model("WithDecoder", is_encoder_decoder=True)
    assert with_decoder.config.decoder_start_token_id == 0
    given = transformers_model("TextForCausalLM", config=model.config)
    assert assumed_configuration(given) is None


class _Series:
    """A configuration that no model can be built of: it does not say how long a prediction is."""

    is_encoder_decoder = False

    def __init__(self, **fields: Any) -> None:
        values: dict[str, Any] = {"prediction_length": None, "num_time_features": 0, **fields}
        self.__dict__.update(values)

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


class _Forecaster(nn.Module):
    config_class = _Series

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(config.prediction_length, 1 + config.num_time_features)


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({}, "them: `--model-arg prediction_length=24 --model-arg num_time_features=2`"),
        ({"num_time_features": 1}, "it: `--model-arg prediction_length=24`"),
    ],
)
def test_all_fields_that_have_no_default_are_named_at_once(
    fields: dict[str, int], hint: str
) -> None:
    make = from_default_configuration(_Forecaster)
    assert make is not None
    with pytest.raises(TargetError) as error:
        make(**fields)
    assert error.value.hint == f"set {hint}"


@pytest.mark.usefixtures("libraries")
def test_a_folder_with_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    written = {"model_type": "text", "vocab_size": 64, "architectures": ["TextForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(written))
    for target in ("hf:./here", "hf:here", f"hf:{folder}"):
        model: Any = build_model(target, {"hidden_size": 4})
        assert type(model).__name__ == "TextForCausalLM"
        assert (model.config.vocab_size, model.config.hidden_size) == (64, 4)
    with pytest.raises(TargetError, match="has no field `vocabulary`"):
        build_model("hf:here", {"vocabulary": 4})
    (folder / "config.json").write_text(json.dumps({**written, "model_type": "own"}))
    with pytest.raises(TargetError) as error:
        build_model("hf:here", {})
    assert error.value.detail == "Unrecognized model"
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet", "in_channels": 4}))
    assert type(build_model("hf:here", {})).__name__ == "UNet"
    with pytest.raises(TargetError, match=r"there is no file `there/config\.json`"):
        build_model("hf:./there", {})


@pytest.mark.usefixtures("libraries")
def test_a_configuration_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        asked: tuple[bool, ...] = ()

        @classmethod
        def hf_hub_download(cls, name: str, file: str, local_files_only: bool = False) -> str:
            cls.asked += (local_files_only,)
            raise OSError("no network")

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    with pytest.raises(TargetError) as error:
        build_model("hf:org/name", {})
    assert Hub.asked == (True, False)
    assert "hf download org/name config.json" in error.value.hint


# -------------------------------------------------------------------------------------- inputs


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    ("name", "fields", "options", "inputs"),
    [
        (
            *("TextForCausalLM", {}, {}),
            ["input_ids=1024:int64:0..100", "attention_mask=1024:int64:1..2"],
        ),
        (
            *("TextForCausalLM", {"max_position_embeddings": 512}, {}),
            ["input_ids=512:int64:0..100", "attention_mask=512:int64:1..2"],
        ),
        (
            *("TextForCausalLM", {}, {"seq_len": 2048}),
            ["input_ids=2048:int64:0..100", "attention_mask=2048:int64:1..2"],
        ),
        (
            *("TextForMultipleChoice", {"max_position_embeddings": 64}, {}),
            ["input_ids=4,64:int64:0..100", "attention_mask=4,64:int64:1..2"],
        ),
        (
            *("WithPaddingPosition", {"max_position_embeddings": 514}, {}),
            ["input_ids=512:int64:0..100", "attention_mask=512:int64:1..2"],
        ),
        (
            *("WithDecoder", {"max_position_embeddings": 64}, {}),
            ["input_ids=64:int64:0..100", "decoder_input_ids=64:int64:0..100"],
        ),
    ],
)
def test_inputs_of_text(
    name: str, fields: dict[str, Any], options: dict[str, Any], inputs: list[str]
) -> None:
    assert inputs_of(transformers_model(name, **fields), **options) == inputs


def _configured(name: str, **fields: Any) -> Any:
    module = importlib.import_module("transformers")
    parts = {
        key: module.PretrainedConfig(**value) if isinstance(value, dict) else value
        for key, value in fields.items()
    }
    return getattr(module, name)(module.PretrainedConfig(**parts))


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    ("name", "fields", "inputs"),
    [
        ("ImageModel", {"image_size": 32, "num_channels": 1}, ["pixel_values=1,32,32"]),
        ("ImageModel", {"image_size": [32, 48]}, ["pixel_values=3,32,48"]),
        ("ImageModel", {}, ["pixel_values=3,224,224"]),
        ("ImageModel", {"image_size": 32, "num_frames": 8}, ["pixel_values=8,3,32,32"]),
        (
            "ImageAndTextModel",
            {
                "text_config": {"vocab_size": 50, "max_position_embeddings": 77},
                "vision_config": {"image_size": 32},
            },
            [
                "input_ids=77:int64:0..50",
                "attention_mask=77:int64:1..2",
                "pixel_values=3,32,32",
            ],
        ),
        ("SoundModel", {"conv_stride": (5, 2)}, ["input_values=160000"]),
        ("SoundModel", {"max_length": 1024, "num_mel_bins": 128}, ["input_values=1024,128"]),
        (
            "SpectrogramModel",
            {"num_mel_bins": 80, "max_source_positions": 1500},
            ["input_features=80,3000"],
        ),
        ("SpectrogramModel", {"input_feat_per_channel": 80}, ["input_features=1000,80"]),
        (
            "SpectrogramModel",
            {"audio_config": {"spec_size": 256, "num_mel_bins": 64}},
            ["input_features=1,1001,64"],
        ),
    ],
)
def test_inputs_of_images_and_sounds(name: str, fields: dict[str, Any], inputs: list[str]) -> None:
    assert inputs_of(_configured(name, **fields)) == inputs


@pytest.mark.usefixtures("libraries")
def test_text_goes_into_the_encoder_where_a_decoder_makes_sounds() -> None:
    encoder = SimpleNamespace(vocab_size=50, max_position_embeddings=64)
    assert inputs_of(_configured("WithDecoder", text_encoder=encoder), loss="auto")[0] == (
        "input_ids=64:int64:0..50"
    )


@pytest.mark.usefixtures("libraries")
def test_a_decoder_without_labels_gets_tokens() -> None:
    fields = {"num_mel_bins": 80, "max_source_positions": 10, "vocab_size": 9}
    model = _configured("SpectrogramModel", **fields, max_target_positions=7)
    assert inputs_of(model) == ["input_features=80,20"]
    for options in ({"mode": "infer"}, {"loss": "mse"}, {"step": "a:b"}):
        assert inputs_of(model, **options)[1:] == ["decoder_input_ids=10:int64:0..9"]


@pytest.mark.usefixtures("libraries")
def test_inputs_of_diffusers() -> None:
    module = importlib.import_module("diffusers")
    fields = {"in_channels": 4, "sample_size": None, "cross_attention_dim": 768}
    prompt = "encoder_hidden_states=77,768"
    unet = module.UNet(**fields)
    assert inputs_of(unet) == ["sample=4,64,64", "timestep=:int64:0..1000", prompt]
    assert inputs_of(unet, image_size=32)[0] == "sample=4,32,32"
    with_classes = module.UNet(**fields, num_class_embeds=10)
    assert inputs_of(with_classes)[3:] == ["class_labels=:int64:0..10"]

    packed = module.PackedTransformer(
        in_channels=64, joint_attention_dim=8, sample_size=16, guidance_embeds=True
    )
    assert inputs_of(packed) == [
        *("hidden_states=64,64", "encoder_hidden_states=512,8", "img_ids=64,3", "txt_ids=512,3"),
        "guidance=:float32",
    ]
    clip = module.Video3DModel(in_channels=16, sample_size=[30, 52], num_frames=5)
    assert inputs_of(clip)[0] == "hidden_states=16,5,30,52"


@pytest.mark.usefixtures("libraries")
def test_inputs_of_what_steers_a_model_of_diffusers() -> None:
    module = importlib.import_module("diffusers")
    fields = {"in_channels": 4, "conditioning_channels": 3, "sample_size": 16}
    fields["conditioning_embedding_out_channels"] = (16, 32, 96, 256)
    assert inputs_of(module.ControlNet(**fields)) == ["sample=4,16,16", "controlnet_cond=3,128,128"]
    with_sizes = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    assert inputs_of(module.ControlNet(**fields, **with_sizes))[2:] == [
        *("added_cond_kwargs.text_embeds=1280", "added_cond_kwargs.time_ids=6"),
    ]
    with pytest.raises(UsageError, match="`added_cond_kwargs` of the kind `image`"):
        inputs_of(module.ControlNet(**fields, addition_embed_type="image"))


@pytest.mark.usefixtures("libraries")
def test_inputs_of_series() -> None:
    fields = {"context_length": 32, "prediction_length": 8}
    patches = {**fields, "num_input_channels": 7, "num_targets": 3}
    past, future = "past_values=32,7", "future_values=8,7"
    assert inputs_of(_configured("PatchesForPrediction", **patches)) == [past, future]
    assert inputs_of(_configured("PatchesForPrediction", **patches), mode="infer") == [past]
    classes = _configured("PatchesForClassification", **patches)
    assert inputs_of(classes) == [past, "target_values=:int64:0..3"]
    static = {"num_static_categorical_features": 2, "cardinality": [9, 5]}
    lags = {**fields, **static, "lags_sequence": [1, 7], "input_size": 1, "num_time_features": 2}
    lags |= {"num_dynamic_real_features": 0, "num_static_real_features": 0}
    assert inputs_of(_configured("LagsForPrediction", **lags)) == [
        *("past_values=39", "past_observed_mask=39:bool"),
        *("past_time_features=39,2", "future_time_features=8,2"),
        *("static_categorical_features=2:int64:0..5", "future_values=8"),
    ]
    with pytest.raises(UsageError) as error:
        inputs_of(_configured("LagsForPrediction", **{**lags, "num_time_features": 0}))
    assert "--model-arg num_time_features=2" in error.value.hint


class WithExample(nn.Linear):
    example_input_array = torch.zeros(2, 3, 5)


class WithExamples(nn.Linear):
    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        return {"ids": torch.tensor([[1, 7], [3, 4]]), "mask": torch.ones(2, 2, dtype=torch.bool)}


def test_inputs_like_an_example() -> None:
    assert inputs_of(WithExample(2, 2)) == ["3,5"]
    assert inputs_of(WithExamples(2, 2)) == ["ids=2:int64:1..8", "mask=2:bool"]


@pytest.mark.usefixtures("libraries")
def test_what_bsfind_does_not_make() -> None:
    library = importlib.import_module("transformers")
    image_tokens = {"text_config": {"vocab_size": 50}, "image_token_id": 7}
    unknown = importlib.import_module("diffusers").WithAudio(in_channels=4)
    for model, options, said in (
        (nn.Linear(2, 2), {}, "the inputs of `Linear` are not known"),
        (_configured("WithUnknownInput"), {}, "the inputs of `WithUnknownInput` are not known"),
        (_configured("TextAndImageForObjectDetection"), {}, "`input_ids`"),
        (_configured("ImageAndTextModel", **image_tokens), {}, "`image_token_id`"),
        (unknown, {}, "takes `audio`"),
        (library.TextForCausalLM(library.TextConfig()), {"seq_len": 5000}, "more than the 4096"),
        (library.TextForCausalLM(library.TextConfig()), {"image_size": 64}, "makes no images"),
        (WithExample(2, 2), {"seq_len": 64}, "makes no sequences"),
    ):
        with pytest.raises(UsageError) as error:
            inputs_of(model, **options)
        assert said in error.value.message


@pytest.mark.usefixtures("libraries")
def test_models_that_are_trained_with_lists_have_their_batch_function() -> None:
    detector = _configured("ImageForObjectDetection", num_labels=3, image_size=[32, 48])
    masks = _configured("ImageForUniversalSegmentation", num_labels=3)
    of_torchvision = importlib.import_module("torchvision.models.detection").Detector(classes=4)
    for model, options, said in (
        (detector, {}, "detr --batch-arg 'image_size=(32, 48)' --batch-arg classes=3"),
        (detector, {"image_size": 64}, "detr --image-size 64 --batch-arg classes=3"),
        (masks, {}, "mask2former --batch-arg classes=3"),
        (of_torchvision, {}, "detection --batch-arg classes=4 --batch-arg keypoints=17"),
    ):
        asked = Workload(target="a:b", **options)
        workload, assumed = with_inputs(asked, model)
        assert assumed is not None
        assert sorted(shlex.split(assumed.value)) == sorted(
            shlex.split(f"--batch-fn bsfind.batches:{said}")
        )
        make = batch_function(workload)
        assert make is not None
        assert make(2, torch.device("cpu"))
    assert "resizes these images to 300 × 300" in assumed.why
    assert inputs_of(detector, mode="infer")


IN_TEXT = {
    "text_config": SimpleNamespace(vocab_size=50, hidden_size=8, max_position_embeddings=64),
    "image_token_id": 7,
}


@pytest.mark.usefixtures("libraries")
def test_texts_with_images_have_a_token_for_each_part() -> None:
    cut = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    sized = {"image_size": 32, **IN_TEXT}
    whole = "image_token=7 --batch-arg image_tokens=16"
    for model, options, said in (
        (
            _configured("ImageInTextModel", image_dims=2, **sized),
            {},
            f"seq_len=64 --batch-arg {whole} --batch-arg token_types=token_type_ids",
        ),
        (
            _configured("ImageInTextModel", image_dims=3, **sized),
            {"seq_len": 48},
            f"{whole} --batch-arg images=1 --batch-arg token_types=token_type_ids",
        ),
        (
            _configured("PatchesInTextModel", vision_config=SimpleNamespace(**cut), **IN_TEXT),
            {"image_size": 40},
            "seq_len=64 --batch-arg image_token=7 --batch-arg image_tokens=25 --batch-arg patch=4 "
            "--batch-arg token_types=mm_token_type_ids",
        ),
    ):
        workload, assumed = with_inputs(Workload(target="a:b", **options), model)
        assert assumed is not None
        for option in said.split(" --batch-arg "):
            assert option in assumed.value.split()
        make = batch_function(workload)
        assert make is not None
        batch = make(2, torch.device("cpu"))
        assert batch["input_ids"].shape == (2, options.get("seq_len", 64))
        places = 25 if "image_size" in options else 16
        assert (batch["input_ids"] == 7).sum(1).tolist() == [places] * 2


@pytest.mark.usefixtures("libraries")
def test_the_argument_for_longer_texts_is_enough() -> None:
    with pytest.raises(UsageError) as error:
        inputs_of(transformers_model("WithPaddingPosition"), seq_len=8192)
    field, length = re.findall(r"--model-arg (\w+)=(\d+)", error.value.hint)[0]
    model = transformers_model("WithPaddingPosition", **{field: int(length)})
    assert inputs_of(model, seq_len=8192)[0].startswith("input_ids=8192:")


def test_inputs_that_are_given_are_kept() -> None:
    given = Workload(target="a:b", inputs=(parse_input("x=3"),))
    for workload in (given, Workload(target="a:b", batch_fn="a:c")):
        assert with_inputs(workload, nn.Linear(2, 2)) == (workload, None)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("BertForMaskedLM", ["input_ids=512:int64:0..30522", "attention_mask=512:int64:1..2"]),
        ("GPT2LMHeadModel", ["input_ids=1024:int64:0..50257", "attention_mask=1024:int64:1..2"]),
        ("RobertaModel", ["input_ids=510:int64:0..50265", "attention_mask=510:int64:1..2"]),
        (
            "T5Model",
            [
                *("input_ids=1024:int64:0..32128", "attention_mask=1024:int64:1..2"),
                "decoder_input_ids=1024:int64:0..32128",
            ],
        ),
        ("WhisperForConditionalGeneration", ["input_features=80,3000"]),
        ("Wav2Vec2ForCTC", ["input_values=160000"]),
        ("ViTForImageClassification", ["pixel_values=3,224,224"]),
        (
            "CLIPModel",
            [
                *("input_ids=77:int64:0..49408", "attention_mask=77:int64:1..2"),
                "pixel_values=3,224,224",
            ],
        ),
    ],
)
def test_inputs_of_transformers_itself(name: str, inputs: list[str]) -> None:
    # It imports torchvision where that is installed; one that was built for another torch fails.
    pytest.importorskip("transformers.modeling_utils", exc_type=(ImportError, RuntimeError))
    with torch.device("meta"):
        model = build_model(f"transformers:{name}", {})
    assert inputs_of(model) == inputs


# ----------------------------------------------------------------------------------- downloads


def _download(pretrained: bool = False, weights: Any = None, weights_backbone: Any = None) -> None:
    raise URLError("no network")


class AutoModel:
    @classmethod
    def from_pretrained(cls, name: str) -> None:
        try:
            raise URLError("no network")
        except URLError as error:
            raise OSError("cannot load") from error


class AutoConfig(AutoModel):
    pass


def hf_hub_download(repo_id: str, *, filename: str) -> None:
    raise URLError("no network")


def get_preprocessing_params(encoder: str, pretrained: str = "imagenet") -> None:
    hf_hub_download(f"hub/{encoder}.{pretrained}", filename="config.json")


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: _download(pretrained=True), "`pretrained=False` in test_libraries.py:"),
        (lambda: _download(weights="DEFAULT"), "`weights=None` in test_libraries.py:"),
        (lambda: _download(weights_backbone=1), "`weights_backbone=None` in test_libraries.py:"),
        (lambda pretrained=True: _download(pretrained), "`--model-arg pretrained=False`"),
        (lambda: AutoModel.from_pretrained("org/name"), "the target `hf:org/name`"),
        (lambda: AutoConfig.from_pretrained("org/name"), "`hf download org/name"),
        (
            lambda: get_preprocessing_params("resnet34"),
            "`hf download hub/resnet34.imagenet config.json`",
        ),
        (_download, "what the code downloads has to be here"),
    ],
    ids=[
        *("timm", "torchvision", "backbone", "argument", "model", "configuration"),
        *("preprocessing", "other"),
    ],
)
def test_a_download_without_a_network(build: Any, said: str) -> None:
    try:
        build()
    except OSError as error:
        failed = error
        failed.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
    reported = user_error(failed, doing="building the model")
    assert isinstance(reported, TargetError)
    assert said in reported.hint
