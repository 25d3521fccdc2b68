"""Outputs and gradients have the strides that PyTorch's CUDA build gives them."""

from __future__ import annotations

import json
import warnings

import pytest
from tests.gpu.gpu import printed_on_fake_gpu
from tests.simulation.gpu_specs import GPU_SPECS
from tests.simulation.layout_cases import answers
from tests.simulation.oracle import why_there_is_none

from bsfind.inputs import InputSpec
from bsfind.settings import Workload
from bsfind.simulation.trace.tracer import Tracer

# `view` refuses these strides; nobody was seen to shuffle such channels.
REFUSED_BY_CUDA = {"channel_shuffle permuted"}


@pytest.mark.gpu
@pytest.mark.skipif(why_there_is_none() is not None, reason=str(why_there_is_none()))
def test_strides_are_those_of_the_cuda_build() -> None:
    on_gpu = json.loads(printed_on_fake_gpu("-m", "tests.simulation.layout_cases", gpu="h100"))
    assert {name for name, strides in on_gpu.items() if isinstance(strides, str)} == REFUSED_BY_CUDA
    workload = Workload(target="bsfind.demo:SmallResNet", inputs=(InputSpec(shape=(3, 8, 8)),))
    with Tracer(workload, "fp32", GPU_SPECS["h100"]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        simulated = json.loads(json.dumps(answers()))
    assert len(on_gpu) > 1000
    different = {
        name: (strides, simulated[name])
        for name, strides in on_gpu.items()
        if simulated[name] != strides and name not in REFUSED_BY_CUDA
    }
    assert not different
