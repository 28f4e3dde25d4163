"""ComfyUI's own transformer with the weights of ours, where COMFYUI_PATH says where ComfyUI is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.transformer import GUIDANCE
from hyvideo_lib.checkpoint.keymaps import apply_operation, their_names
from hyvideo_lib.transformer import HunyuanVideoTransformer

Forward = Callable[[dict[str, Tensor]], Tensor]


def comfy_path() -> str:
    """Where ComfyUI is. Raises ImportError."""
    path = os.environ.get("COMFYUI_PATH")
    if not path or not Path(path, "comfy").is_dir():
        raise ImportError("COMFYUI_PATH does not lead to a ComfyUI")
    return path


def comfy_transformer(model: HunyuanVideoTransformer) -> Forward:
    """Its forward on the inputs of ours, the weights being the same tensors. Raises ImportError where it is not."""
    path = comfy_path()
    sys.path.insert(0, path)
    try:
        return _build(model)
    finally:
        sys.path.remove(path)


def _build(model: HunyuanVideoTransformer) -> Forward:
    from comfy.cli_args import args

    args.cpu = model.img_in.proj.weight.device.type == "cpu"  # before anything asks which device there is
    import comfy.ops
    from comfy.ldm.hunyuan_video.model import HunyuanVideo, HunyuanVideoParams

    config = model.config
    sizes = {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "patch_size": list(config.patch_size),
        "vec_in_dim": config.pooled_dim,
        "context_in_dim": config.text_dim,
        "hidden_size": config.hidden_size,
        "mlp_ratio": config.mlp_ratio,
        "num_heads": config.num_heads,
        "depth": config.num_double_blocks,
        "depth_single_blocks": config.num_single_blocks,
        "axes_dim": list(config.rope_axes),
        "theta": int(config.rope_theta),
        "qkv_bias": True,
        "guidance_embed": config.has_guidance,
    }
    # Newer versions want to be told what the 1.5 model has and this one has not.
    known = {name: None for name in getattr(HunyuanVideoParams, "__annotations__", {}) if name not in sizes}
    known |= {name: False for name in known if name.startswith(("use_", "meanflow"))}
    peer = HunyuanVideo(**sizes, **known, dtype=model.compute_dtype, device="meta", operations=comfy.ops.manual_cast)
    peer.load_state_dict(_named_as_theirs(model), strict=True, assign=True)
    peer.requires_grad_(False).eval()

    def forward(inputs: dict[str, Tensor]) -> Tensor:
        guidance = torch.full_like(inputs["timesteps"], GUIDANCE)
        return peer(
            inputs["latents"],
            inputs["timesteps"],
            inputs["text_embeds"],
            y=inputs["pooled_embeds"],
            guidance=guidance,
        )

    return forward


def _named_as_theirs(model: HunyuanVideoTransformer) -> dict[str, Tensor]:
    named = {}
    for name, tensor in model.state_dict().items():
        (source,) = their_names("transformer", "comfyui", name)
        named[source.name] = apply_operation(source.operation, tensor)
    return named
