"""What the lean blocks do to chunks of tokens, compiled: all of it at once, or the pieces between matrix products.

Compiled once for each kind of block, for all blocks and all lengths: weights, LoRAs and vectors are arguments.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import cache
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor

from ..shortage import is_out_of_memory
from .chunks import AS_THEY_ARE, Chunks, with_pieces
from .compile_config import CompileConfig
from .pieces import PLAIN, Pieces

logger = logging.getLogger("hyvideo")

TOKENS, VECTOR, ROWS, SHARED = "tokens", "vector", "rows", "shared"
ARGUMENTS = {
    "modulate": (TOKENS, VECTOR, VECTOR),
    "turn_heads": (TOKENS, SHARED, ROWS),
    "join_gelu": (TOKENS, TOKENS),
    "before_attention": (TOKENS, VECTOR, VECTOR, SHARED, TOKENS, TOKENS, TOKENS, SHARED, SHARED, ROWS),
    "after_double": (TOKENS, TOKENS, VECTOR, VECTOR, VECTOR, VECTOR, SHARED, SHARED, SHARED),
    "after_single": (TOKENS, TOKENS, VECTOR, VECTOR, VECTOR, SHARED, SHARED),
}
"""What each function takes: tokens [B, n, ...], a vector of each item [B, 1, D], rows for the tokens [n, ...], or what
is the same for all items.

Compiled, it sees one item at a time, without its batch axis: then tensors of one chunk size have one layout, in
whatever buffer they lie, and no other length of the video asks for another kernel.
"""
MOST_FORMS = 64
"""Of one function: kinds of weights and of LoRAs, dtypes, head groups. PyTorch would stop at 8."""


@cache
def compiled_chunks(config: CompileConfig, device: torch.device) -> Chunks:
    """All of it compiled so. Nothing happens before the first call; kernels stay as long as the process lives."""
    if config.scope == "pieces":
        return with_pieces(compiled_pieces(config, device))
    return Chunks(**_compile_all(AS_THEY_ARE, config, device))


@cache
def compiled_pieces(config: CompileConfig, device: torch.device) -> Pieces:
    """The pieces alone, whatever the scope."""
    return Pieces(**_compile_all(PLAIN, config, device))


def _compile_all(plain: Chunks | Pieces, config: CompileConfig, device: torch.device) -> dict[str, _Compiled]:
    """Every function of a table, by its name."""
    failure = _failure_of(config, device)
    return {
        field.name: _Compiled(getattr(plain, field.name), config, ARGUMENTS[field.name], failure)
        for field in fields(plain)
    }  # fmt: skip


def begin_run(config: CompileConfig, device: torch.device) -> None:
    """Try again what failed before and may go well now. What cannot is said again."""
    failure = _failure_of(config, device)
    if failure.may_pass:
        failure.reason = ""
    elif failure.reason:
        logger.warning(UNCOMPILED, failure.reason)


def why_uncompiled(config: CompileConfig, device: torch.device) -> str | None:
    """Why what was to be compiled so runs as it is; None if it does not."""
    return _failure_of(config, device).reason or None


@dataclass
class _Failure:
    """Shared by the functions: once one could not be compiled, none is. reason: empty as long as all could."""

    reason: str = ""
    may_pass: bool = False


def _failure_of(config: CompileConfig, device: torch.device) -> _Failure:
    return _failure(config, torch.empty(0, device=device).device)  # "cuda" is one of the cards


@cache
def _failure(config: CompileConfig, device: torch.device) -> _Failure:
    return _Failure()


class _Compiled:
    """One function. Where it cannot be compiled, it says so once a run and computes as it is."""

    def __init__(
        self, plain: Callable[..., Any], config: CompileConfig, arguments: tuple[str, ...], failure: _Failure
    ) -> None:
        self._plain, self._config, self._arguments, self._failure = plain, config, arguments, failure
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self._failure.reason:
            return self._plain(*args)
        given = list(zip(args, self._arguments, strict=True))
        made = [self._run([self._of_item(*each, i) for each in given]) for i in range(len(args[0]))]
        if made[0] is None:
            return None
        return made[0][None] if len(made) == 1 else torch.stack(made)

    def _of_item(self, arg: Any, kind: str, i: int) -> Any:
        """An argument as it is for one item of the batch, its tokens marked as a number that changes."""
        if not isinstance(arg, Tensor):
            return arg
        part = arg[i] if kind == TOKENS else arg[i, 0] if kind == VECTOR else arg
        part = part.data  # shares memory but is no view: the compiler would hold on to the whole buffer's shape
        if self._config.dynamic and kind in (TOKENS, ROWS):
            from torch._dynamo import maybe_mark_dynamic

            maybe_mark_dynamic(part, 0)
        return part

    def _run(self, args: list[Any]) -> Any:
        if self._failure.reason:
            return self._plain(*args)
        try:
            compiled = self._make()
        except RuntimeError as error:  # this Python or system is not supported at all
            self._fail(error, may_pass=False)
            return self._plain(*args)
        try:
            with _allowing_forms():
                return compiled(*args)
        except Exception as error:
            if not _failed_to_compile(error):
                raise
            shortage = shortage_in(error)
            if shortage:  # with more memory it may go well
                raise shortage from None
            self._fail(error)
            return self._plain(*args)

    def _fail(self, error: Exception, may_pass: bool = True) -> None:
        text = f"{type(error).__name__}: {error}"
        is_missing = any(words in text for words in MISSING)
        self._failure.reason = _reason(error) + (f". {NEEDS}" if is_missing else "")
        self._failure.may_pass = may_pass and not is_missing and not any(words in text for words in REFUSED)
        logger.warning(UNCOMPILED, self._failure.reason)

    def _make(self) -> Callable[..., Any]:
        if self._compiled is None:
            config = self._config
            mode = config.mode if config.backend == "inductor" and config.mode != "default" else None
            dynamic = None if config.dynamic else False
            more: dict[str, Any] = {"recompile_limit": MOST_FORMS, "isolate_recompiles": True} if _takes_limit() else {}
            # As a whole or not at all: what is half done cannot be done again by the plain form.
            self._compiled = torch.compile(
                self._plain, backend=config.backend, mode=mode, dynamic=dynamic, fullgraph=True, **more
            )
        return self._compiled


@cache
def _takes_limit() -> bool:
    """Whether this PyTorch lets a function have more forms than others."""
    return {"recompile_limit", "isolate_recompiles"} <= signature(torch.compile).parameters.keys()


def _allowing_forms() -> AbstractContextManager[object]:
    """Where the function itself cannot be allowed more forms than others, all are while it is called."""
    if _takes_limit():
        return nullcontext()
    from torch._dynamo import config

    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    return cast(AbstractContextManager[object], config.patch({name: MOST_FORMS}))


NOTHING_COMPILED = "found no compiled frames"
"""What an error of no kind of its own says where the compiler left out all there was."""
REFUSED = ("SkipFrame", "FailOnRecompileLimitHit", "GPUTooOldForTriton", NOTHING_COMPILED)
"""In the error of a compiler that is there and takes no such thing, as bfloat16 on cards before the RTX 30 series."""
MISSING = ("InvalidCxxCompiler", "TritonMissing", "triton installation", "No module named 'triton", "C compiler")
NEEDS = "Compiling needs Triton on a graphics card, a C++ compiler on a CPU"
UNCOMPILED = "The blocks run uncompiled: %s."


def _failed_to_compile(error: Exception) -> bool:
    return isinstance(error, compile_errors()) or NOTHING_COMPILED in str(error)


def _reason(error: BaseException) -> str:
    """What is wrong, without what the layers of the compiler add to it."""
    while inner := getattr(error, "inner_exception", None):
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".") or type(error).__name__


@cache
def compile_errors() -> tuple[type[Exception], ...]:
    """What is raised when something cannot be compiled, in all its layers; running out of memory is none of it."""
    from torch._dynamo import exc as dynamo
    from torch._dynamo.exc import TorchDynamoException

    found: list[type[Exception]] = [TorchDynamoException]
    found += [kind for kind in (getattr(dynamo, "FailOnRecompileLimitHit", None),) if kind]  # is no child of the other
    try:
        from torch._inductor import exc
    except ImportError:
        return tuple(found)
    names = ("InductorError", "CppCompileError", "InvalidCxxCompiler", "CppWrapperCodegenError")
    found += [getattr(exc, name) for name in names if hasattr(exc, name)]
    return tuple(found)


def shortage_in(error: BaseException | None) -> BaseException | None:
    """What was raised for a lack of memory on the device or in RAM, where the compiler's error stands for that."""
    while error is not None:
        if is_out_of_memory(error) and not isinstance(error, compile_errors()):
            return error
        error = getattr(error, "inner_exception", None) or error.__cause__
    return None
