"""Image prompts: which rows of the multimodal language model's states the transformer reads.

The tokenizer sees one `<image>` token, the model `image_len` rows in its place, so after the image every row stands
`image_len - 1` further on than its id. The rows kept are the image's, thinned out, and then the prompt's; the four rows
that close the prompt and open the assistant's turn are dropped, its last line break is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidTemplate

_CLOSING_ROWS = 4  # <|eot_id|>, <|start_header_id|>, assistant, <|end_header_id|>
_LINE_BREAKS = 4  # after system header, system text, user header and assistant header
_MAX_INTERLEAVE = 6


def crop_image_text(
    hidden_states: Tensor,
    input_ids: Tensor,
    mask: Tensor,
    *,
    crop_start: int,
    image_start: int,
    image_end: int,
    image_len: int,
    double_return_id: int,
    interleave: int,
) -> tuple[Tensor, Tensor]:
    """Image rows, then prompt rows [B, K, D], and their mask [B, K].

    hidden_states: [B, L - 1 + image_len, D]. input_ids, mask: [B, L], one id for the image. crop_start: first id of the
    prompt. image_start, image_end: rows of the image. double_return_id: the token of an empty line, which the template
    holds four times. interleave: every which image row is kept; outside 1..5 all are.
    Raises InvalidTemplate if the empty lines are not there.
    """
    shift = image_len - 1
    texts, text_masks = [], []
    for states, ids, valid in zip(hidden_states, input_ids, mask, strict=True):
        tail = _assistant_line_break(ids, double_return_id)
        texts.append(torch.cat([states[crop_start + shift : tail + shift - _CLOSING_ROWS], states[tail + shift :]]))
        text_masks.append(torch.cat([valid[crop_start : tail - _CLOSING_ROWS], valid[tail:]]))
    image = hidden_states[:, image_start:image_end]
    if 0 < interleave < _MAX_INTERLEAVE:
        image = image[:, ::interleave]
    image_mask = mask.new_ones(image.shape[:2])
    return torch.cat([image, torch.stack(texts)], dim=1), torch.cat([image_mask, torch.stack(text_masks)], dim=1)


def _assistant_line_break(ids: Tensor, double_return_id: int) -> int:
    """Position of the last empty line; of the end where a prompt cut short has lost it (the reference's rule)."""
    positions = (ids == double_return_id).nonzero().flatten().tolist()
    if len(positions) < _LINE_BREAKS - 1:
        raise InvalidTemplate(
            f"the prompt holds {len(positions)} empty-line tokens (id {double_return_id}), but the image template has "
            f"{_LINE_BREAKS}. Use the image-to-video template and a tokenizer that keeps an empty line as one token."
        )
    return len(ids) if len(positions) == _LINE_BREAKS - 1 else int(positions[-1])
