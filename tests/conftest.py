"""What the whole suite shares: `import tiny` from any test, and one thread, as tiny tensors gain nothing from more."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
