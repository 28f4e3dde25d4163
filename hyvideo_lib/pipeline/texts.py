"""The text encoders' weights: at home, or on a device, the language model's layers one by one where memory is short.

A prompt passes through the language model once, so its layers are worth neither pinned memory nor a card full of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ..memory import Offloader
from ..text import ClipTextEncoder, LlamaTextEncoder

TEXT_WORKING_BYTES = 512 * 2**20
"""For a prompt of 256 tokens and its template in the released language model, on the safe side."""


def offload_text_encoder(encoder: LlamaTextEncoder | ClipTextEncoder) -> Offloader:
    """An encoder's weights at home; a language model's layers may stay there while it encodes."""
    blocks = encoder.blocks if isinstance(encoder, LlamaTextEncoder) else ()
    return Offloader(encoder, blocks, keep_pinned=False)


@contextmanager
def bringing_layers(offloaders: Sequence[Offloader], check_fn: Callable[[], None]) -> Iterator[None]:
    """In this context the encoders encode, wherever their layers are. check_fn: called before each layer; may raise."""
    with ExitStack() as stack:
        for offloader in offloaders:
            stack.enter_context(offloader.bringing(check_fn))
        yield
