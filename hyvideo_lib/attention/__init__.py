"""Attention: one function for every caller."""

from .api import attend

__all__ = ["attend"]
