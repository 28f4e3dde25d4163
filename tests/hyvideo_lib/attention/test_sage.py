"""The real SageAttention of the first generation, its kernels run by Triton's interpreter, which needs no card."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

MISSING = [name for name in ("sageattention", "triton") if find_spec(name) is None]
SCRIPT = """
import torch
torch.cuda.set_device = lambda device: None  # the package selects its input's card
from hyvideo_lib.attention import BACKENDS
from hyvideo_lib.attention.probe import probe
for dtype in (torch.float16, torch.bfloat16):
    for tokens in (100, 640, 1025):
        print(probe(BACKENDS["sage"], torch.device("cpu"), 128, dtype, tokens).reason[:31] or "right")
"""


@pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}: pip install sageattention==1.0.6 triton")
def test_it_is_right_where_padding_is_little_and_refused_where_it_is_not() -> None:
    # -O leaves out the package's own check that tensors are on a card.
    command = [sys.executable, "-O", "-W", "ignore", "-c", SCRIPT]
    surroundings = {**os.environ, "TRITON_INTERPRET": "1"}
    made = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
    assert made.stdout.splitlines() == ["gives wrong numbers for 100 tokens"[:31], "right", "right"] * 2, made.stderr
