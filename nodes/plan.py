"""Planning: what a run would take of a card, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..hyvideo_lib.attention import AUTO, attention_names
from ..hyvideo_lib.demo import assets
from ..hyvideo_lib.geometry import check_frames, check_size
from ..hyvideo_lib.memory.machine import CARDS, DEFAULT_LINK, Machine, device_bytes
from ..hyvideo_lib.pipeline.precision import DENSE, MATMULS
from . import comfy_host
from .decode import TILE_MODES, check_tiles, tile_inputs
from .files import TEXT_KINDS, TRANSFORMER_KINDS, VAE_KINDS, list_choices, resolve
from .latents import MAX_FRAMES, MAX_SIDE
from .load import AS_STORED, STORAGE
from .lora import list_choices as list_loras
from .lora import resolve as resolve_lora
from .node import CATEGORY, check_inputs, names_its_errors
from .sockets import HYV_BLOCK_SWAP, HYV_CACHE, HYV_GUIDANCE

if TYPE_CHECKING:
    from ..hyvideo_lib.caches import CacheConfig
    from ..hyvideo_lib.memory import BlockSwap
    from ..hyvideo_lib.pipeline import TilesChoice
    from ..hyvideo_lib.sampling import GuidanceConfig

RELEASED = "(the released model)"
THIS_MACHINE = 0.0
NO_CARD = "(not named)"
NO_LORA = "(none)"


class Plan(io.ComfyNode):
    """HyvPlan."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvPlan",
            display_name="HunyuanVideo Plan",
            category=f"{CATEGORY}/load",
            description="Says what a run would take: memory of every stage, what fits, and the settings that make it "
            "fit. Reads only headers and loads nothing.",
            inputs=[
                *(_file_input(*entry) for entry in FILES),
                io.Combo.Input(
                    "storage",
                    options=list(STORAGE),
                    default=AS_STORED,
                    tooltip="What the transformer's weights rest in, as on Load Transformer.",
                ),
                io.Int.Input(
                    "width", default=1280, min=16, max=MAX_SIDE, step=16, tooltip="In pixels, a multiple of 16."
                ),
                io.Int.Input(
                    "height", default=720, min=16, max=MAX_SIDE, step=16, tooltip="In pixels, a multiple of 16."
                ),
                io.Int.Input("frames", default=129, min=1, max=MAX_FRAMES, step=4, tooltip="4k + 1."),
                io.Float.Input(
                    "cfg_scale",
                    default=1.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Above 1 both prompts are sampled together, which doubles a step's work.",
                ),
                io.Float.Input(
                    "gpu_memory",
                    default=THIS_MACHINE,
                    min=0.0,
                    max=1024.0,
                    step=0.5,
                    tooltip="GiB of the card to plan for, such as 8 or 12. 0 is this machine's, with everything that "
                    "ComfyUI could move away counted as free.",
                ),
                *_later_inputs(),
            ],
            outputs=[io.String.Output("report", display_name="report", tooltip="The same text.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        transformer: str = RELEASED,
        vae: str = RELEASED,
        llm: str = RELEASED,
        storage: str = AS_STORED,
        width: int = 1280,
        height: int = 720,
        frames: int = 129,
        cfg_scale: float = 1.0,
        gpu_memory: float = THIS_MACHINE,
        matmul: str = DENSE,
        card: str = NO_CARD,
        ram: float = 0.0,
        link: float = DEFAULT_LINK / 1e9,
        tiles: str = TILE_MODES[0],
        tile_size: int = 256,
        tile_frames: int = 64,
        lora: str = NO_LORA,
        attention: str = AUTO,
        encode_video: bool = False,
    ) -> bool | str:
        names = {
            "transformer": transformer,
            "vae": vae,
            "llm": llm,
            "storage": storage,
            "matmul": matmul,
            "card": card,
            "tiles": tiles,
            "lora": lora,
            "attention": attention,
            "encode_video": encode_video,
        }
        numbers = {
            "width": width,
            "height": height,
            "frames": frames,
            "cfg_scale": cfg_scale,
            "gpu_memory": gpu_memory,
            "ram": ram,
            "link": link,
            "tile_size": tile_size,
            "tile_frames": tile_frames,
        }

        def check() -> None:
            check_size(width, height)
            check_frames(frames)
            check_tiles(tiles, tile_size, tile_frames)

        return check_inputs(cls, names | numbers, check)

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> float:
        """Never equal to itself: how much memory is free changes."""
        return float("nan")

    @classmethod
    @names_its_errors
    def execute(
        cls,
        transformer: str = RELEASED,
        vae: str = RELEASED,
        llm: str = RELEASED,
        storage: str = AS_STORED,
        width: int = 1280,
        height: int = 720,
        frames: int = 129,
        cfg_scale: float = 1.0,
        gpu_memory: float = THIS_MACHINE,
        matmul: str = DENSE,
        card: str = NO_CARD,
        ram: float = 0.0,
        link: float = DEFAULT_LINK / 1e9,
        tiles: str = TILE_MODES[0],
        tile_size: int = 256,
        tile_frames: int = 64,
        lora: str = NO_LORA,
        guidance_options: GuidanceConfig | None = None,
        block_swap: BlockSwap | None = None,
        cache: CacheConfig | None = None,
        attention: str = AUTO,
        encode_video: bool = False,
    ) -> io.NodeOutput:
        from ..hyvideo_lib.memory import BlockSwap
        from ..hyvideo_lib.pipeline import GenerateRequest, LoraChoice, Precision
        from ..hyvideo_lib.pipeline.files import PlannedFiles
        from ..hyvideo_lib.pipeline.plan import NOISE, VIDEO, plan_run
        from ..hyvideo_lib.pipeline.plan_terms import NODES as TERMS
        from ..hyvideo_lib.pipeline.plan_text import describe_plan
        from ..hyvideo_lib.sampling import GuidanceConfig

        chosen = {"transformer": transformer, "vae": vae, "llm": llm}
        files = {
            role: None if chosen[role] == RELEASED else resolve(chosen[role], demo_file, *kinds)
            for role, demo_file, kinds, _ in FILES
        }
        device = torch.device("cuda") if gpu_memory or card != NO_CARD else comfy_host.compute_device()
        request = GenerateRequest(
            "-",
            width=width,
            height=height,
            frames=frames,
            guidance=guidance_options or GuidanceConfig(cfg_scale=cfg_scale),
            tiles=tiles_of(tiles, tile_size, tile_frames),
            loras=() if lora == NO_LORA else (LoraChoice(resolve_lora(lora)),),
            cache=cache,
        )
        request.check()
        precision = Precision(storage=STORAGE[storage], matmul=matmul, attention=attention)
        place = machine(device, gpu_memory, card, ram, link)
        swap, start = block_swap or BlockSwap(), VIDEO if encode_video else NOISE
        plan = plan_run(request, PlannedFiles(**files), precision, place, device, swap, start, TERMS)
        report = describe_plan(plan, TERMS)
        comfy_host.show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(report, ui={"text": (report,)})


FILES = (
    ("transformer", assets.TRANSFORMER, TRANSFORMER_KINDS, "The transformer's file."),
    ("vae", assets.VAE, VAE_KINDS, "The VAE's file."),
    ("llm", assets.LLM, TEXT_KINDS, "The language model's file."),
)
"""Roles, the demo's files for them, ComfyUI's folders, and words for people."""


def _file_input(role: str, demo_file: object, kinds: tuple[str, ...], words: str) -> io.Combo.Input:
    return io.Combo.Input(
        role,
        options=[RELEASED, *list_choices(*kinds)],
        default=RELEASED,
        tooltip=f"{words} Only its header is read. As it stands the released model's sizes are taken, in 16 bits.",
    )


def _later_inputs() -> list[Any]:
    """Those that came after the first workflows were saved: optional, and last."""
    return [
        io.Combo.Input(
            "matmul",
            options=list(MATMULS),
            default=DENSE,
            optional=True,
            tooltip="How the transformer's blocks multiply, as on Load Transformer.",
        ),
        io.Combo.Input(
            "card",
            options=[NO_CARD, *CARDS],
            default=NO_CARD,
            optional=True,
            tooltip="A card by name, for its memory and its speed: then the least that a step can take is "
            "computed too. gpu_memory goes before its memory.",
        ),
        io.Float.Input(
            "ram",
            default=0.0,
            min=0.0,
            max=4096.0,
            step=1.0,
            optional=True,
            tooltip="GiB of RAM that are free for the run. 0 is what this machine has free; where a card is described, "
            "it leaves RAM out of account.",
        ),
        io.Float.Input(
            "link",
            default=DEFAULT_LINK / 1e9,
            min=1.0,
            max=1000.0,
            step=1.0,
            optional=True,
            tooltip="GB a second from RAM to the card: about 25 for PCIe 4.0 with 16 lanes, half of it for 3.0 "
            "or 8 lanes.",
        ),
        *_optional_tiles(),
        io.Combo.Input(
            "lora",
            options=[NO_LORA, *list_loras()],
            default=NO_LORA,
            optional=True,
            tooltip="A LoRA to count as well, on all blocks.",
        ),
        HYV_GUIDANCE.Input(
            "guidance_options",
            optional=True,
            tooltip="From Guidance (CFG); its cfg_scale goes before this one's.",
        ),
        HYV_BLOCK_SWAP.Input(
            "block_swap",
            optional=True,
            tooltip="From Block Swap; without it only what does not fit is swapped.",
        ),
        HYV_CACHE.Input("cache", optional=True, tooltip="From Step Cache: what it keeps is counted."),
        io.Combo.Input(
            "attention",
            options=attention_names(),
            default=AUTO,
            optional=True,
            tooltip="Which attention kernel, as on Load Transformer: those in 8 bits hold more.",
        ),
        io.Boolean.Input(
            "encode_video",
            default=False,
            optional=True,
            tooltip="For video to video: count Encode Video too, in the tiles that are set here.",
        ),
    ]


def _optional_tiles() -> list[Any]:
    """The widgets of Decode."""
    inputs = tile_inputs()
    for entry in inputs:
        entry.optional = True
    return inputs


def tiles_of(mode: str, size: int, frames: int) -> TilesChoice:
    """What the tiles' widgets ask for, as a request has it."""
    from ..hyvideo_lib.pipeline import FIT
    from ..hyvideo_lib.vae import Tiles

    if mode == "custom":
        return Tiles(size, frames)
    return {"fit": FIT, "none": None}.get(mode, Tiles())


def machine(device: torch.device, gpu_memory: float, card: str, ram: float, link: float) -> Machine:
    """The machine to plan for: a card of so many GiB, or the one that is named, or this one.

    ram: GiB, 0 for what this machine has free, or an unknown number beside a described card. link: GB a second.
    """
    from ..hyvideo_lib.memory.plan import CONTEXT_BYTES
    from ..hyvideo_lib.memory.ram import free_ram_bytes

    known = CARDS.get(card)
    total = int(gpu_memory * 2**30) or (known.memory if known else 0)
    free = max(0, total - CONTEXT_BYTES) if total else comfy_host.room_bytes(device)
    speed = known.speed if known else None
    ram_free = int(ram * 2**30) or (None if total else free_ram_bytes())
    total = total or device_bytes(device) or 0
    return Machine(free, ram_free, link * 1e9, speed, card if known else "", total or None)


NODES = (Plan,)
