"""`bsfind.find` from a program, on a GPU: an instance is measured, and stays out of the GPU's memory."""

from __future__ import annotations

from tests.gpu.gpu import LIMIT, MODELS, Gpu

PROGRAM = f"""
import sys
sys.path.insert(0, {str(MODELS)!r})
import bsfind, torch, well_behaved

def find(model, **options):
    return bsfind.find(
        model, (3, 32, 32), memory_limit={LIMIT!r}, precision="fp32", confirm_steps=2, **options
    )

report = find(well_behaved.ConvNet(16))
assert not torch.cuda.is_initialized()
assert not report.simulated and report.status == "complete", report
(result,) = report.results
assert result.verified and result.recommended_batch_size == report.batch_size
assert [warning.code for warning in report.warnings if warning.code == "not_reproducible"]
by_name = find(well_behaved.ConvNet, model_arg={{"width": 16}})
assert by_name.batch_size == report.batch_size, (by_name, report)
try:
    find(well_behaved.ConvNet(16).cuda())
except bsfind.UsageError as error:
    print(error)
"""


def test_an_instance_and_its_class_have_the_same_answer(gpu: Gpu) -> None:
    done = gpu.python_code(PROGRAM)
    assert done.code == 0, done.err
    assert done.out == ("the model is on `cuda` already: its memory there cannot be searched\n"), (
        done.err
    )
