"""The pieces of the lean blocks, compiled: each is one kernel in place of several, for all blocks and all lengths."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .compile_config import CompileConfig
from .pieces import PLAIN, Pieces

logger = logging.getLogger("hyvideo")

TOKENS, VECTOR, ROWS, SHARED = "tokens", "vector", "rows", "shared"
ARGUMENTS = {
    "modulate": (TOKENS, VECTOR, VECTOR),
    "turn_heads": (TOKENS, SHARED, ROWS),
    "join_gelu": (TOKENS, TOKENS),
}
"""What each piece takes: tokens [B, n, ...], a vector of each item [B, 1, D], rows for the tokens [n, ...], or neither.

Compiled, a piece sees one item at a time, without its batch axis: then tensors of one chunk size have one layout, in
whatever buffer they lie, and no other length of the video asks for another kernel.
"""


@cache
def compiled_pieces(config: CompileConfig) -> Pieces:
    """All pieces compiled so. Nothing happens before the first call; kernels stay as long as the process lives."""
    state = _State()
    return Pieces(**{
        field.name: _Compiled(getattr(PLAIN, field.name), config, ARGUMENTS[field.name], state)
        for field in fields(Pieces)
    })  # fmt: skip


class _State:
    """Shared by the pieces: once one could not be compiled, none is."""

    has_failed = False


class _Compiled:
    """One piece. Where it cannot be compiled, it says so once and computes as it is."""

    def __init__(
        self, plain: Callable[..., Any], config: CompileConfig, arguments: tuple[str, ...], state: _State
    ) -> None:
        self._plain, self._config, self._arguments, self._state = plain, config, arguments, state
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Tensor | None) -> Any:
        if self._state.has_failed:
            return self._plain(*args)
        assert args[0] is not None
        made = [self._run([self._of_item(*given, i) for given in self._given(args)]) for i in range(len(args[0]))]
        return made[0][None] if len(made) == 1 else torch.stack(made)

    def _given(self, args: tuple[Tensor | None, ...]) -> list[tuple[Tensor | None, str]]:
        return list(zip(args, self._arguments, strict=True))

    def _of_item(self, arg: Tensor | None, kind: str, i: int) -> Tensor | None:
        """An argument as it is for one item of the batch, its tokens marked as a number that changes."""
        if arg is None:
            return None
        part = arg[i] if kind == TOKENS else arg[i, 0] if kind == VECTOR else arg
        part = part.data  # shares memory but is no view: the compiler would hold on to the whole buffer's shape
        if self._config.dynamic and kind in (TOKENS, ROWS):
            from torch._dynamo import maybe_mark_dynamic

            maybe_mark_dynamic(part, 0)
        return part

    def _run(self, args: list[Tensor | None]) -> Any:
        if self._state.has_failed:
            return self._plain(*args)
        try:
            compiled = self._make()
        except RuntimeError as error:  # this Python or system is not supported at all
            self._fail(error)
            return self._plain(*args)
        try:
            return compiled(*args)
        except compile_errors() as error:
            self._fail(error)
            return self._plain(*args)

    def _fail(self, error: Exception) -> None:
        self._state.has_failed = True
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2]) or type(error).__name__  # the first line may be but "backend=... raised:"
        logger.warning(
            "The blocks run uncompiled: %s. Compiling needs Triton on a graphics card, a C++ compiler on a CPU.",
            reason.rstrip("."),
        )

    def _make(self) -> Callable[..., Any]:
        if self._compiled is None:
            config = self._config
            mode = config.mode if config.backend == "inductor" and config.mode != "default" else None
            dynamic = None if config.dynamic else False
            self._compiled = torch.compile(self._plain, backend=config.backend, mode=mode, dynamic=dynamic)
        return self._compiled


@cache
def compile_errors() -> tuple[type[Exception], ...]:
    """What is raised when something cannot be compiled, in all its layers; running out of memory is none of it."""
    from torch._dynamo.exc import TorchDynamoException

    found: list[type[Exception]] = [TorchDynamoException]
    try:
        from torch._inductor import exc
    except ImportError:
        return tuple(found)
    names = ("InductorError", "CppCompileError", "InvalidCxxCompiler", "CppWrapperCodegenError")
    found += [getattr(exc, name) for name in names if hasattr(exc, name)]
    return tuple(found)
