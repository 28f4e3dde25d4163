"""Tensors that stand in model files and that no layer needs: counters of a training run, tables computed from sizes.

Only what cannot be a weight is on the list. A surplus tensor that is not may be a layer of another model, and a file
with one is refused.
"""

from __future__ import annotations

from collections.abc import Container

from .header import TensorInfo

TABLES = frozenset(
    (
        *("inv_freq", "original_inv_freq", "cos_cached", "sin_cached", "freqs_cis", "position_ids", "token_type_ids"),
        *("relative_position_index", "attention_mask", "causal_mask", "attn_mask", "masked_bias"),
    )
)
"""Last words of names of what is computed from a model's sizes, of any shape."""
COUNTERS = frozenset(
    (
        *("global_step", "global_steps", "step", "steps", "num_steps", "epoch", "iteration", "iterations"),
        *("num_updates", "num_batches_tracked", "n_averaged", "initted", "decay", "ema_decay", "growth_tracker"),
        *("lr", "learning_rate", "loss_scale", "grad_scale", "logit_scale", "logit_bias"),
    )
)
"""Of single numbers that a training run kept, or that only CLIP's training needed."""
SCHEDULES = frozenset(
    (
        *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sigmas", "log_sigmas"),
        *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod"),
        *("sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped"),
        *("posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights"),
    )
)
"""Whole names of lists of noise levels."""
INTEGERS = frozenset(("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"))


def is_idle(name: str, info: TensorInfo, layers: Container[str]) -> bool:
    """Whether a surplus tensor is one that no layer needs. layers: names of the weights that the model has.

    Beside the lists, a single whole number is a counter. But beside a weight it says how that is to be read.
    """
    path, _, leaf = name.rpartition(".")
    if f"{path}.weight" in layers:
        return False
    if info.numel == 1 and len(info.shape) <= 1 and (leaf in COUNTERS or info.dtype in INTEGERS):
        return True
    return leaf in TABLES or (name in SCHEDULES and len(info.shape) == 1)
