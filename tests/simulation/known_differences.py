"""Where the simulator is known to differ from PyTorch on the fake GPU, by how much at most, and why.

A case that becomes exact fails until its line is gone. `python -m tests.simulation.compare_events
--all --table` prints the lines as they would have to be.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """A known difference.

    Attributes:
        allocated: largest error of the peak allocated, as a part of the real one.
        reserved: largest error of the peak reserved.
        why: what is not modelled.
    """

    allocated: float
    reserved: float
    why: str


# What is read from the fake GPU is zero. A few blocks differ; no bound here is above 1%.
_ZEROS = "the fake GPU reads zeros where a real one, and the simulator, have values"
_ORDER = (
    "nodes made in a backward pass are numbered by the GPU's own thread, from zero: a double "
    "backward pass meets them in another order"
)
_FAST_PATH = (
    "the native fast path of the transformer layers in evaluation: one operator for a layer"
)
_CHOICE = "cuDNN takes another kernel for one of the convolutions, with another workspace"

DIFFERENCES: dict[str, Known] = {
    "STUB experts-fp32-4": Known(0.0, 0.0, _ZEROS),
    "STUB encoder_inference-fp32-4": Known(0.0054, 0.0, _FAST_PATH),
    "STUB physics_informed-fp32-1000": Known(0.0001, 0.0, _ORDER),
    "STUB gradient_penalty-amp-fp16-4": Known(0.0, 0.0, _ORDER),
    "STUB losses_classification-amp-bf16-100": Known(0.0, 0.0, _ZEROS),
    "STUB mask_skipping-fp32-4": Known(0.0, 0.0, _ZEROS),
    "STUB counted-fp32-64": Known(0.0079, 0.0, _ZEROS),
    "STUB checked-fp32-64": Known(0.0001, 0.0, _ZEROS),
    "CUDNN resnet_evaluated-amp-fp16-4": Known(0.0088, 0.0667, _CHOICE),
    "CUDNN unet_evaluated-fp32-4": Known(0.0, 0.0, _CHOICE),
    "CUDNN unet-fp32-4": Known(0.0, 0.0, _CHOICE),
    "CUDNN unet_dice-amp-bf16-4": Known(0.0, 0.0, _CHOICE),
    "CUDNN deeplab-amp-bf16-4": Known(0.1109, 0.0, _CHOICE),
    "CUDNN super_resolution-fp32-4": Known(0.0, 0.0, _CHOICE),
    "CUDNN diffusion-amp-fp16-4": Known(0.0001, 0.0, _CHOICE),
    "CUDNN vae-amp-bf16-8": Known(0.0, 0.0, _CHOICE),
    "CUDNN detector-fp32-2": Known(0.0, 0.0, _CHOICE),
    "CUDNN swin-fp32-4": Known(0.0, 0.0, _CHOICE),
    "CUDNN experts-amp-bf16-4": Known(0.0, 0.0, _ZEROS),
    "CUDNN text_cnn-fp32-64": Known(0.0174, 0.0, _CHOICE),
    "CUDNN attention_inference-fp32-4": Known(0.0055, 0.0, _FAST_PATH),
    "CUDNN conv_lstm-amp-bf16-4": Known(0.1224, 0.0, _CHOICE),
    "CUDNN raw_wave-fp32-8": Known(0.0, 0.0, _CHOICE),
    "CUDNN spectrogram-fp32-8": Known(0.0058, 0.0, _CHOICE),
    "CUDNN wavenet-amp-fp16-4": Known(0.0, 0.0, _CHOICE),
    "CUDNN conformer-fp32-4": Known(0.0005, 0.0, _CHOICE),
    "CUDNN unet3d-fp32-2": Known(0.0092, 0.0, _CHOICE),
    "CUDNN c3d-amp-fp16-2": Known(0.0, 0.0, _CHOICE),
    "CUDNN c3d_channels_last-amp-bf16-2": Known(0.0, 0.0, _CHOICE),
    "CUDNN r2plus1d-fp32-2": Known(0.0296, 0.1887, _CHOICE),
    "CUDNN gradient_penalty-amp-bf16-4": Known(0.0, 0.0, _ORDER),
    "CUDNN actor_critic-fp32-16": Known(0.0, 0.0, _CHOICE),
    "CUDNN channels_last-fp32-4": Known(0.0, 0.0, _CHOICE),
    "CUDNN clip_value-fp32-8": Known(0.0046, 0.0, _CHOICE),
    "CUDNN clip_hooks-fp32-8": Known(0.0283, 0.0, _CHOICE),
    "CUDNN mixup-amp-fp16-4": Known(0.0, 0.122, _CHOICE),
    "CUDNN ema-fp32-8": Known(0.027, 0.0, _CHOICE),
    "CUDNN distillation-amp-bf16-4": Known(0.0, 0.0, _CHOICE),
    "CUDNN fine_tuning-fp32-4": Known(0.0, 0.0, _CHOICE),
    "CUDNN grad_checkpoint-fp32-8": Known(0.003, 0.0, _CHOICE),
    "CUDNN host_batch-fp32-4": Known(0.0161, 0.0, _CHOICE),
    "CUDNN tf32-tf32-8": Known(0.0041, 0.0, _CHOICE),
    "CUDNN resnet-amp-fp16-4": Known(0.0, 0.1205, _CHOICE),
    "CUDNN resnet_odd_size-fp32-3": Known(0.0, 0.0, _CHOICE),
    "CUDNN resnext-amp-bf16-4": Known(0.0, 0.0, _CHOICE),
    "CUDNN vgg-amp-fp16-8": Known(0.0, 0.0, _CHOICE),
    "CUDNN densenet-amp-fp16-4": Known(0.0, 0.0, _CHOICE),
    "CUDNN inception-fp32-4": Known(0.4447, 0.4359, _CHOICE),
    "CUDNN convnext-fp32-4": Known(0.0, 0.0, _CHOICE),
    "CUDNN shufflenet-fp32-4": Known(0.0092, 0.0, _CHOICE),
    "CUDNN nfnet-amp-bf16-4": Known(0.0, 0.0, _CHOICE),
    "CUDNN spatial_transformer-fp32-4": Known(0.0, 0.0, _CHOICE),
    "CUDNN gan_generator-amp-fp16-16": Known(0.0438, 0.0, _CHOICE),
    "CUDNN gan_discriminator-amp-bf16-4": Known(0.0047, 0.0, _CHOICE),
    "CUDNN resnet_inference-fp32-8": Known(0.0, 0.0, _CHOICE),
}
"""By run, as in `STUB resnet-fp32-4` or `CUDNN resnet-fp32-4`."""

NOT_COMPARED: dict[str, str] = {
    "asgd_loop": "the optimizer reads its step size, and takes another way for zero",
    "selected": "the number of selected elements, which is read, is zero",
    "sparse_embeddings": "the number of distinct indices, which is read, is zero",
}
"""Cases that read values, and allocate something else on the fake GPU because it computes none.

It says nothing about them. A case with `written_out` reads values too, and is compared.
"""
