"""Answers the questions of dtype_cases on a GPU, real or fake: `python -m tests.simulation.dtype_answers`.

Prints a line of JSON for each: its name, and what came of it.
"""

from __future__ import annotations

import json
import os
import sys
import warnings

from tests.simulation.dtype_cases import answer, questions


def main() -> None:
    """Answer all."""
    warnings.simplefilter("ignore")
    for question in questions():
        print(json.dumps([question.name, answer(question)]))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # the threads of autograd outlive the interpreter otherwise, and abort it
