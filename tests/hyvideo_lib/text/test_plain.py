from __future__ import annotations

import codecs
import unicodedata

import pytest

from hyvideo_lib.errors import InvalidSetting, InvalidTemplate, PromptFile
from hyvideo_lib.text import plain_text
from hyvideo_lib.text.plain import decode_text

WORDS = "a red circle\nein grüner Würfel\n日本の丘 🎥\n"
MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


def refused(text: str) -> bool:
    try:
        plain_text(f"a {text} b", "The prompt")
    except InvalidSetting:
        return True
    return False


def test_of_all_characters_those_are_refused_that_only_a_wrong_decoding_makes():
    every = [chr(code) for code in range(0x110000)]
    wanted = {c for c in every if unicodedata.category(c) in ("Cc", "Cs")} - {"\n", "\t", "\r"}
    wanted |= {chr(code) for code in range(0xFDD0, 0xFDF0)}
    wanted |= {chr(plane * 0x10000 + end) for plane in range(17) for end in (0xFFFE, 0xFFFF)}
    wanted.add("\ufffd")
    assert {c for c in every if refused(c)} == wanted


@pytest.mark.parametrize(
    "text", ["👩\u200d🚀 in space", "שלום\u200f!", "\u2066a\u2069", "soft\u00adhyphen", "❤\ufe0f", "a\tb\nc"]
)
def test_joiners_marks_of_direction_tabs_and_line_breaks_pass_untouched(text):
    assert plain_text(text, "The prompt") == text


def test_line_breaks_of_every_system_become_one_and_a_leading_mark_goes():
    assert plain_text("\ufeffone\r\ntwo\rthree\n", "The prompt") == "one\ntwo\nthree\n"


def test_the_message_says_which_character_where_and_what_to_do():
    with pytest.raises(InvalidSetting, match=r"^The negative prompt holds U\+0000 at character 3: .* Type it again\.$"):
        plain_text("ab\0", "The negative prompt")
    with pytest.raises(InvalidTemplate, match=r"U\+001B at character 2 of its line 3"):
        plain_text("one\r\ntwo\r\nx\x1b[0m", "The prompt template", InvalidTemplate)


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_the_byte_order_mark_decides_the_encoding(encoding, ends):
    data = MARKS[encoding] + WORDS.replace("\n", ends).encode(encoding)
    assert decode_text(data, "prompts.txt") == WORDS


def test_without_a_mark_a_file_is_utf_8():
    assert decode_text(WORDS.encode("utf-8"), "prompts.txt") == WORDS
    with pytest.raises(
        PromptFile, match=r"line 2, byte 7 of the line \(byte 20 of the file\) is 0xFC\. .*UTF-8.*Notepad"
    ):
        decode_text(WORDS[:30].encode("cp1252"), "prompts.txt")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_zero_bytes_tell_an_encoding_that_has_no_mark(encoding):
    with pytest.raises(PromptFile, match=f"it looks like {encoding[:6].upper()} without a byte order mark"):
        decode_text("two red circles\nand more\n".encode(encoding), "prompts.txt")


@pytest.mark.parametrize(
    "data",
    [
        codecs.BOM_UTF16_LE + b"a\0b",
        codecs.BOM_UTF16_LE + b"a\0\0\xd8b\0",
        codecs.BOM_UTF32_LE + b"\xff\xff\xff\xff",
        codecs.BOM_UTF8 + b"a\xff",
        b"cut \xe2\x82",
        b"\xed\xa0\x80",
    ],
    ids=["odd", "half a pair", "beyond", "marked", "cut", "surrogate"],
)
def test_bytes_that_break_their_encoding_are_refused(data):
    with pytest.raises(PromptFile, match="line 1, byte "):
        decode_text(data, "prompts.txt")


def test_files_joined_line_by_line_lose_their_inner_marks():
    assert decode_text(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n", "prompts.txt") == "one\ntwo\n"
