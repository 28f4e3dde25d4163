"""Prompt templates: the words around a prompt that tell the language model what to attend to.

The texts of "video" and "image" are Tencent's, character for character: the transformer was trained on the states they
produce, down to the missing spaces between the numbered items. How many tokens stand before the prompt is counted by
the tokenizer (`tokens`), so a template is its text and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidTemplate
from .plain import plain_text

SLOT = "{}"

_VIDEO_TEXT = (
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Describe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)

_IMAGE_TEXT = (
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Describe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)


@dataclass(frozen=True)
class PromptTemplate:
    """The text around a prompt.

    text: holds `{}` exactly once, where the prompt goes; other braces are ordinary characters.
    cut_like: the template whose opening counts towards the length limit, where that is not this one.
    Line breaks become \\n. Raises InvalidTemplate.
    """

    text: str
    cut_like: PromptTemplate | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", plain_text(self.text, "The prompt template", InvalidTemplate))
        slots = self.text.count(SLOT)
        if slots != 1:
            raise InvalidTemplate(
                f"the prompt template holds {slots} places for the prompt, but must hold exactly one. "
                f"Write {SLOT} once, where the prompt belongs. The template is: {self.text!r}"
            )

    def __repr__(self) -> str:
        return f"PromptTemplate({len(self.text)} characters)"

    @property
    def prefix(self) -> str:
        """What stands before the prompt; its token states are cut off."""
        return self.text.partition(SLOT)[0]

    @property
    def suffix(self) -> str:
        """What stands after the prompt; its token states are kept."""
        return self.text.partition(SLOT)[2]

    def fill(self, prompt: str) -> str:
        """The text the tokenizer sees. Whitespace around the prompt is dropped, as in the reference."""
        return self.prefix + prompt.strip() + self.suffix


_VIDEO = PromptTemplate(_VIDEO_TEXT)

TEMPLATES: dict[str, PromptTemplate] = {
    "video": _VIDEO,
    # The reference limits both by the video template's opening, so an image prompt may be longer.
    "image": PromptTemplate(_IMAGE_TEXT, cut_like=_VIDEO),
    "none": PromptTemplate(SLOT),
}
