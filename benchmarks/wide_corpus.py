"""The cases of the accuracy benchmark: published models, and the hand-written zoo."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks import published_models, zoo
from tests.simulation.corpus.case import STANDARD, Case, case

from bsfind.settings import Workload

__all__ = ["CASES", "OPTIMIZERS", "with_optimizer"]

OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "optimizer_args": (("momentum", "0.9"),)},
    "adamw": {"optimizer": "adamw", "optimizer_args": ()},
}

# In half precision cuDNN compiles the kernels of depthwise convolutions at run time, for a minute a
# run. EfficientNet, ConvNeXt and SegFormer stand for them there.
_FP32_ONLY = frozenset(
    (
        *("ghostnet_100", "hardcorenas_a", "mobilenetv3_small_100", "mnasnet_100"),
        *("convmixer_768_32", "edgenext_x_small", "pvt_v2_b0", "twins_svt_small", "coat_tiny"),
        *("xcit_nano_12_p16_224", "shufflenet_v2_x1_0", "deeplabv3_mobilenet_v3_large"),
    )
)


def with_optimizer(case: Case, optimizer: str) -> Case:
    """Return a case that is trained by another optimizer."""
    workload: Workload = replace(case.workload, **OPTIMIZERS[optimizer])
    return replace(case, workload=workload)


def _precisions(name: str) -> tuple[str, ...]:
    return ("fp32",) if name in _FP32_ONLY else STANDARD


def _timm(family: str, *names: str, kind: str = "convolutional") -> list[Case]:
    return [
        case(
            family,
            published_models.__name__,
            f"timm_{name}",
            "timm_model",
            "3,224,224",
            args={"name": name},
            kind=kind,
            batch_sizes=(4, 16),
            precisions=_precisions(name),
            loss="cross-entropy",
        )
        for name in names
    ]


_patches = partial(_timm, "patches", kind="attention")


def _torchvision(family: str, *names: str, shape: str = "3,224,224", **settings: Any) -> list[Case]:
    settings = {"kind": "convolutional", "batch_sizes": (4, 16), **settings}
    return [
        case(
            family,
            published_models.__name__,
            f"torchvision_{name}",
            "torchvision_model",
            shape,
            args={"name": name},
            precisions=_precisions(name),
            **settings,
        )
        for name in names
    ]


_TOKENS = ("input_ids=128:int64:0..5000", "labels=128:int64:0..5000")
_CLASSES = ("input_ids=128:int64:0..5000", "labels=:int64:0..2")
_SMALL = {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6}


def _hugging_face(
    family: str, name: str, inputs: tuple[str, ...] = _TOKENS, **settings: Any
) -> Case:
    kind = settings.pop("kind", "attention")
    return case(
        family,
        published_models.__name__,
        f"transformers_{name}",
        "hugging_face",
        *inputs,
        args=settings,
        kind=kind,
        batch_sizes=(2, 8),
    )


def _causal(name: str, stem: str, **settings: Any) -> Case:
    settings = {**_SMALL, "vocab_size": 8000, **settings}
    return _hugging_face(
        "decoder", name, model=f"{stem}ForCausalLM", config=f"{stem}Config", **settings
    )


def _encoder(name: str, stem: str, **settings: Any) -> Case:
    settings = {**_SMALL, "intermediate_size": 1536, **settings}
    return _hugging_face(
        "encoder",
        name,
        _CLASSES,
        model=f"{stem}ForSequenceClassification",
        config=f"{stem}Config",
        **settings,
    )


_LLAMA = {"intermediate_size": 1024, "num_key_value_heads": 2}
_PIXELS = ("pixel_values=3,224,224", "labels=:int64:0..2")
_KINDS = {"lstm": "recurrent", "gru": "recurrent"}
_ZOO_SIZES = {"mlp": (64, 1024), "recommender": (256, 2048), "contrastive": (64, 1024)}
_ZOO = ("lstm", "gru", "unet", "unet3d", "audio", "mlp", "recommender", "contrastive")


def _zoo(name: str) -> Case:
    kind = "convolutional" if name in ("unet", "unet3d", "audio") else _KINDS.get(name, "other")
    sizes = _ZOO_SIZES.get(name, (4, 16))
    inputs = zoo.ARGUMENTS[name][1::2]
    return case("zoo", zoo.__name__, f"zoo_{name}", name, *inputs, kind=kind, batch_sizes=sizes)


CASES: tuple[Case, ...] = (
    *_timm("residual", "resnet18", "resnet50", "resnet26d", "seresnet50", "resnext50_32x4d"),
    *_timm("residual", "res2net50_26w_4s", "skresnet18", "resnest14d", "resnetv2_50", "dla34"),
    *_timm("plain", "vgg11_bn", "repvgg_a0", "darknet53", "cspresnet50", "selecsls42b"),
    *_timm("dense", "densenet121", "vovnet39a", "hrnet_w18_small", "dpn48b", "inception_v3"),
    *_timm("designed", "regnety_008", "nf_resnet26", "nfnet_l0", "ghostnet_100", "hardcorenas_a"),
    *_timm("mobile", "mobilenetv3_small_100", "efficientnet_b0", "mnasnet_100"),
    *_timm("modern", "convnext_atto", "convmixer_768_32", "edgenext_x_small"),
    *_patches("vit_tiny_patch16_224", "vit_small_patch32_224", "deit_tiny_patch16_224"),
    *_patches("beit_base_patch16_224", "cait_xxs24_224", "xcit_nano_12_p16_224"),
    *_patches("swin_tiny_patch4_window7_224", "pvt_v2_b0", "twins_svt_small", "volo_d1_224"),
    *_patches("pit_ti_224", "levit_128s", "coat_tiny", "crossvit_tiny_240"),
    *_timm("mixing", "mixer_s32_224", "resmlp_12_224", "gmlp_ti16_224", "poolformer_s12", kind="other"),
    *_torchvision("dense prediction", "fcn_resnet50", "deeplabv3_mobilenet_v3_large", shape="3,128,128"),
    *_torchvision("plain", "alexnet", "squeezenet1_1", "shufflenet_v2_x1_0", "googlenet"),
    *_torchvision("video", "r3d_18", "mc3_18", shape="3,8,64,64"),
    _encoder("bert", "Bert"),
    _encoder("roberta", "Roberta"),
    _encoder("electra", "Electra"),
    _encoder("albert", "Albert"),
    # Without labels: with them, it asks for the positions of those that count.
    _hugging_face("encoder", "deberta_v2", _CLASSES[:1], model="DebertaV2ForSequenceClassification",
                  config="DebertaV2Config", **_SMALL, relative_attention=True, position_buckets=64),
    _encoder("mpnet", "MPNet"),
    _encoder("modernbert", "ModernBert", vocab_size=8000, pad_token_id=0),
    _hugging_face("encoder", "distilbert", _CLASSES, model="DistilBertForSequenceClassification",
                  config="DistilBertConfig", dim=384, n_layers=4, n_heads=6, hidden_dim=1536),
    _hugging_face("encoder", "funnel", _CLASSES, model="FunnelForSequenceClassification",
                  config="FunnelConfig", d_model=256, n_head=4, block_sizes="[2, 2]", d_inner=1024),
    _hugging_face("decoder", "gpt2", model="GPT2LMHeadModel", config="GPT2Config", n_embd=384,
                  n_layer=4, n_head=6, vocab_size=8000),
    _causal("gpt_neox", "GPTNeoX", intermediate_size=1536),
    _causal("opt", "OPT", ffn_dim=1536, word_embed_proj_dim=384),
    _causal("bloom", "Bloom"),
    _causal("llama", "Llama", **_LLAMA),
    _causal("mistral", "Mistral", **_LLAMA, sliding_window=64),
    _causal("qwen2", "Qwen2", **_LLAMA),
    _causal("gemma", "Gemma", **_LLAMA, head_dim=64),
    _causal("phi", "Phi", intermediate_size=1536),
    _causal("falcon", "Falcon"),
    _causal("gpt_bigcode", "GPTBigCode", n_embd=384, n_layer=4, n_head=6),
    _hugging_face("encoder and decoder", "t5", model="T5ForConditionalGeneration", config="T5Config",
                  d_model=384, num_layers=3, num_heads=6, d_ff=1024, vocab_size=8000,
                  decoder_start_token_id=0),
    _hugging_face("encoder and decoder", "bart", model="BartForConditionalGeneration",
                  config="BartConfig", d_model=256, encoder_layers=3, decoder_layers=3,
                  encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=8000),
    _hugging_face("encoder and decoder", "pegasus", model="PegasusForConditionalGeneration",
                  config="PegasusConfig", d_model=256, encoder_layers=2, decoder_layers=2,
                  encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=8000,
                  decoder_start_token_id=0),
    _hugging_face("state space", "mamba", model="MambaForCausalLM", config="MambaConfig",
                  hidden_size=128, num_hidden_layers=2, vocab_size=8000, kind="other"),
    _hugging_face("speech", "wav2vec2", ("input_values=16000", "labels=:int64:0..2"),
                  model="Wav2Vec2ForSequenceClassification", config="Wav2Vec2Config", **_SMALL,
                  intermediate_size=1024, num_conv_pos_embedding_groups=16, mask_time_prob=0.0),
    _hugging_face("speech", "whisper", ("input_features=80,3000", "labels=40:int64:0..5000"),
                  model="WhisperForConditionalGeneration", config="WhisperConfig", d_model=256,
                  encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                  decoder_attention_heads=4),
    _hugging_face("speech", "ast", ("input_values=512,128", "labels=:int64:0..2"),
                  model="ASTForAudioClassification", config="ASTConfig", **_SMALL, max_length=512),
    _hugging_face("patches", "vit", _PIXELS, model="ViTForImageClassification",
                  config="ViTConfig", **_SMALL),
    _hugging_face("patches", "segformer", _PIXELS, model="SegformerForImageClassification",
                  config="SegformerConfig"),
    _hugging_face("patches", "dinov2", _PIXELS, model="Dinov2ForImageClassification",
                  config="Dinov2Config", **_SMALL),
    _hugging_face("text and images", "clip", ("input_ids=32:int64:1..1000", "pixel_values=3,224,224"),
                  model="CLIPModel", config="CLIPConfig"),
    *(_zoo(name) for name in _ZOO),
)  # fmt: skip
