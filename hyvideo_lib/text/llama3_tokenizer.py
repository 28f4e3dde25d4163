"""The Llama-3 tokenizer built from its parts: the published table of ranks, or the tokens and merges of a GGUF file.

Both give what the model's own tokenizer.json gives. Everything is the `tokenizers` library underneath `transformers`.
"""

from __future__ import annotations

import base64
import binascii
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FileMissing, FileUnreadable, MissingPackage

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LLAMA3_PACKAGE = "llama_models"
LLAMA3_RANKS = Path("llama3", "tokenizer.model")
BEGIN_OF_TEXT = "<|begin_of_text|>"

# Llama-3's pre-tokenizer: contractions, words with one leading sign, up to three digits, signs, line ends, spaces.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The 256 control tokens that follow the 128,000 ranks; the names not listed are reserved ones, counted in order.
_CONTROL = {
    0: BEGIN_OF_TEXT,
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}
_NUM_CONTROL = 256
# What the LLaVA text encoder, whose language model HunyuanVideo reads, has after them: 128256, 128257, 128258.
_LLAVA_TOKENS = ("<unk>", "<image>", "<pad>")


def build_llama3_tokenizer(ranks_file: str | Path | None = None) -> Tokenizer:
    """The Llama-3 tokenizer with LLaVA's extra tokens, from the published table of ranks.

    ranks_file: llama3/tokenizer.model; None takes it from the installed package llama-models. Ids: 0..127999 ranks,
    128000..128255 control tokens, then <unk>, <image> (128257) and <pad> (128258).
    Raises MissingPackage, FileMissing, FileUnreadable.
    """
    file = Path(ranks_file) if ranks_file is not None else _installed_ranks_file()
    if not file.is_file():
        raise FileMissing(
            f"no Llama-3 vocabulary at {file}. Name the llama3/tokenizer.model of the package llama-models."
        )
    return llama3_from_ranks(file.read_bytes(), str(file))


def llama3_from_ranks(table: bytes, origin: str) -> Tokenizer:
    """The same from the table's bytes: lines of `base64 rank`. origin: where it is from, for messages.

    Raises FileUnreadable.
    """
    ranks = _parse_ranks(table, origin)
    letters = _byte_letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    vocab = {spelled[token]: rank for token, rank in ranks.items()}
    merges = [(spelled[left], spelled[right]) for left, right in _merges(ranks)]
    return _assemble(vocab, merges, [*_control_names(), *_LLAVA_TOKENS])


def llama3_from_merges(tokens: Sequence[str], merges: Iterable[str], control: Sequence[str], origin: str) -> Tokenizer:
    """The Llama-3 tokenizer from lists: tokens by id in byte-level spelling, merges as `left right`, most urgent first.

    control: the tokens among them that stand for themselves wherever they occur. Raises FileUnreadable.
    """
    vocab = {token: index for index, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    needed = chain((BEGIN_OF_TEXT,), control, *pairs, (left + right for left, right in pairs))
    lost = next((name for name in needed if name not in vocab), None) if pairs else "the list of merges"
    if lost is not None:
        raise FileUnreadable(
            f"{origin} holds no complete Llama-3 vocabulary ({lost[:40]} is missing). "
            "Put the tokenizer.json of the language model beside the file."
        )
    return _assemble(vocab, pairs, control)


def _assemble(vocab: Mapping[str, int], merges: Iterable[tuple[str, str]], control: Sequence[str]) -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    # A word that is a token as a whole is taken as it is, as in the published tokenizer: hence ignore_merges.
    tokenizer = Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges), ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in control])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_OF_TEXT} $A", special_tokens=[(BEGIN_OF_TEXT, tokenizer.token_to_id(BEGIN_OF_TEXT))]
    )
    return tokenizer


def _control_names() -> list[str]:
    reserved = (f"<|reserved_special_token_{index}|>" for index in range(_NUM_CONTROL))
    return [_CONTROL.get(offset) or next(reserved) for offset in range(_NUM_CONTROL)]


def _installed_ranks_file() -> Path:
    spec = importlib.util.find_spec(LLAMA3_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage(
            "building the Llama-3 tokenizer needs its vocabulary, which the package llama-models carries. Install it "
            "with: pip install llama-models. Or put the tokenizer.json of the language model beside its weights."
        )
    return Path(next(iter(spec.submodule_search_locations))) / LLAMA3_RANKS


def _parse_ranks(table: bytes, origin: str) -> dict[bytes, int]:
    """Token bytes to rank, from lines of `base64 rank`, in rising rank."""
    try:
        pairs = (line.split() for line in table.splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error) as error:
        raise FileUnreadable(
            f"{origin} is not a table of token ranks (lines of base64 and a number): {error}. "
            "The file wanted is llama3/tokenizer.model of the package llama-models."
        ) from error
    if list(ranks.values()) != list(range(len(ranks))) or len(ranks) < 256:
        raise FileUnreadable(
            f"{origin} holds {len(ranks)} token ranks that do not count up from 0. It is damaged or another kind of "
            "file. The file wanted is llama3/tokenizer.model of the package llama-models."
        )
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Pairs that join into a token, most urgent first.

    A table of ranks lets any two neighbours join whose union is a token, lowest rank first; a list of merges says the
    same when it holds every split of every token in that order.
    """
    merges: list[tuple[bytes, bytes]] = []
    for token in ranks:
        splits = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [(left, right) for left, right in splits if left in ranks and right in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte in byte-level vocabularies: itself, or one from 256 upwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]
