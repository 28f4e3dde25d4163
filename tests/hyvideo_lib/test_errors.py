"""The error tree: codes and exit codes are a contract with scripts, so the table stands here a second time."""

from __future__ import annotations

import inspect
import re

import pytest

from hyvideo_lib import errors

TREE = {
    "HyvError": (None, "error", 1),
    "BadInput": ("HyvError", "bad_input", 2),
    "InvalidSize": ("BadInput", "invalid_size", 2),
    "InvalidFrames": ("BadInput", "invalid_frames", 2),
    "InvalidSteps": ("BadInput", "invalid_steps", 2),
    "InvalidGuidance": ("BadInput", "invalid_guidance", 2),
    "InvalidSeed": ("BadInput", "invalid_seed", 2),
    "InvalidSetting": ("BadInput", "invalid_setting", 2),
    "InvalidTiles": ("BadInput", "invalid_tiles", 2),
    "EmptyPrompt": ("BadInput", "empty_prompt", 2),
    "InvalidTemplate": ("BadInput", "invalid_template", 2),
    "PromptFile": ("BadInput", "prompt_file", 2),
    "FileMissing": ("BadInput", "file_missing", 2),
    "FileTruncated": ("BadInput", "file_truncated", 2),
    "FileUnreadable": ("BadInput", "file_unreadable", 2),
    "WrongKind": ("BadInput", "wrong_kind", 2),
    "UnsupportedFile": ("BadInput", "unsupported_file", 2),
    "MissingPackage": ("BadInput", "missing_package", 2),
    "OutputExists": ("BadInput", "output_exists", 2),
    "OutputNotWritable": ("BadInput", "output_not_writable", 2),
    "Interrupted": ("HyvError", "interrupted", 3),
    "OutOfMemory": ("HyvError", "out_of_memory", 4),
    "RunFailed": ("HyvError", "run_failed", 1),
    "DiskFull": ("RunFailed", "disk_full", 1),
    "NonFiniteOutput": ("RunFailed", "non_finite", 1),
}
CLASSES = dict(inspect.getmembers(errors, inspect.isclass))


@pytest.mark.parametrize(("name", "parent", "code", "exit_code"), [(name, *row) for name, row in TREE.items()])
def test_every_error_keeps_its_parent_code_and_exit_code(
    name: str, parent: str | None, code: str, exit_code: int
) -> None:
    error = CLASSES[name]
    assert error.__base__.__name__ == (parent or "Exception")
    assert (error.code, error.exit_code) == (code, exit_code)


def test_no_error_is_missing_from_the_table() -> None:
    assert set(CLASSES) == set(TREE)


def test_the_drawn_tree_shows_every_class_under_its_parent() -> None:
    drawn, path = {}, []
    for indent, name, code in re.findall(r"^    ([ │├└─]*)(\w+) +([a-z_]+)\b", errors.__doc__, re.MULTILINE):
        path = [*path[: len(indent) // 4], name]
        drawn[name] = (path[-2] if len(path) > 1 else None, code)
    assert drawn == {name: (parent, code) for name, (parent, code, _) in TREE.items()}


def test_an_error_is_caught_by_its_base_and_carries_its_message() -> None:
    with pytest.raises(errors.BadInput, match="frames is 4") as caught:
        raise errors.InvalidFrames("frames is 4, but must be 4k + 1.")
    assert caught.value.code == "invalid_frames"
