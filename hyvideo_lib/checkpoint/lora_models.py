"""Which model a LoRA is for: what its header states, whose module names it has, and how wide its layers are.

The table is the recogniser's and the loader's. Two kinds of rows: models whose layers HunyuanVideo does not have, so
that a LoRA for them is refused, and models with the same layers, whose LoRAs load and get a note. Facts: what
musubi-tuner, sd-scripts, SimpleTuner, OneTrainer, ai-toolkit and diffusers write into headers, and the models' sources.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

STATED = ("modelspec.architecture", "ss_base_model_version", "ss_network_module", "modelspec.implementation")
"""Entries in which trainers state the model."""
NAMED = ("ss_sd_model_name", "base_model_name_or_path", "modelspec.title", "ss_output_name")
"""Entries that hold names which people gave: of the file that was trained on, or of the LoRA. They are hints."""
PEFT_ENTRY = "lora_adapter_metadata"
MAX_ENTRY = 1000  # characters of an entry that are looked at; a model's name has under 100
MAX_PEFT = 1_000_000  # characters of PEFT's entry, which lists patterns for layers


@dataclass(frozen=True)
class LoraModel:
    """A model that LoRAs are made for, and how those are told.

    stated: the beginning of what trainers call it, in lower case, with dashes for dots, blanks and underscores.
    modules: module names that only it has, dots or underscores between the words. width: of its layers, where that
    tells. note: what to say of a LoRA that loads all the same; without one it is refused.
    """

    variant: str
    title: str
    stated: str = ""
    modules: str = ""
    width: int = 0
    note: str = ""


@dataclass(frozen=True)
class Told:
    """A model, and by what a LoRA is told to be for it, in words."""

    model: LoraModel
    by: str

    @property
    def refusal(self) -> str:
        """Why the LoRA cannot be used, and what to use; empty if it can."""
        if self.model.note:
            return ""
        return f"This LoRA is for another model, {self.model.title}: {self.by}. Use one for HunyuanVideo (13B)."

    @property
    def note(self) -> str:
        """What to say of a LoRA that can be used; empty if it cannot."""
        return f"{self.model.note} ({self.by[0].upper()}{self.by[1:]}.)" if self.model.note else ""


_SAME_LAYERS = "whose layers have the names and sizes of HunyuanVideo's: it loads and acts, but less truly than there."
FRAMEPACK = LoraModel(
    "framepack",
    "FramePack",
    r"frame-?pack",
    r"^clean_x_embedder[._]|^image_projection[._](?:up|down)$",
    note=f"It was trained on FramePack, {_SAME_LAYERS}",
)
I2V = LoraModel(
    "i2v",
    "HunyuanVideo I2V",
    r"(?:hunyuan-?video|hunyuan|hv|hyvid)-(?:i2v|image-to-video)",
    note=f"It was trained on an image-to-video form of HunyuanVideo, {_SAME_LAYERS}",
)
FLUX = LoraModel("flux", "Flux", r"flux")
MORE_BLOCKS = LoraModel(
    "other",
    "one with more blocks than HunyuanVideo's 20 and 40",
    modules=r"(?:double_blocks|^transformer_blocks)[._](?:[2-9]\d|\d{3,})[._]"
    r"|single_(?:transformer_)?blocks[._](?:[4-9]\d|\d{3,})[._]",
)
LORA_MODELS = (
    LoraModel(
        "hunyuanvideo-1.5",
        "HunyuanVideo 1.5",
        r"(?:hunyuan-?video|hv)-?1-?5\b",
        r"double_blocks[._]\d+[._](?:img|txt)_attn_[qkv](?![a-z]|[._]norm)|^byt5_in|^vision_in|^cond_type_embed"
        r"|^context_embedder_2|^image_embedder[._]",
        width=2048,
    ),
    LoraModel("hunyuanimage-2.1", "HunyuanImage 2.1", r"hunyuan-?image(?!-?3)", width=3584),
    LoraModel("hunyuanimage-3", "HunyuanImage 3", r"hunyuan-?image-?3", r"[._]mlp[._]shared_mlp[._]|[._]gate[._]wg$"),
    LoraModel(
        "hunyuandit",
        "HunyuanDiT",
        r"hunyuan-?dit|hydit",
        r"blocks[._]\d+[._]attn1[._]Wqkv|blocks[._]\d+[._]attn2[._]kv_proj",
    ),
    FRAMEPACK,
    I2V,
    FLUX,
    LoraModel(
        "opensora-2", "Open-Sora 2", r"open-?sora", r"_attn[._][qkv]_proj$|single_blocks[._]\d+[._]v_mlp$|^cond_in$"
    ),
    LoraModel(
        "kandinsky-5", "Kandinsky 5", r"kandinsky-?5", r"(?:^|[._])(?:visual|text)_transformer_blocks[._]\d+[._]"
    ),
    LoraModel(
        "minimax-h3",
        "MiniMax H3",
        r"minimax-?h3",
        r"^blocks[._]\d+[._](?:attn[._](?:qkv_proj|out_proj)|adaln_proj[._])|transformer_blocks[._]\d+[._]adaln_proj[._]",
        width=5376,
    ),
    LoraModel(
        "mochi",
        "Mochi",
        r"mochi",
        r"^blocks[._]\d+[._]attn[._](?:qkv|proj)_[xy]$|transformer_blocks[._]\d+[._]attn1[._]add_[qkv]_proj",
    ),
    LoraModel("wan", "Wan", r"wan", r"^blocks[._]\d+[._](?:self_attn|cross_attn|attn[12])[._]"),
    LoraModel("qwen-image", "Qwen-Image", r"qwen", r"^transformer_blocks[._]\d+[._](?:img|txt)_m(?:lp|od)[._]"),
    LoraModel("cogvideox", "CogVideoX", r"cogvideo", r"attention[._]query_key_value$"),
    LoraModel("ltx", "LTX-Video", r"ltx", r"^transformer_blocks[._]\d+[._](?:audio_)?attn2[._]"),
    LoraModel("sdxl", "Stable Diffusion XL", r"sd-?xl|stable-diffusion-xl"),
    LoraModel("sd3", "Stable Diffusion 3", r"sd-?3|stable-diffusion-(?:v?3)", r"^joint_blocks[._]"),
    LoraModel(
        "stable-diffusion",
        "Stable Diffusion",
        r"sd-?v?[12]|stable-(?:diffusion|cascade)",
        r"(?:^|[._])(?:down|up)_blocks[._]|(?:^|[._])mid_block[._]|^(?:input|output|middle)_blocks?[._]",
    ),
    LoraModel(
        "video-dit",
        "CogVideoX, LTX-Video or Mochi",
        modules=r"^transformer_blocks[._]\d+[._]attn1[._]",
    ),
    *(
        LoraModel(name, title, stated)
        for name, title, stated in (
            ("chroma", "Chroma", r"chroma"),
            ("lumina-2", "Lumina 2", r"lumina"),
            ("hidream", "HiDream", r"hidream"),
            ("z-image", "Z-Image", r"z-?image"),
            ("krea-2", "Krea 2", r"krea"),
            ("pixart", "PixArt", r"pixart"),
            ("sana", "Sana", r"sana"),
            ("omnigen-2", "OmniGen 2", r"omnigen"),
            ("cosmos", "Cosmos", r"cosmos"),
            ("anima", "Anima", r"anima"),
            ("skyreels-v2", "SkyReels V2, which is made of Wan", r"sky-?reels-?v?[23]"),
        )
    ),
    MORE_BLOCKS,
)
"""The first row that fits counts."""

_FLUX_BLOCKS = (19, 38)  # double and single, all of them; HunyuanVideo has 20 and 40
_BLOCK = re.compile(r"(double_blocks|single_blocks|single_transformer_blocks|transformer_blocks)[._](\d{1,4})[._]")


def lora_model(metadata: Mapping[str, str], modules: Collection[str], widths: Collection[int] = ()) -> Told | None:
    """The model that a LoRA is for; None for one that shows nothing but HunyuanVideo.

    modules: names of its modules, without a prefix, dots or underscores between the words. widths: of the layers that
    HunyuanVideo has too. Whatever tells of a model with other layers decides; names that people gave come last.
    """
    looks = (_stated(metadata), _by_modules(modules), _by_widths(widths), _as_flux(modules))
    found = [told for told in looks if told]
    refused = [told for told in found if told.refusal and told.model is not MORE_BLOCKS]
    return next(iter([*refused, *found]), None) or _named(metadata)


def _stated(metadata: Mapping[str, str]) -> Told | None:
    for entry, value in _values(metadata, STATED):
        for model in LORA_MODELS:
            if model.stated and re.match(model.stated, value):
                return Told(model, f"its header says {metadata[entry][:80]!r} ({entry})")
    return None


def _by_modules(modules: Collection[str]) -> Told | None:
    for model in LORA_MODELS:
        found = next((module for module in modules if model.modules and re.search(model.modules, module)), None)
        if found:
            return Told(model, f"it changes {found[:80]}")
    return None


def _by_widths(widths: Collection[int]) -> Told | None:
    for model in LORA_MODELS:
        if model.width and model.width in widths:
            return Told(model, f"its layers are {model.width} wide")
    return None


def _as_flux(modules: Iterable[str]) -> Told | None:
    """Flux, if all of its blocks are changed and no other. They have the names and sizes of HunyuanVideo's."""
    found: dict[bool, set[int]] = {False: set(), True: set()}
    for module in modules:
        if hit := _BLOCK.match(module):
            found[hit[1].startswith("single")].add(int(hit[2]))
    is_flux = (found[False], found[True]) == tuple(set(range(count)) for count in _FLUX_BLOCKS)
    return Told(FLUX, "it changes all of its 19 double and 38 single blocks, no more") if is_flux else None


def _named(metadata: Mapping[str, str]) -> Told | None:
    """A model with our layers that a name in the header hints at. Another's name proves nothing."""
    for entry, value in _values(metadata, NAMED):
        for model, words in ((FRAMEPACK, r"frame-?pack"), (I2V, r"\bi2v\b|image-?(?:to|2)-?video")):
            if re.search(words, value):
                return Told(model, f"a name in its header says so ({entry})")
    return None


def _values(metadata: Mapping[str, str], entries: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each entry that is there, in the spelling of the table."""
    for entry in entries:
        text = metadata.get(entry, "") or (_in_peft(metadata, entry) if entry in NAMED else "")
        value = re.sub(r"[\s._]+", "-", text[:MAX_ENTRY].strip().lower().rstrip("/"))
        if entry == "modelspec.implementation":  # an address
            value = value.rpartition("/")[2]
        if value:
            yield entry, value.removeprefix("networks-").removeprefix("lora-")


def _in_peft(metadata: Mapping[str, str], entry: str) -> str:
    """An entry of PEFT's configuration inside the header, with or without a component's name before it."""
    text = metadata.get(PEFT_ENTRY, "")
    if entry not in text or len(text) > MAX_PEFT:
        return ""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    values = [value for key, value in table.items() if key.endswith(entry)] if isinstance(table, dict) else []
    return next((value for value in values if isinstance(value, str)), "")
