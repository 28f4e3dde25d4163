"""Tokenizers: read from a `tokenizer.json`, or built from the Llama-3 vocabulary as its makers publish it.

Everything is the `tokenizers` library underneath `transformers`, used directly: a `tokenizer.json` then means the same
under every version of `transformers`, and counting tokens does not import a model library.
"""

from __future__ import annotations

import base64
import binascii
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FileMissing, FileUnreadable, MissingPackage

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
LLAMA3_PACKAGE = "llama_models"
LLAMA3_RANKS = Path("llama3", "tokenizer.model")

# Llama-3's pre-tokenizer: contractions, words with one leading sign, up to three digits, signs, line ends, spaces.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The 256 control tokens that follow the 128,000 ranks; the names not listed are reserved ones, counted in order.
_LLAMA3_CONTROL = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}
_NUM_CONTROL = 256
# What the LLaVA text encoder, whose language model HunyuanVideo reads, has after them: 128256, 128257, 128258.
_LLAVA_TOKENS = ("<unk>", "<image>", "<pad>")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer from a tokenizer.json, or from a folder that holds one; without truncation or padding.

    Raises FileMissing, FileUnreadable.
    """
    from tokenizers import Tokenizer

    path = Path(path)
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileMissing(
            f"no tokenizer at {file}. A text encoder needs the {TOKENIZER_FILE} of its model: put it in the encoder's "
            "folder, or name the file or folder that has it."
        )
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing more specific
        raise FileUnreadable(
            f"{file} is not a {TOKENIZER_FILE} that this version of `tokenizers` can read ({error}). "
            "Download it again, or update the package: pip install -U tokenizers transformers"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def build_llama3_tokenizer(ranks_file: str | Path | None = None) -> Tokenizer:
    """The Llama-3 tokenizer with LLaVA's extra tokens, from the published table of ranks.

    ranks_file: llama3/tokenizer.model; None takes it from the installed package llama-models. Ids: 0..127999 ranks,
    128000..128255 control tokens, then <unk>, <image> (128257) and <pad> (128258).
    Raises MissingPackage, FileMissing, FileUnreadable.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    ranks = _read_ranks(Path(ranks_file) if ranks_file is not None else _installed_ranks_file())
    letters = _byte_letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    tokenizer = Tokenizer(
        models.BPE(
            vocab={spelled[token]: rank for token, rank in ranks.items()},
            merges=[(spelled[left], spelled[right]) for left, right in _merges(ranks)],
            ignore_merges=True,  # a word that is a token as a whole is taken as it is, as in the published tokenizer
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = [*_control_names(), *_LLAVA_TOKENS]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{names[0]} $A", special_tokens=[(names[0], len(ranks))]
    )
    return tokenizer


def _control_names() -> list[str]:
    reserved = (f"<|reserved_special_token_{index}|>" for index in range(_NUM_CONTROL))
    return [_LLAMA3_CONTROL.get(offset) or next(reserved) for offset in range(_NUM_CONTROL)]


def _installed_ranks_file() -> Path:
    spec = importlib.util.find_spec(LLAMA3_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage(
            "building the Llama-3 tokenizer needs its vocabulary, which the package llama-models carries. Install it "
            f"with: pip install llama-models. Or put the {TOKENIZER_FILE} of the language model beside its weights."
        )
    return Path(next(iter(spec.submodule_search_locations))) / LLAMA3_RANKS


def _read_ranks(file: Path) -> dict[bytes, int]:
    """Token bytes to rank, from lines of `base64 rank`, in rising rank."""
    if not file.is_file():
        raise FileMissing(
            f"no Llama-3 vocabulary at {file}. Name the llama3/tokenizer.model of the package llama-models."
        )
    try:
        pairs = (line.split() for line in file.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error) as error:
        raise FileUnreadable(
            f"{file} is not a table of token ranks (lines of base64 and a number): {error}. "
            "The file wanted is llama3/tokenizer.model of the package llama-models."
        ) from error
    if list(ranks.values()) != list(range(len(ranks))) or len(ranks) < 256:
        raise FileUnreadable(
            f"{file} holds {len(ranks)} token ranks that do not count up from 0. It is damaged or another kind of file."
        )
    return ranks


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
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
