"""Text: prompts, templates, and encoded prompts as files."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..hyvideo_lib.errors import FileMissing, InvalidSetting, UnsupportedFile
from ..hyvideo_lib.text import TEMPLATES, PromptTemplate, plain_text
from . import comfy_host
from .node import CATEGORY, NOT_LINKED, check_inputs, names_its_errors, reported
from .sockets import HYV_EMBEDS, HYV_TEMPLATE, HYV_TEXT, Embeds, TextHandle

if TYPE_CHECKING:
    from ..hyvideo_lib.text import TextEmbeds

CUSTOM = "custom"
DEFAULT_PROMPT = "a red circle moving left on a black background"
MAX_CACHED = 64
"""Encoded prompts kept with the encoders; each is a few MB at most."""
EMBEDS_SUFFIX = ".embeds.safetensors"


class PromptTemplateNode(io.ComfyNode):
    """HyvPromptTemplate."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvPromptTemplate",
            display_name="HunyuanVideo Prompt Template",
            category=f"{CATEGORY}/text",
            description="A text of your own around the prompt, which tells the language model what to look at.",
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    default=TEMPLATES["video"].text,
                    tooltip="Must hold {} once, where the prompt goes. What stands before it steers the language "
                    "model and is cut off after encoding; how much that is gets counted, so no number is needed.",
                ),
                HYV_TEXT.Input(
                    "text_encoders",
                    optional=True,
                    tooltip="Only to show how many tokens are cut off; the template is the same without.",
                ),
            ],
            outputs=[HYV_TEMPLATE.Output("template", display_name="template", tooltip="For Encode Prompt: custom.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, text: str) -> bool | str:
        return check_inputs(cls, {"text": text}, lambda: PromptTemplate(text))

    @classmethod
    @names_its_errors
    def execute(cls, text: str, text_encoders: TextHandle | None = None) -> io.NodeOutput:
        from ..hyvideo_lib.text.tokens import opening_ids

        template = PromptTemplate(text)
        if text_encoders is None:
            shown = "connect the text encoders to see the crop"
        else:
            crop = len(opening_ids(text_encoders.llm.tokenizer, template))
            shown = f"the first {crop} tokens are cut off after encoding"
        comfy_host.show_text(cls.hidden.unique_id, shown)
        return io.NodeOutput(template, ui={"text": (shown,)})


class EncodePrompt(io.ComfyNode):
    """HyvEncodePrompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvEncodePrompt",
            display_name="HunyuanVideo Encode Prompt",
            category=f"{CATEGORY}/text",
            description="Turns a prompt and its negative into what the transformer reads.",
            inputs=[
                HYV_TEXT.Input("text_encoders", tooltip="From Load Text Encoders."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default=DEFAULT_PROMPT,
                    tooltip="What the video shows: subject, action, place, light, camera. Up to 256 tokens; what is "
                    "longer is cut, and the node says how much.",
                ),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What to stay away from. It acts only with a CFG scale above 1 (the Guidance node); it "
                    "costs one more encoding.",
                ),
                io.Combo.Input(
                    "template",
                    options=[*TEMPLATES, CUSTOM],
                    default="video",
                    tooltip="The words around the prompt that the model was trained with: video for videos, image for "
                    "a single frame. none sends the bare prompt, custom takes the template on the socket.",
                ),
                HYV_TEMPLATE.Input(
                    "custom_template", optional=True, tooltip="From Prompt Template; used when template is custom."
                ),
            ],
            outputs=[HYV_EMBEDS.Output("embeds", display_name="embeds", tooltip="For the sampler, or to be saved.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls,
        prompt: str | None = DEFAULT_PROMPT,
        negative_prompt: str | None = "",
        template: str = "video",
        custom_template: Any = NOT_LINKED,
    ) -> bool | str:
        for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            checked = check_inputs(cls, {name: text}, partial(plain_text, text or "", name))
            if checked is not True:
                return checked
        return check_inputs(cls, {"template": template}, lambda: check_template(template, custom_template))

    @classmethod
    @names_its_errors
    def execute(
        cls,
        text_encoders: TextHandle,
        prompt: str,
        negative_prompt: str = "",
        template: str = "video",
        custom_template: PromptTemplate | None = None,
    ) -> io.NodeOutput:
        check_template(template, NOT_LINKED if custom_template is None else custom_template)
        prompt, negative_prompt = plain_text(prompt, "prompt"), plain_text(negative_prompt, "negative_prompt")
        words = custom_template if template == CUSTOM else TEMPLATES[template]
        assert words is not None
        host = comfy_host.ComfyHost(cls.hidden.unique_id, text_encoders.managed[0].load_device)
        offloaders = [managed.offloader for managed in text_encoders.managed]
        before = [offloader.traffic for offloader in offloaders]
        with reported(host, lambda: describe_prompt(positive)) as log:
            positive = encode_cached(text_encoders, prompt, words, host)
            negative = encode_cached(text_encoders, negative_prompt, words, host)
            moved = (offloader.traffic - since for offloader, since in zip(offloaders, before, strict=True))
            log.traffic = sum(moved, log.traffic)
            log.swapped_blocks = sum(offloader.num_swapped for offloader in offloaders)
        return io.NodeOutput(Embeds(positive, negative, template))


def check_template(template: str, custom: Any) -> None:
    """Raises InvalidSetting where a custom template is asked for and none is connected."""
    if template == CUSTOM and custom is NOT_LINKED:
        raise InvalidSetting("template is custom, but no Prompt Template is connected. Connect one, or choose video.")


def encode_cached(handle: TextHandle, prompt: str, template: PromptTemplate, host: comfy_host.ComfyHost) -> TextEmbeds:
    """One prompt, from the cache if the same words were encoded before with these encoders."""
    from ..hyvideo_lib.pipeline import TEXT_WORKING_BYTES, bringing_layers
    from ..hyvideo_lib.text import encode_prompt

    key = (prompt.strip(), template.text, template.cut_like.text if template.cut_like else "")
    if key in handle.cache:
        return handle.cache[key]
    host.stage("encoding text", 0)
    comfy_host.load(*handle.managed, working_bytes=TEXT_WORKING_BYTES)
    with bringing_layers([managed.offloader for managed in handle.managed], host.check_interrupt):
        embeds = encode_prompt(prompt, handle.llm, handle.clip, template, host=host).to("cpu")
    while len(handle.cache) >= MAX_CACHED:
        del handle.cache[next(iter(handle.cache))]
    handle.cache[key] = embeds
    return embeds


def describe_prompt(embeds: TextEmbeds) -> str:
    tokens = int(embeds.text_mask.sum())
    cut = sum(embeds.tokens_cut)
    return f"{tokens} tokens" + (f"; too long: the last {cut} are not used" if cut else "")


class EmbedsFromConditioning(io.ComfyNode):
    """HyvEmbedsFromConditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvEmbedsFromConditioning",
            display_name="HunyuanVideo Embeds From Conditioning",
            category=f"{CATEGORY}/text",
            description="Takes prompts that ComfyUI's own HunyuanVideo text encoders encoded (DualCLIPLoader, type "
            "hunyuan_video).",
            inputs=[
                io.Conditioning.Input("positive", tooltip="From a CLIP Text Encode node with HunyuanVideo's encoders."),
                io.Conditioning.Input("negative", optional=True, tooltip="Needed only for a CFG scale above 1."),
            ],
            outputs=[HYV_EMBEDS.Output("embeds", display_name="embeds", tooltip="For the sampler.")],
        )

    @classmethod
    @names_its_errors
    def execute(cls, positive: Any, negative: Any = None) -> io.NodeOutput:
        return io.NodeOutput(
            Embeds(
                embeds_from_conditioning(positive, "positive"),
                None if negative is None else embeds_from_conditioning(negative, "negative"),
                "native",
            )
        )


def embeds_from_conditioning(conditioning: Any, name: str) -> TextEmbeds:
    """Embeds of ComfyUI's conditioning: a list of [states [B, L, D], {"pooled_output": [B, P], ...}], of which
    HunyuanVideo's encoders make one entry. Raises UnsupportedFile for what is not theirs.
    """
    from ..hyvideo_lib.text import TextEmbeds

    if len(conditioning) != 1:
        raise UnsupportedFile(
            f"{name} holds {len(conditioning)} conditionings, but exactly one can be used. Combined or scheduled "
            "prompts are not supported here: connect a single CLIP Text Encode node."
        )
    states, extra = conditioning[0]
    pooled = extra.get("pooled_output")
    if pooled is None or states.ndim != 3:
        raise UnsupportedFile(
            f"{name} has no pooled CLIP vector, so it was not made by HunyuanVideo's text encoders. Load them with "
            "DualCLIPLoader, type hunyuan_video."
        )
    mask = extra.get("attention_mask")
    mask = torch.ones(states.shape[:2], dtype=torch.int64) if mask is None else mask.reshape(states.shape[:2])
    return TextEmbeds(states.cpu(), mask.to("cpu", torch.int64), pooled.cpu(), (0,) * len(states))


class SaveEmbeds(io.ComfyNode):
    """HyvSaveEmbeds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvSaveEmbeds",
            display_name="HunyuanVideo Save Embeds",
            category=f"{CATEGORY}/text",
            description="Writes an encoded prompt to the output folder, so that later runs need no text encoder.",
            inputs=[
                HYV_EMBEDS.Input("embeds", tooltip="From Encode Prompt."),
                io.String.Input(
                    "filename_prefix",
                    default="embeds/hyvideo",
                    tooltip="Name in the output folder, before a running number. Nothing is overwritten.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @names_its_errors
    def execute(cls, embeds: Embeds, filename_prefix: str = "embeds/hyvideo") -> io.NodeOutput:
        from ..hyvideo_lib.pipeline import save_embeds

        path, _ = comfy_host.next_output(filename_prefix, EMBEDS_SUFFIX)
        save_embeds(path, embeds.positive, embeds.negative, embeds.template)
        shown = f"saved as {path.name}"
        comfy_host.show_text(cls.hidden.unique_id, shown)
        return io.NodeOutput(ui={"text": (shown,)})


class LoadEmbeds(io.ComfyNode):
    """HyvLoadEmbeds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvLoadEmbeds",
            display_name="HunyuanVideo Load Embeds",
            category=f"{CATEGORY}/text",
            description="Reads an encoded prompt that Save Embeds wrote, from the input or the output folder.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=list_embeds(),
                    tooltip="A file in the input folder, or one that Save Embeds left in the output folder. Press R "
                    "to see new ones.",
                )
            ],
            outputs=[HYV_EMBEDS.Output("embeds", display_name="embeds", tooltip="For the sampler; bit-equal.")],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        return check_inputs(cls, {"file": file})

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> str:
        if not isinstance(file, str):
            return "linked"
        try:
            stat = find_embeds(file).stat()
        except (FileMissing, OSError):
            return "missing"
        return f"{stat.st_size}-{stat.st_mtime_ns}"

    @classmethod
    @names_its_errors
    def execute(cls, file: str) -> io.NodeOutput:
        from ..hyvideo_lib.pipeline import load_embeds

        return io.NodeOutput(Embeds(*load_embeds(find_embeds(file))))


OUTPUT_MARK = " [output]"
"""Behind the name of a file in the output folder, as ComfyUI marks it elsewhere."""


def list_embeds() -> list[str]:
    """Files of encoded prompts in the input and output folders, sorted within each."""
    inputs = _embeds_in(comfy_host.input_folder())
    return [*inputs, *(name + OUTPUT_MARK for name in _embeds_in(comfy_host.output_folder()))]


def _embeds_in(folder: Path) -> list[str]:
    found = (Path(at, name) for at, _, names in os.walk(folder) for name in names if name.endswith(EMBEDS_SUFFIX))
    return sorted(path.relative_to(folder).as_posix() for path in found)


def find_embeds(name: str) -> Path:
    """The file behind a choice; never one outside of the two folders. Raises FileMissing."""
    is_output = name.endswith(OUTPUT_MARK)
    folder = comfy_host.output_folder() if is_output else comfy_host.input_folder()
    path = comfy_host.inside(folder, name.removesuffix(OUTPUT_MARK))
    if path is None or not path.is_file():
        raise FileMissing(f"There are no saved embeds {name!r}. Choose one of the list, or encode the prompt again.")
    return path


NODES = (PromptTemplateNode, EncodePrompt, EmbedsFromConditioning, SaveEmbeds, LoadEmbeds)
