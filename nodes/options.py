"""Option sockets: settings that most runs leave alone."""

from __future__ import annotations

from comfy_api.latest import io

from ..hyvideo_lib.caches import METHODS, CacheConfig, parse_curve
from ..hyvideo_lib.errors import InvalidSetting
from ..hyvideo_lib.memory import AUTO, BlockSwap
from ..hyvideo_lib.sampling import CFG_RANGE, GuidanceConfig
from ..hyvideo_lib.transformer import CompileConfig, RopeSettings
from ..hyvideo_lib.transformer.compile_config import BACKENDS as COMPILE_BACKENDS
from ..hyvideo_lib.transformer.compile_config import MODES as COMPILE_MODES
from ..hyvideo_lib.transformer.compile_config import SCOPES as COMPILE_SCOPES
from .node import CATEGORY, check_inputs, names_its_errors
from .sockets import HYV_BLOCK_SWAP, HYV_CACHE, HYV_COMPILE, HYV_GUIDANCE, HYV_ROPE

MAX_BLOCKS = 200


class Rope(io.ComfyNode):
    """HyvRope."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvRope",
            display_name="HunyuanVideo RoPE",
            category=f"{CATEGORY}/options",
            description="How the transformer is told where in time and space a piece of the video lies.",
            inputs=[
                io.Float.Input("time_scale", default=1.0, min=0.1, max=4.0, step=0.01, tooltip=_scale_tooltip("time")),
                io.Float.Input(
                    "height_scale", default=1.0, min=0.1, max=4.0, step=0.01, tooltip=_scale_tooltip("height")
                ),
                io.Float.Input(
                    "width_scale", default=1.0, min=0.1, max=4.0, step=0.01, tooltip=_scale_tooltip("width")
                ),
                io.Boolean.Input(
                    "extrapolate",
                    default=False,
                    tooltip="RIFLEx: lets clips grow beyond 192 frames without starting over. Changes nothing below "
                    "that and costs nothing.",
                ),
            ],
            outputs=[HYV_ROPE.Output("rope", display_name="rope", tooltip="For the sampler.")],
        )

    @classmethod
    @names_its_errors
    def execute(
        cls, time_scale: float = 1.0, height_scale: float = 1.0, width_scale: float = 1.0, extrapolate: bool = False
    ) -> io.NodeOutput:
        return io.NodeOutput(RopeSettings(extrapolate, (time_scale, height_scale, width_scale)))


def _scale_tooltip(axis: str) -> str:
    return (
        f"Multiplies positions along {axis}. 1 is the trained behaviour; below 1 the model believes the video smaller "
        "than it is, which can help beyond the trained size, above 1 larger. Costs nothing."
    )


class Guidance(io.ComfyNode):
    """HyvGuidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvGuidance",
            display_name="HunyuanVideo Guidance (CFG)",
            category=f"{CATEGORY}/options",
            description="True classifier-free guidance with the negative prompt, beside the guidance that is built in.",
            inputs=[
                io.Float.Input(
                    "cfg_scale",
                    default=1.0,
                    min=CFG_RANGE[0],
                    max=CFG_RANGE[1],
                    step=0.1,
                    tooltip="How far to go past the prompt, away from the negative one. 1 is off. Above 1 every "
                    "guided step takes twice the time. 3 to 6 are usual.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where in the run it begins, as a fraction of the steps. 0 is the start.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where it ends. An end of 0.5 saves a quarter of the time and keeps most of the effect, "
                    "as layout is decided early.",
                ),
                io.Float.Input(
                    "rescale",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Takes back the contrast that a high scale burns in: 0 not at all, 1 fully. 0.7 is usual.",
                ),
                io.Boolean.Input(
                    "batched",
                    default=True,
                    tooltip="Both prompts in one pass: faster. Off runs them one after the other, with less memory.",
                ),
            ],
            outputs=[
                HYV_GUIDANCE.Output("guidance_options", display_name="guidance_options", tooltip="For the sampler.")
            ],
        )

    @classmethod
    def validate_inputs(
        cls, cfg_scale: float = 1.0, start: float = 0.0, end: float = 1.0, rescale: float = 0.0
    ) -> bool | str:
        values = {"cfg_scale": cfg_scale, "start": start, "end": end, "rescale": rescale}
        return check_inputs(
            cls, values, lambda: GuidanceConfig(cfg_scale=cfg_scale, cfg_start=start, cfg_end=end, rescale=rescale)
        )

    @classmethod
    @names_its_errors
    def execute(
        cls, cfg_scale: float = 1.0, start: float = 0.0, end: float = 1.0, rescale: float = 0.0, batched: bool = True
    ) -> io.NodeOutput:
        return io.NodeOutput(
            GuidanceConfig(cfg_scale=cfg_scale, cfg_start=start, cfg_end=end, rescale=rescale, batched=batched)
        )


class BlockSwapNode(io.ComfyNode):
    """HyvBlockSwap."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvBlockSwap",
            display_name="HunyuanVideo Block Swap",
            category=f"{CATEGORY}/options",
            description="Keeps some of the transformer's blocks in RAM and copies each over while it is needed.",
            inputs=[
                io.Int.Input(
                    "double_blocks",
                    default=AUTO,
                    min=AUTO,
                    max=MAX_BLOCKS,
                    tooltip="How many of the 20 double blocks are swapped at least. -1: as many as the free memory "
                    "asks for. Each saves about 0.23 GB in 8 bit and costs its copy in every step.",
                ),
                io.Int.Input(
                    "single_blocks",
                    default=AUTO,
                    min=AUTO,
                    max=MAX_BLOCKS,
                    tooltip="How many of the 40 single blocks are swapped at least. -1: as many as the free memory "
                    "asks for. Each saves about 0.11 GB in 8 bit.",
                ),
                io.Int.Input(
                    "prefetch",
                    default=1,
                    min=0,
                    max=4,
                    tooltip="How many blocks ahead copies run while others compute. 1 hides them at most sizes; 2 "
                    "helps where blocks compute unevenly. Each costs a block's memory. 0 copies each in its turn.",
                ),
            ],
            outputs=[HYV_BLOCK_SWAP.Output("block_swap", display_name="block_swap", tooltip="For Load Transformer.")],
        )

    @classmethod
    @names_its_errors
    def execute(cls, double_blocks: int = AUTO, single_blocks: int = AUTO, prefetch: int = 1) -> io.NodeOutput:
        return io.NodeOutput(BlockSwap(double_blocks, single_blocks, prefetch))


class Compile(io.ComfyNode):
    """HyvCompile."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyvCompile",
            display_name="HunyuanVideo Compile",
            category=f"{CATEGORY}/options",
            description="Compiles the transformer's blocks, all but attention, or only what lies between their matrix "
            "products and attention.",
            inputs=[
                io.Combo.Input(
                    "backend",
                    options=list(COMPILE_BACKENDS),
                    default="inductor",
                    tooltip="inductor makes kernels. The others make none and are as slow as without: they show where "
                    "an error comes from.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(COMPILE_MODES),
                    default="default",
                    tooltip="max-autotune-no-cudagraphs tries more ways for every kernel: a slower first step, perhaps "
                    "faster ones after it.",
                ),
                io.Boolean.Input(
                    "dynamic",
                    default=True,
                    tooltip="One kernel for all sizes and lengths of videos. Off compiles anew for each.",
                ),
                io.Combo.Input(
                    "scope",
                    options=list(COMPILE_SCOPES),
                    default="blocks",
                    optional=True,
                    tooltip="blocks: all of a block but attention. pieces: only what lies between its matrix products "
                    "and attention, which fuses less but needs no compiling anew for LoRAs.",
                ),
            ],
            outputs=[HYV_COMPILE.Output("compile", display_name="compile", tooltip="For Load Transformer.")],
        )

    @classmethod
    def validate_inputs(cls, backend: str = "inductor", mode: str = "default", scope: str = "blocks") -> bool | str:
        return check_inputs(cls, {"backend": backend, "mode": mode, "scope": scope})

    @classmethod
    @names_its_errors
    def execute(
        cls, backend: str = "inductor", mode: str = "default", dynamic: bool = True, scope: str = "blocks"
    ) -> io.NodeOutput:
        return io.NodeOutput(CompileConfig(backend, mode, dynamic, scope))


PLACES = ("device", "host")
OWN = -1
"""Of a number: the method's own."""


class Cache(io.ComfyNode):
    """HyvCache."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        methods = " ".join(method.description for method in METHODS.values())
        defaults = ", ".join(f"{method.threshold:g} for {name}" for name, method in METHODS.items())
        starts = ", ".join(f"{method.start:g} for {name}" for name, method in METHODS.items() if method.start)
        return io.Schema(
            node_id="HyvCache",
            display_name="HunyuanVideo Step Cache",
            category=f"{CATEGORY}/options",
            description="Skips steps and uses an earlier one's result instead: faster, and not the same video.",
            inputs=[
                io.Combo.Input("method", options=list(METHODS), default="teacache", tooltip=methods),
                io.Float.Input(
                    "threshold",
                    default=float(OWN),
                    min=float(OWN),
                    max=10.0,
                    step=0.001,
                    tooltip=f"How far things may drift before a step is computed. Higher is faster and worse; 0 skips "
                    f"nothing. -1 is the method's own: {defaults}.",
                ),
                io.Float.Input(
                    "start",
                    default=float(OWN),
                    min=float(OWN),
                    max=1.0,
                    step=0.01,
                    tooltip="Fraction of the steps that are all computed first, as layout and motion are decided "
                    f"there. -1 is the method's own: {starts}, 0 for the others.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Fraction from which on all steps are computed again, for fine detail. The last step "
                    "always is.",
                ),
                io.Int.Input(
                    "max_skips",
                    default=OWN,
                    min=OWN,
                    max=100,
                    tooltip="Steps skipped in a row at most. 0 is without bound; -1 is the method's own: 4 for "
                    "magcache, without bound for the others.",
                ),
                io.Combo.Input(
                    "residuals",
                    options=list(PLACES),
                    default="device",
                    tooltip="Where what is kept waits: on the card, or in RAM, which saves memory there and costs "
                    "one to six copies a step. easycache keeps next to nothing.",
                ),
                io.String.Input(
                    "ratios",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="For magcache with another model than the released one and the demo's: the contents of the "
                    "file that `python -m hyvideo_lib generate ... --measure-ratios FILE` wrote. Empty: those that are "
                    "built in.",
                ),
            ],
            outputs=[HYV_CACHE.Output("cache", display_name="cache", tooltip="For the sampler.")],
        )

    @classmethod
    def validate_inputs(
        cls,
        method: str = "teacache",
        threshold: float = OWN,
        start: float = OWN,
        end: float = 1.0,
        max_skips: int = OWN,
        residuals: str = "device",
        ratios: str = "",
    ) -> bool | str:
        values = {
            "method": method,
            "threshold": threshold,
            "start": start,
            "end": end,
            "max_skips": max_skips,
            "residuals": residuals,
            "ratios": ratios,
        }
        given = method, threshold, start, end, max_skips, residuals, ratios
        return check_inputs(cls, values, lambda: cache_config(*given))

    @classmethod
    @names_its_errors
    def execute(
        cls,
        method: str = "teacache",
        threshold: float = OWN,
        start: float = OWN,
        end: float = 1.0,
        max_skips: int = OWN,
        residuals: str = "device",
        ratios: str = "",
    ) -> io.NodeOutput:
        return io.NodeOutput(cache_config(method, threshold, start, end, max_skips, residuals, ratios))


def cache_config(
    method: str, threshold: float, start: float, end: float, max_skips: int, residuals: str, ratios: str = ""
) -> CacheConfig:
    """What the widgets say. Raises InvalidSetting."""
    if ratios.strip() and method != "magcache":
        raise InvalidSetting(f"ratios are for magcache, but method is {method}. Leave them empty.")
    return CacheConfig(
        method,
        None if threshold < 0 else threshold,
        None if start < 0 else start,
        end,
        None if max_skips < 0 else max_skips,
        residuals == "host",
        parse_curve(ratios, "ratios") if ratios.strip() else None,
    )


NODES = (Rope, Guidance, BlockSwapNode, Compile, Cache)
