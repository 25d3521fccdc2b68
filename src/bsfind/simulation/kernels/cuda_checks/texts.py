"""Messages of operators that ran on meta tensors, in the words of the CUDA build."""

from __future__ import annotations

import re

_LEGACY = "Double|Float|Half|Long|Int|Short|Char|Byte"
# What PyTorch prints of devices and tensor types: `meta`, `MetaFloatType`, `torch.meta.FloatTensor`.
_REPLACEMENTS = (
    (
        re.compile(r"Tensor on device \w+ is not on the expected device \w+!"),
        "Expected all tensors to be on the same device, "
        "but found at least two devices, cuda:0 and cpu!",
    ),
    (re.compile(rf"\bMeta({_LEGACY})Type\b"), r"torch.cuda.\1Tensor"),
    (re.compile(r"\bMeta(\w+)Type\b"), r"CUDA\1Type"),
    (re.compile(r"\btorch\.meta\.(\w+Tensor)\b"), r"torch.cuda.\1"),
    (re.compile(r"\bmeta (DeviceType|device type)\b"), r"cuda \1"),
    (re.compile(r"(?<![\w./'`\"-])meta(?![\w/'`\"-]|\.\w| tensor| kernel| function)"), "cuda:0"),
)


def in_words_of_cuda(error: BaseException) -> None:
    """Let an exception name the GPU where PyTorch named the meta device that stands for it."""
    if error.args and isinstance(error.args[0], str) and "meta" in error.args[0].lower():
        text = error.args[0]
        for pattern, replacement in _REPLACEMENTS:
            text = pattern.sub(replacement, text)
        error.args = (text, *error.args[1:])
