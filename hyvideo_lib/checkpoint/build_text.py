"""The text encoders from files: recognised by the header, given the mapped tensors, and joined with their tokenizer.

The weights rest as the file has them and are cast when they are used, so loading copies next to nothing; only the
vectors of the norms, which the layers of transformers use as they are, are cast at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..quant import FP8_DTYPES
from ..quant.install import install, restore
from ..text import ClipEncoderConfig, ClipTextEncoder, LlamaEncoderConfig, LlamaTextEncoder, PromptTemplate
from ..text.clip import check_ends
from ..text.tokens import check_control_tokens
from .build import COMPUTE_DTYPES, STORAGE_DTYPES, PathLike, check_dtype, recognise
from .descriptions import own_contents
from .examine import Findings, examine
from .find_tokenizer import find_tokenizer
from .folder import map_header, open_header
from .keymaps import COMPANIONS
from .read import Header
from .text_layers import Embeddings, halve_heads, use_cast_linears
from .text_sizes import with_text_sizes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXT_KINDS = ("llama", "clip")
RESTORED = "fp8_scale"  # the scheme of what `restore` gives


def load_text_encoder(
    path: PathLike,
    tokenizer: Tokenizer | PathLike | None = None,
    storage_dtype: torch.dtype | None = None,
    compute_dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    config: LlamaEncoderConfig | ClipEncoderConfig | None = None,
    tokenizer_places: Iterable[PathLike] = (),
    kind: str | None = None,
) -> LlamaTextEncoder | ClipTextEncoder:
    """A Llama or CLIP text encoder, whichever the file or folder holds, with its tokenizer, in any known layout.

    tokenizer: one that is loaded, or the file or folder that has it; None searches for it (`find_tokenizer`), also in
    tokenizer_places. storage_dtype: what the matrices rest in; None leaves them as the file has them, fp8 is for those
    that are multiplied with. compute_dtype: what they are multiplied in; None takes what most of the file is stored in,
    bfloat16 if that is smaller. kind: "llama" or "clip", which of a file that holds both; None takes the Llama. Raises
    as `load_transformer`, and MissingPackage.
    """
    check_dtype("compute_dtype", compute_dtype, COMPUTE_DTYPES)
    check_dtype("storage_dtype", storage_dtype, STORAGE_DTYPES)
    header = with_text_sizes(open_header(path))
    kinds = (kind,) if kind else TEXT_KINDS
    findings = recognise(path, kinds, config or examine(header, kinds=kinds).config)
    found_tokenizer = find_tokenizer(header, findings, tokenizer, tokenizer_places)
    encoder_class: Callable[..., LlamaTextEncoder | ClipTextEncoder]
    encoder_class = LlamaTextEncoder if findings.kind == "llama" else ClipTextEncoder
    encoder = encoder_class(findings.config, found_tokenizer)
    _fill(encoder, findings, storage_dtype, compute_dtype or _main_dtype(findings.header))
    return encoder.eval().to(device)


def check_tokenizer(path: PathLike, tokenizer: PathLike | None, template: PromptTemplate, kind: str) -> None:
    """Hold the tokenizer that `load_text_encoder` would take to its encoder and the template, before any weights.

    kind: "llama" or "clip". What is passed over in the search is told only when the encoder is loaded. Raises as
    `find_tokenizer`, and InvalidTemplate.
    """
    header = with_text_sizes(open_header(path))
    findings = recognise(path, (kind,), examine(header, kinds=(kind,)).config)
    found = find_tokenizer(header, findings, tokenizer, is_told=False)
    if findings.kind == "clip":
        check_ends(found, findings.config)
    else:
        check_control_tokens(found, template)


def _fill(
    encoder: LlamaTextEncoder | ClipTextEncoder,
    findings: Findings,
    storage_dtype: torch.dtype | None,
    compute_dtype: torch.dtype,
) -> None:
    """Give an encoder on the meta device the file's weights, and the layers that keep them as they are."""
    assert findings.file_header is not None
    contents = own_contents(findings, map_header(findings.file_header))
    scheme, metadata, dtypes = findings.quantization, contents.metadata, dict(contents.dtypes)
    tensors = _only_of(contents.tensors, encoder.weight_names())
    model = encoder.named_as_files

    embeddings = Embeddings(model, tensors, scheme, dtypes, metadata)
    for name in embeddings.taken:
        del tensors[name], dtypes[name]
    if storage_dtype is not None:
        tensors = dict(restore(tensors, scheme, storage_dtype, dtypes=dtypes, metadata=metadata))
        scheme = RESTORED
        if storage_dtype not in FP8_DTYPES:
            embeddings.cast(storage_dtype)
    ready = embeddings.use(model, compute_dtype)
    use_cast_linears(model)
    state = install(model, tensors, scheme, dtypes=dtypes, metadata=metadata, dense_dtype=compute_dtype, ready=ready)
    encoder.load_weights({name: _as_used(tensor, compute_dtype) for name, tensor in state.items()})
    if findings.layout == "llama_cpp":
        halve_heads(model, findings.config.head_dim)


def _only_of(tensors: Mapping[str, Tensor], wanted: frozenset[str]) -> dict[str, Tensor]:
    """The tensors that are wanted, and the companions of those."""
    layers = {name.rpartition(".")[0] for name in wanted}

    def is_wanted(name: str) -> bool:
        layer, _, leaf = name.rpartition(".")
        return name in wanted or (layer in layers and leaf in COMPANIONS)

    return {name: tensor for name, tensor in tensors.items() if is_wanted(name)}


def _as_used(tensor: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """Vectors of numbers in the compute dtype: those of norms are used as they are. Scales stay as they are."""
    is_vector = tensor.ndim == 1 and tensor.numel() > 1 and tensor.is_floating_point()
    return tensor.to(compute_dtype) if is_vector else tensor


def _main_dtype(header: Header) -> torch.dtype:
    """The 16- or 32-bit dtype of most parameters, bfloat16 where they are smaller."""
    counts = Counter[str]()
    for info in header.tensors.values():
        counts[info.dtype] += info.numel
    dtype = getattr(torch, counts.most_common(1)[0][0], None)
    return dtype if dtype in COMPUTE_DTYPES else torch.bfloat16
