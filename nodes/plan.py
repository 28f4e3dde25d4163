"""Planning: what a run would take of a card, before anything is loaded."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..hyvideo_lib.demo import assets
from ..hyvideo_lib.geometry import check_frames, check_size
from ..hyvideo_lib.memory.machine import Machine
from ..hyvideo_lib.memory.plan import CONTEXT_BYTES
from ..hyvideo_lib.pipeline import GenerateRequest, Precision
from ..hyvideo_lib.pipeline.plan import PlannedFiles, describe_plan, plan_run
from ..hyvideo_lib.sampling import GuidanceConfig
from . import comfy_host
from .latents import MAX_FRAMES, MAX_SIDE
from .load import AS_STORED, STORAGE, TEXT_KINDS, TRANSFORMER_KINDS, VAE_KINDS, list_choices, resolve
from .node import CATEGORY, check_inputs, names_its_errors

RELEASED = "(the released model)"
THIS_MACHINE = 0.0


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
    ) -> bool | str:
        names = {"transformer": transformer, "vae": vae, "llm": llm, "storage": storage}
        numbers = {
            "width": width,
            "height": height,
            "frames": frames,
            "cfg_scale": cfg_scale,
            "gpu_memory": gpu_memory,
        }

        def check() -> None:
            check_size(width, height)
            check_frames(frames)

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
    ) -> io.NodeOutput:
        chosen = {"transformer": transformer, "vae": vae, "llm": llm}
        files = {
            role: None if chosen[role] == RELEASED else resolve(chosen[role], demo_file, *kinds)
            for role, demo_file, kinds, _ in FILES
        }
        device = torch.device("cuda") if gpu_memory else comfy_host.compute_device()
        request = GenerateRequest(
            "-", width=width, height=height, frames=frames, guidance=GuidanceConfig(cfg_scale=cfg_scale)
        )
        request.check()
        plan = plan_run(
            request, PlannedFiles(**files), Precision(storage=STORAGE[storage]), machine(gpu_memory, device), device
        )
        report = describe_plan(plan)
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


def machine(gpu_memory: float, device: torch.device) -> Machine:
    """The machine to plan for: a card of so many GiB, or this one for 0."""
    if gpu_memory:
        return Machine(max(0, int(gpu_memory * 2**30) - CONTEXT_BYTES))
    return Machine(comfy_host.room_bytes(device))


NODES = (Plan,)
