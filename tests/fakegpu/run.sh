#!/bin/sh
# run.sh VENV CMD...: run a command on a fake GPU, with the environment that install.sh made
#
# VENV/bin comes first in PATH. FAKE_GPU, FAKE_GPU_MEMORY, ... choose the GPU: see README.md.
# From Python, fakegpu.environment() does the same.
set -eu

[ $# -ge 2 ] || { echo "usage: run.sh VENV CMD..." >&2; exit 2; }
venv=$(CDPATH= cd -- "$1" && pwd)
shift

build=${FAKECUDA_BUILD:-$venv/fakegpu/build}
[ -e "$build/lib/libcuda.so.1" ] || { echo "run.sh: nothing is built in $build: call install.sh" >&2; exit 1; }

if [ -z "${FAKE_CUDNN+set}" ]; then # FAKE_CUDNN= turns the real one off
    for nvidia in "$venv"/lib/python3*/site-packages/nvidia; do
        [ -e "$nvidia/cudnn/lib/libcudnn.so.9" ] || continue
        export FAKE_CUDNN="$nvidia/cudnn/lib/libcudnn.so.9"
        for compiler in "$nvidia"/*/lib/libnvrtc.so.*; do
            export FAKE_CUDNN_NVRTC="$compiler"
        done
    done
fi
export PATH="$venv/bin:$PATH"
sonames=$(cat "$build/sonames.txt")
libraries=$build/lib:$build/nvml
if [ "${FAKE_NVML:-}" = missing ]; then
    sonames=$(grep -vx libnvidia-ml.so.1 "$build/sonames.txt")
    libraries=$build/lib
fi
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# The bare names, so that a library counts as loaded under each of them.
LD_PRELOAD="$(echo $sonames) ${LD_PRELOAD:-}"
export LD_PRELOAD
exec "$@"
