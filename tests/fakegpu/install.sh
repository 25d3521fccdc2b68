#!/bin/sh
# install.sh [--models] VENV: make VENV an environment with a CUDA build of PyTorch on a fake GPU.
#
# Safe to call again: what is installed and built already is kept, and a call with nothing to do is quick.
# --models adds timm, torchvision and transformers. PYTHON names the interpreter for a new VENV, and TORCH the
# release of PyTorch, 2.6.0 or later. See README.md.
set -eu

torch=${TORCH:-2.13.0}

usage() {
    echo "usage: install.sh [--models] VENV" >&2
    exit 2
}

models=
venv=
for argument in "$@"; do
    case $argument in
        --models) models=yes ;;
        -*) usage ;;
        *) [ -z "$venv" ] || usage; venv=$argument ;;
    esac
done
[ -n "$venv" ] || usage

here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
python=$venv/bin/python
pip() { "$python" -m pip install --disable-pip-version-check --no-warn-conflicts --quiet "$@"; }

# A stamp says which version of this script completed a part.
version="$torch $(cat "$here/install.sh" "$here/release.py" | cksum)"
is_done() { [ "$(cat "$venv/fakegpu/$1.stamp" 2>/dev/null)" = "$version" ]; }
stamp() { mkdir -p "$venv/fakegpu" && echo "$version" > "$venv/fakegpu/$1.stamp"; }

[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$venv"

if ! is_done packages; then
    # "===" takes the wheel of the package index, a CUDA build, also where a "+cpu" wheel would be preferred.
    # --no-deps: no NVIDIA library is needed but the two below, and no Triton.
    pip --no-deps "torch===$torch"
    pip 'setuptools>=77.0.3' typing_extensions filelock sympy networkx jinja2 fsspec numpy
    pip --no-deps $(PYTHONPATH=$here/.. "$python" -m fakegpu.release "$venv")
    # What bsfind and its tests import.
    pip typer rich nvidia-ml-py pytest pytest-timeout pytest-randomly hypothesis jsonschema
    stamp packages
fi
if [ -n "$models" ] && ! is_done models; then
    # timm imports torchvision, whose releases go with those of torch: 0.28.0 with 2.13.0.
    minor=${torch#2.}
    torchvision=0.$((${minor%%.*} + 15)).${torch##*.}
    pip --no-deps timm "torchvision===$torchvision" # else both would pull another torch
    pip pillow pyyaml huggingface_hub safetensors transformers
    stamp models
fi

PYTHONPATH=$here/.. "$python" -m fakegpu.build "$venv"
