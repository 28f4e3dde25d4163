"""How the tensors of LoRA files end: the method that wrote a tensor, and the role that it has in it.

Facts: the key lists of trainers and of public files. A name is taken apart into the module before the end, the role,
and the adapter's name where PEFT has put one between.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

ALPHA, DIFF, BIAS_DIFF = "alpha", "diff", "diff_b"
DOWN, MID, UP, UP_BIAS = "down", "mid", "up", "up_bias"
MAGNITUDE, RESCALE, OFT_BLOCKS, OFT_R, OFT_SCALED = "magnitude", "rescale", "oft_blocks", "oft_r", "oft_scaled"
HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
HADA_CORES = ("hada_t1", "hada_t2")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")

_ADAPTER = r"(?:\.((?!weight$|bias$)[^.]+))?"
"""The name that PEFT gives an adapter, as in `lora_A.default.weight`."""
_ENDS: tuple[tuple[str, str], ...] = (
    (rf"\.lora_A{_ADAPTER}(?:\.weight)?", DOWN),
    (rf"\.lora_B{_ADAPTER}(?:\.weight)?", UP),
    (rf"\.lora_B{_ADAPTER}\.bias", UP_BIAS),
    (rf"\.lora_down{_ADAPTER}\.weight", DOWN),
    (rf"\.lora_up{_ADAPTER}\.weight", UP),
    (rf"\.lora_up{_ADAPTER}\.bias", UP_BIAS),
    (r"(?:_lora|\.lora|\.lora_linear_layer)\.down\.weight", DOWN),
    (r"(?:_lora|\.lora|\.lora_linear_layer)\.up\.weight", UP),
    (r"\.lora_mid\.weight", MID),
    (r"\.alpha", ALPHA),
    (r"\.diff", DIFF),
    (r"\.diff_b", BIAS_DIFF),
    (r"\.w_norm", DIFF),
    (r"\.b_norm", BIAS_DIFF),
    (r"\.dora_scale", MAGNITUDE),
    (rf"\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?", MAGNITUDE),
    (r"\.oft_blocks", OFT_BLOCKS),
    (r"\.rescale", RESCALE),
    (r"\.oft_R\.scaled_oft", OFT_SCALED),
    (rf"\.oft_R{_ADAPTER}(?:\.weight)?", OFT_R),
    *((rf"\.{part}", part) for part in (*HADA, *HADA_CORES, *LOKR)),
)
_END = re.compile("|".join(f"(?P<end{place}>{end})" for place, (end, _) in enumerate(_ENDS)))
_BEGINNING = re.compile(r"(?<!\A)(?:\.|_lora\.)")
_LONGEST_END = 200
"""Characters from the end of a name on that are looked at; adapters have short names."""

METHODS = {
    **dict.fromkeys((DOWN, UP), "LoRA"),
    MID: "LoRA with a Tucker core",
    **dict.fromkeys(HADA, "LoHa"),
    **dict.fromkeys(HADA_CORES, "LoHa with Tucker cores"),
    **dict.fromkeys(LOKR[:-1], "LoKr"),
    LOKR[-1]: "LoKr with a Tucker core",
    **dict.fromkeys((OFT_BLOCKS, OFT_R), "OFT"),
    **dict.fromkeys((DIFF, BIAS_DIFF), "whole differences"),
    MAGNITUDE: "DoRA",
}
"""The method that a role tells of; a file may hold several."""

_REFUSED = {
    "on_input": "(IA)3",
    "set_weight": "replacement weights",
    "reshape_weight": "LoRA that widens layers",
    "oft_diag": "COFT in an old form",
    "oft_r": "OFT in an old form",
    "oft_s": "OFT in an old form",
    "scalar": "LyCORIS with a scalar that was not multiplied in",
    **dict.fromkeys(("a1", "a2", "b1", "b2"), "GLoRA"),
    **dict.fromkeys(("boft_R", "boft_s"), "BOFT"),
    **dict.fromkeys(("vera_lambda_b", "vera_lambda_d"), "VeRA"),
    **dict.fromkeys(("lora_embedding_A", "lora_embedding_B"), "LoRA on embeddings"),
    **dict.fromkeys(("lora_ia3", "ia3_l"), "(IA)3"),
    "hra_u": "HRA",
    "randlora_lambda": "RandLoRA",
}
_REFUSED_END = re.compile(rf"\.(?P<word>{'|'.join(map(re.escape, _REFUSED))})(?:\.(?!weight$)[^.]+)?(?:\.weight)?")


@dataclass(frozen=True)
class Split:
    """A tensor's name taken apart. adapter: PEFT's name for what it belongs to; empty without one."""

    stem: str
    role: str
    adapter: str = ""


def split_name(name: str) -> Split | None:
    """What stands before the end of a LoRA tensor's name, and its role; None if its name ends otherwise."""
    beginnings = _BEGINNING.finditer(name, max(1, len(name) - _LONGEST_END))
    hit = next((hit for at in beginnings if (hit := _END.fullmatch(name, at.start()))), None)
    if hit is None or hit.lastgroup is None:
        return None
    end, role = _ENDS[int(hit.lastgroup.removeprefix("end"))]
    adapter = hit[_END.groupindex[hit.lastgroup] + 1] if _ADAPTER in end else None
    return Split(name[: hit.start()], role, adapter or "")


def refused_method(name: str) -> str | None:
    """The method that a tensor belongs to, if it is one that is not applied here."""
    hit = _REFUSED_END.search(name)
    return _REFUSED[hit["word"]] if hit and hit.end() == len(name) else None


def method_names(roles: Iterable[str]) -> tuple[str, ...]:
    """The methods that roles tell of, in the order of the table."""
    found = set(roles)
    return tuple(dict.fromkeys(method for role, method in METHODS.items() if role in found))
