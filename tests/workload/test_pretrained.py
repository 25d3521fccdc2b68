"""Random weights in place of pretrained ones, which a prediction does not load."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bsfind.workload.libraries.pretrained import random_weights

URL = "https://example.invalid/weights.pth"
BERT = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    **{
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
}


@pytest.fixture
def notes() -> Iterator[dict[str, str]]:
    """Let random weights stand for pretrained ones; what was noted."""
    noted: dict[str, str] = {}
    with random_weights(noted.setdefault):
        yield noted


def _transformers() -> Any:
    module = pytest.importorskip("transformers")
    try:
        importlib.import_module("transformers.models.bert.modeling_bert")
    except RuntimeError as error:  # torchvision is for another torch
        pytest.skip(str(error))
    return module


class Net(nn.Module):
    def __init__(self, url: str = URL) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        weights = torch.hub.load_state_dict_from_url(url, progress=False)
        self.layer.load_state_dict(weights["model"])
        self.load_state_dict(weights, strict=True)


def test_a_download_of_weights(notes: dict[str, str]) -> None:
    assert Net().layer.weight.shape == (3, 3)
    assert "(`load_state_dict_from_url`, test_pretrained.py:" in notes["random_weights"]
    layer, other = nn.Linear(3, 3), nn.Linear(3, 3)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer.weight, other.weight)
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({})


def test_torch_is_as_before_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    own = (torch.hub.load_state_dict_from_url, nn.Module.load_state_dict, list(sys.meta_path))
    with random_weights(lambda *_: None):
        Net()
    assert own == (torch.hub.load_state_dict_from_url, nn.Module.load_state_dict, sys.meta_path)
    file = tmp_path / "weights.pth"
    torch.save(nn.Linear(3, 3).state_dict(), file)
    with pytest.raises(KeyError):  # a measured model gets its weights
        Net(file.as_uri())


@pytest.mark.parametrize(
    ("asked", "dtype"),
    [
        ({}, torch.float32),
        ({"torch_dtype": torch.float16}, torch.float16),
        ({"dtype": "bfloat16"}, torch.bfloat16),
    ],
    ids=str,
)
def test_a_model_of_transformers(
    asked: dict[str, Any], dtype: torch.dtype, tmp_path: Path, notes: dict[str, str]
) -> None:
    transformers = _transformers()
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    cls = transformers.AutoModelForSequenceClassification
    model = cls.from_pretrained(str(tmp_path), num_labels=5, cache_dir=None, **asked)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert (model.classifier.out_features, model.config.hidden_size) == (5, 32)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert "(`from_pretrained`, test_pretrained.py:" in notes["random_weights"]


def test_what_transformers_keeps_in_float32(tmp_path: Path, notes: dict[str, str]) -> None:
    transformers = _transformers()
    config = {"model_type": "t5", **dict.fromkeys(("d_model", "d_ff", "d_kv"), 8)}
    config |= {"num_layers": 1, "num_heads": 1, "vocab_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = transformers.T5Model.from_pretrained(str(tmp_path), dtype=torch.float16)
    kept = {name for name, each in model.named_parameters() if each.dtype is torch.float32}
    assert kept
    assert all(".wo." in name for name in kept)
    assert notes


def test_no_configuration_is_an_error(tmp_path: Path, notes: dict[str, str]) -> None:
    transformers = _transformers()
    with pytest.raises((OSError, ValueError), match=r"config\.json|model\.safetensors"):
        transformers.BertModel.from_pretrained(str(tmp_path))
    assert not notes


def test_a_model_of_timm(notes: dict[str, str]) -> None:
    timm = pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))
    model = timm.create_model("resnet10t", pretrained=True, num_classes=7)
    assert model.get_classifier().out_features == 7
    assert "(`pretrained=True`, test_pretrained.py:" in notes["random_weights"]


def test_encoders_of_segmentation_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stand-in would download: weights, and how images are normalised."""

    def get_encoder(name: str, channels: int = 3, depth: int = 5, weights: Any = None) -> nn.Module:
        assert weights is None
        return nn.Conv2d(channels, depth, 1)

    def get_preprocessing_params(name: str, pretrained: str = "imagenet") -> dict[str, Any]:
        assert name == "tu-net"
        return {"mean": [0.5]}

    module = SimpleNamespace(
        get_encoder=get_encoder, get_preprocessing_params=get_preprocessing_params
    )
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.encoders", module)
    for _ in range(2):
        noted: dict[str, str] = {}
        with random_weights(noted.setdefault):
            assert len(module.get_preprocessing_params("resnet34")["mean"]) == 3
            assert module.get_preprocessing_params("tu-net")["mean"] == [0.5]
            assert not noted
            module.get_encoder("resnet34", weights="imagenet")
            assert "(`encoder_weights`, " in noted["random_weights"]
    with pytest.raises(AssertionError):
        module.get_preprocessing_params("resnet34")
