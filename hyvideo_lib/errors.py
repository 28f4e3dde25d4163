"""Every error a user can meet, as one tree with stable codes.

    HyvError                    error
    ├── BadInput                bad_input             exit 2: the request was wrong, nothing was started
    │   ├── InvalidSize         invalid_size          width, height
    │   ├── InvalidFrames       invalid_frames
    │   ├── InvalidSteps        invalid_steps
    │   ├── InvalidGuidance     invalid_guidance      cfg scale, embedded guidance, its start and end, rescale
    │   ├── InvalidSeed         invalid_seed
    │   ├── InvalidSetting      invalid_setting       any other option outside its range
    │   ├── InvalidTiles        invalid_tiles
    │   ├── EmptyPrompt         empty_prompt
    │   ├── InvalidTemplate     invalid_template
    │   ├── PromptFile          prompt_file           a file of prompts that cannot be read
    │   ├── FileMissing         file_missing
    │   ├── FileTruncated       file_truncated
    │   ├── FileUnreadable      file_unreadable       not a file of the expected format
    │   ├── WrongKind           wrong_kind            a readable file of another kind (a VAE given as transformer)
    │   ├── UnsupportedFile     unsupported_file      recognised, but not usable here
    │   ├── MissingPackage      missing_package
    │   ├── OutputExists        output_exists
    │   └── OutputNotWritable   output_not_writable
    ├── Interrupted             interrupted           exit 3
    ├── OutOfMemory             out_of_memory         exit 4
    └── RunFailed               run_failed            exit 1: something broke while running
        ├── DiskFull            disk_full
        └── NonFiniteOutput     non_finite            the black video: NaN or infinity in latents or pixels

A message says what was wrong with its value, what is accepted, and what to do. Codes and exit codes are for scripts and
never change meaning.
"""

from __future__ import annotations


class HyvError(Exception):
    """Base of all errors raised on purpose. `code` is stable; `exit_code` is the command line's."""

    code = "error"
    exit_code = 1


class BadInput(HyvError):  # noqa: N818 (the name is the sentence)
    code = "bad_input"
    exit_code = 2


class InvalidSize(BadInput):
    code = "invalid_size"


class InvalidFrames(BadInput):
    code = "invalid_frames"


class InvalidSteps(BadInput):
    code = "invalid_steps"


class InvalidGuidance(BadInput):
    code = "invalid_guidance"


class InvalidSeed(BadInput):
    code = "invalid_seed"


class InvalidSetting(BadInput):
    code = "invalid_setting"


class InvalidTiles(BadInput):
    code = "invalid_tiles"


class EmptyPrompt(BadInput):
    code = "empty_prompt"


class InvalidTemplate(BadInput):
    code = "invalid_template"


class PromptFile(BadInput):
    code = "prompt_file"


class FileMissing(BadInput):
    code = "file_missing"


class FileTruncated(BadInput):
    code = "file_truncated"


class FileUnreadable(BadInput):
    code = "file_unreadable"


class WrongKind(BadInput):
    code = "wrong_kind"


class UnsupportedFile(BadInput):
    code = "unsupported_file"


class MissingPackage(BadInput):
    code = "missing_package"


class OutputExists(BadInput):
    code = "output_exists"


class OutputNotWritable(BadInput):
    code = "output_not_writable"


class Interrupted(HyvError):  # noqa: N818 (the name is the sentence)
    code = "interrupted"
    exit_code = 3


class OutOfMemory(HyvError):  # noqa: N818 (the name is the sentence)
    code = "out_of_memory"
    exit_code = 4


class RunFailed(HyvError):  # noqa: N818 (the name is the sentence)
    code = "run_failed"


class DiskFull(RunFailed):
    code = "disk_full"


class NonFiniteOutput(RunFailed):
    code = "non_finite"
