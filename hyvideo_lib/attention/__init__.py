"""Attention: one function for every caller, a table of kernels behind it, and the choice among them."""

from .api import AUTO, BACKENDS, AttendFn, attend, register
from .backend import Backend, Kernel
from .choose import PLAIN, Attention, Problem, attention_names, check_backend, choose_attention, verdicts
from .probe import TRIED_TOKENS

__all__ = [
    "AUTO",
    "BACKENDS",
    "PLAIN",
    "TRIED_TOKENS",
    "AttendFn",
    "Attention",
    "Backend",
    "Kernel",
    "Problem",
    "attend",
    "attention_names",
    "check_backend",
    "choose_attention",
    "register",
    "verdicts",
]
