"""Language models of published measurements: BERT, Qwen with LoRA, and litgpt of October 2023."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.torchvision_import import import_torchvision
from torch import Tensor, nn
from torch.nn import functional

import_torchvision()

__all__ = ["bert_large", "litgpt_lora", "litgpt_step", "qwen_lora", "step_keeping_outputs"]

_KEPT: list[Any] = [None]
"""What a training loop keeps until its next forward pass is over."""


def bert_large(*, checkpoint: bool = False) -> nn.Module:
    """BERT large that classifies, with attention by hand."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        attn_implementation="eager",
    )
    model: Any = BertForSequenceClassification(config)
    if checkpoint:
        model.gradient_checkpointing_enable({"use_reentrant": True})
    return model


def qwen_lora(*, rank: int) -> nn.Module:
    """Qwen2.5 0.5B in bf16 with activation checkpointing and LoRA in fp32 on the attention."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        use_cache=False,
    )
    model: Any = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    lora = LoraConfig(
        r=rank,
        lora_alpha=16,
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
    )
    wrapped: nn.Module = get_peft_model(model, lora)
    return wrapped


def step_keeping_outputs(model: Any, **batch: Tensor) -> Tensor:
    """Return the loss; the outputs stay until the next forward pass is over."""
    _KEPT[0] = model(**batch)
    loss: Tensor = _KEPT[0].loss
    return loss


# ------------------------------------------------------------------------------------------- litgpt


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, named as in litgpt's configurations."""

    vocabulary: int
    layers: int
    heads: int
    width: int
    rotated: float
    inner: int
    gated: bool
    shared_norm: bool
    parallel_residual: bool
    rms_norm: bool
    bias: bool
    head_bias: bool = False


_SHAPES = {
    "phi-1.5": Shape(51200, 24, 32, 2048, 0.5, 8192, False, True, True, False, True, True),
    "stablelm-3b": Shape(50688, 16, 32, 4096, 0.25, 16384, False, False, True, False, True),
    "llama2-7b": Shape(32000, 32, 32, 4096, 1.0, 11008, True, False, False, True, False),
}


class RMSNorm(nn.Module):
    """Root mean square normalisation, step by step, in fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input in its dtype."""
        dtype = x.dtype
        x = x.float()
        mean = torch.mean(x * x, dim=-1, keepdim=True)
        normed = x * torch.rsqrt(mean + 1e-5)
        return (self.weight * normed).to(dtype=dtype)


class LoraProjection(nn.Module):
    """Queries, keys and values from one matrix, with LoRA of rank 8 on queries and values.

    What LoRA adds is copied into zeros of the size of all three.
    """

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 3 * width, bias=bias)
        self.dropout = nn.Dropout(0.05)
        self.lora_a = nn.Parameter(torch.empty(16, width))
        self.lora_b = nn.Parameter(torch.empty(2 * width, 8))
        self.columns = [*range(width), *range(2 * width, 3 * width)]

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, tokens, 3 width)."""
        plain = self.linear(x)
        low = functional.linear(self.dropout(x), self.lora_a)
        high = functional.conv1d(low.transpose(-2, -1), self.lora_b.unsqueeze(-1), groups=2)
        added = high.transpose(-2, -1).transpose(0, 1)
        padded = added.new_zeros((*added.shape[:-1], plain.shape[-1]))
        flat = padded.view(-1, plain.shape[-1])
        columns = torch.tensor(self.columns, device=flat.device)
        flat = flat.index_copy(1, columns, added.reshape(-1, len(self.columns)))
        lora = flat.view(padded.shape).transpose(0, 1) * 2.0
        summed: Tensor = plain + lora
        return summed


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.size(-1) // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return ((x * cos) + (turned * sin)).type_as(x)


class Attention(nn.Module):
    """Causal attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.size = shape.heads, shape.width // shape.heads
        self.rotated = int(shape.rotated * self.size)
        self.projection = LoraProjection(shape.width, shape.bias)
        self.output = nn.Linear(shape.width, shape.width, bias=shape.bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return what is attended to."""
        batch, tokens, width = x.shape
        qkv = (
            self.projection(x).view(batch, tokens, self.heads, 3, self.size).permute(0, 2, 3, 1, 4)
        )
        q, k, v = (part.reshape(batch, -1, tokens, self.size) for part in qkv.split(1, dim=2))
        turned = (_rotate(part[..., : self.rotated], cos, sin) for part in (q, k))
        q, k = (
            torch.cat((head, part[..., self.rotated :]), dim=-1)
            for head, part in zip(turned, (q, k), strict=True)
        )
        y = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=None, dropout_p=0.0, scale=self.size**-0.5, is_causal=True
        )
        attended: Tensor = self.output(y.transpose(1, 2).reshape(batch, tokens, width))
        return attended


class Perceptron(nn.Module):
    """Two matrices around a GELU, or three with a gate."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.first = nn.Linear(shape.width, shape.inner, bias=shape.bias)
        self.gate = nn.Linear(shape.width, shape.inner, bias=shape.bias) if shape.gated else None
        self.last = nn.Linear(shape.inner, shape.width, bias=shape.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, tokens, width)."""
        if self.gate is None:
            out: Tensor = self.last(functional.gelu(self.first(x)))
            return out
        first, gate = self.first(x), self.gate(x)
        gated: Tensor = self.last(functional.silu(first) * gate)
        return gated


class Block(nn.Module):
    """Attention and perceptron, one behind the other or side by side."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.parallel = shape.parallel_residual

        def norm() -> nn.Module:
            return RMSNorm(shape.width) if shape.rms_norm else nn.LayerNorm(shape.width)

        self.norm_1 = norm()
        self.norm_2 = None if shape.shared_norm else norm()
        self.attention, self.perceptron = Attention(shape), Perceptron(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the tokens behind the block."""
        normed = self.norm_1(x)
        attended = self.attention(normed, cos, sin)
        if self.parallel:
            normed = normed if self.norm_2 is None else self.norm_2(x)
            side_by_side: Tensor = self.perceptron(normed) + attended + x
            return side_by_side
        x = attended + x
        assert self.norm_2 is not None
        behind: Tensor = self.perceptron(self.norm_2(x)) + x
        return behind


class Gpt(nn.Module):
    """litgpt's model, whose head works on 128 tokens at a time."""

    def __init__(self, shape: Shape, tokens: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.width) if shape.rms_norm else nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=shape.head_bias)
        rotated = int(shape.rotated * (shape.width // shape.heads))
        self.register_buffer("cos", torch.zeros(tokens, rotated), persistent=False)
        self.register_buffer("sin", torch.zeros(tokens, rotated), persistent=False)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Return the logits, 128 tokens each."""
        x = self.embedding(tokens)
        cos, sin = self.cos.float(), self.sin.float()
        for block in self.blocks:
            x = block(x, cos, sin)
        return [self.head(part) for part in self.norm(x).split(128, dim=1)]


def litgpt_lora(*, name: str, tokens: int) -> nn.Module:
    """A model of litgpt with LoRA; all but its matrices is frozen."""
    model = Gpt(_SHAPES[name], tokens)
    for key, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in key
    return model


def litgpt_step(model: Any, tokens: Tensor, targets: Tensor) -> Tensor:
    """Return the loss, 128 tokens at a time; the logits, which Fabric makes fp32, stay."""
    logits = [part.float() for part in model(tokens)]
    _KEPT[0] = logits
    logits[-1] = logits[-1][..., :-1, :]
    flat = [part.reshape(-1, part.size(-1)) for part in logits]
    wanted = [part.reshape(-1) for part in targets[..., 1:].split(logits[0].size(1), dim=1)]
    losses = [
        functional.cross_entropy(part, target, ignore_index=-1, reduction="none")
        for part, target in zip(flat, wanted, strict=True)
    ]
    return torch.cat(losses).mean()
