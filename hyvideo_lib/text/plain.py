"""Text that is what it seems: bytes read in their true encoding, and no character that only a wrong decoding makes.

Every prompt, negative prompt and template goes through `plain_text`, wherever it came from; files of them go through
`decode_text` first. Characters of category Cf pass, as joiners in emoji and marks of direction are part of a text.
"""

from __future__ import annotations

import codecs
import re
import unicodedata

from ..errors import BadInput, InvalidSetting, PromptFile

BOM = "\ufeff"
_BOMS = (  # UTF-32 first: UTF-16's little-endian mark begins its own
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SUSPECT = re.compile("[^\t\n -~\xa0-\u200d\u2010-\ud7ff\ue000-\ufdcf\ufdf0-\ufffc]")
"""A superset of what is refused, so that a long text is looked at once."""
SAVE = (
    "Nothing of the file was used. Save it as UTF-8: in Notepad by Save as, Encoding UTF-8; in PowerShell by "
    "`| Out-File -Encoding utf8` in place of `>`."
)


def plain_text(text: str, what: str, error: type[BadInput] = InvalidSetting, advice: str = "Type it again.") -> str:
    """`text` with line breaks as \\n and without a leading byte order mark.

    what: where it came from, as the message begins. Raises `error` for control characters but line break and tab,
    surrogates, noncharacters and U+FFFD.
    """
    text = text.removeprefix(BOM).replace("\r\n", "\n").replace("\r", "\n")
    for match in _SUSPECT.finditer(text):
        reason = _reason(match[0])
        if reason:
            line, column = text.count("\n", 0, match.start()) + 1, match.start() - text.rfind("\n", 0, match.start())
            place = f"character {column}" + (f" of its line {line}" if "\n" in text else "")
            raise error(
                f"{what} holds U+{ord(match[0]):04X} at {place}: {reason}. Text is accepted, with line breaks and "
                f"tabs. {advice}"
            )
    return text


def _reason(character: str) -> str | None:
    """Why a character is refused; None for one that is not."""
    code, category = ord(character), unicodedata.category(character)
    if category == "Cc":
        return "a control character, which text in another encoding or a program's raw output leaves"
    if category == "Cs":
        return "half of a character, which bytes that are not UTF-8 become"
    if 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE:
        return "no character at all, so the text was read in a wrong encoding"
    if code == 0xFFFD:
        return "the sign for a character that could not be read, so the text is damaged"
    return None


def decode_text(data: bytes, what: str) -> str:
    """The text of a file: its byte order mark decides the encoding, without one it is UTF-8.

    Line breaks become \\n; the marks of files that were joined line by line are dropped. Raises PromptFile.
    """
    mark, encoding = next(((mark, name) for mark, name in _BOMS if data.startswith(mark)), (b"", "utf-8"))
    body = data[len(mark) :]
    if encoding == "utf-8" and (guess := _zeros_tell(body)):
        raise PromptFile(
            f"{what} is not UTF-8 text: it looks like {guess} without a byte order mark ({body.count(0)} of its "
            f"{len(body)} bytes are zero). {SAVE}"
        )
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        raise PromptFile(_undecodable(what, body, mark, encoding, error)) from error
    return text.replace("\r\n", "\n").replace("\r", "\n").replace(f"\n{BOM}", "\n")


def _undecodable(what: str, body: bytes, mark: bytes, encoding: str, error: UnicodeDecodeError) -> str:
    before = body[: error.start].decode(encoding, "replace").replace("\r\n", "\n").replace("\r", "\n")
    line, number = before.rpartition("\n")[2], before.count("\n") + 1
    found = " ".join(f"0x{byte:02X}" for byte in body[error.start : max(error.end, error.start + 1)][:4])
    why = f", as its byte order mark says it is {encoding.upper()}" if mark and encoding != "utf-8" else ""
    at = len(line.encode(encoding)) + 1
    return (
        f"{what} is not {encoding.upper()} text{why}: line {number}, byte {at} of the line (byte "
        f"{error.start + len(mark) + 1} of the file) is {found or 'missing'}. {SAVE}"
    )


def _zeros_tell(data: bytes) -> str | None:
    """The encoding that zero bytes speak of: in one of four places, or of two, most are zero. None without such."""
    if not data.count(0):
        return None
    lanes = [data[start::4] for start in range(4)]
    zeros = [lane.count(0) / len(lane) > 0.25 if lane else False for lane in lanes]
    if sum(zeros) >= 3:
        return "UTF-32"
    if zeros[0] == zeros[2] and zeros[1] == zeros[3] and any(zeros):
        return "UTF-16"
    return None
