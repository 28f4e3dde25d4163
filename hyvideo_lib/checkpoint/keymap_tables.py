"""The tables of names: which of another layout's modules a Tencent module is stored as.

`{}` stands for the index of a block. A rule with several modules on the other side says that their weights, one below
the other (along dimension 0), are Tencent's one. Facts: the key lists of the released files.
"""

from __future__ import annotations

from dataclasses import dataclass

SWAP_HALVES = "swap_halves"
"""The two halves of dimension 0 have changed places."""
SQUEEZE = "squeeze"
"""Their weight is that of a convolution of size 1: it has dimensions of size 1 at the end that ours lacks."""


@dataclass(frozen=True)
class Rule:
    """One module: our (Tencent's) path, theirs in the order of the rows, and what else is different."""

    ours: str
    theirs: tuple[str, ...]
    operation: str = ""
    their_weight: str = "weight"  # what theirs calls the tensor that ours calls "weight"


def _same(*paths: str) -> tuple[Rule, ...]:
    return tuple(Rule(path, (path,)) for path in paths)


def _renamed(**paths: str) -> tuple[Rule, ...]:
    """`ours=theirs`, for paths without dots."""
    return tuple(Rule(ours, (theirs,)) for ours, theirs in paths.items())


def _below(our_stem: str, their_stem: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules, with stems in front of their paths."""
    return tuple(
        Rule(our_stem + rule.ours, tuple(their_stem + path for path in rule.theirs), rule.operation, rule.their_weight)
        for rule in rules
    )


def _gain(ours: str, theirs: str) -> Rule:
    """A norm of ComfyUI's, whose weight is called scale."""
    return Rule(ours, (theirs,), their_weight="scale")


def _embedder(ours: str, theirs: str, our_layers: tuple[str, str], their_layers: tuple[str, str]) -> tuple[Rule, ...]:
    """Two Linears in a row."""
    return tuple(
        Rule(f"{ours}.{ours_layer}", (f"{theirs}.{theirs_layer}",))
        for ours_layer, theirs_layer in zip(our_layers, their_layers, strict=True)
    )


_SINUSOID, _PROJECTION = ("mlp.0", "mlp.2"), ("linear_1", "linear_2")
_IN_OUT = ("in_layer", "out_layer")
_REFINER = "txt_in.individual_token_refiner.blocks.{}."
_DOUBLE, _SINGLE = "double_blocks.{}.", "single_blocks.{}."


def _comfyui_stream(name: str) -> tuple[Rule, ...]:
    """One of the two streams, img or txt, of ComfyUI's double block."""
    return (
        Rule(f"{name}_mod.linear", (f"{name}_mod.lin",)),
        Rule(f"{name}_attn_qkv", (f"{name}_attn.qkv",)),
        _gain(f"{name}_attn_q_norm", f"{name}_attn.norm.query_norm"),
        _gain(f"{name}_attn_k_norm", f"{name}_attn.norm.key_norm"),
        Rule(f"{name}_attn_proj", (f"{name}_attn.proj",)),
        Rule(f"{name}_mlp.fc1", (f"{name}_mlp.0",)),
        Rule(f"{name}_mlp.fc2", (f"{name}_mlp.2",)),
    )


COMFYUI_TRANSFORMER = (
    *_same("img_in.proj", "txt_in.input_embedder", "vector_in.in_layer", "vector_in.out_layer"),
    *_same("final_layer.linear", "final_layer.adaLN_modulation.1"),
    *_embedder("txt_in.t_embedder", "txt_in.t_embedder", _SINUSOID, _IN_OUT),
    *_embedder("txt_in.c_embedder", "txt_in.c_embedder", _PROJECTION, _IN_OUT),
    *_embedder("time_in", "time_in", _SINUSOID, _IN_OUT),
    *_embedder("guidance_in", "guidance_in", _SINUSOID, _IN_OUT),
    *_below(
        _REFINER,
        _REFINER,
        (
            *_same("norm1", "norm2", "adaLN_modulation.1"),
            Rule("self_attn_qkv", ("self_attn.qkv",)),
            Rule("self_attn_proj", ("self_attn.proj",)),
            Rule("mlp.fc1", ("mlp.0",)),
            Rule("mlp.fc2", ("mlp.2",)),
        ),
    ),
    *_below(_DOUBLE, _DOUBLE, (*_comfyui_stream("img"), *_comfyui_stream("txt"))),
    *_below(
        _SINGLE,
        _SINGLE,
        (
            *_same("linear1", "linear2"),
            _gain("q_norm", "norm.query_norm"),
            _gain("k_norm", "norm.key_norm"),
            Rule("modulation.linear", ("modulation.lin",)),
        ),
    ),
)

_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")

DIFFUSERS_TRANSFORMER = (
    Rule("img_in.proj", ("x_embedder.proj",)),
    Rule("txt_in.input_embedder", ("context_embedder.proj_in",)),
    *_embedder("txt_in.t_embedder", "context_embedder.time_text_embed.timestep_embedder", _SINUSOID, _PROJECTION),
    *_embedder("txt_in.c_embedder", "context_embedder.time_text_embed.text_embedder", _PROJECTION, _PROJECTION),
    *_embedder("time_in", "time_text_embed.timestep_embedder", _SINUSOID, _PROJECTION),
    *_embedder("vector_in", "time_text_embed.text_embedder", _IN_OUT, _PROJECTION),
    *_embedder("guidance_in", "time_text_embed.guidance_embedder", _SINUSOID, _PROJECTION),
    *_below(
        _REFINER,
        "context_embedder.token_refiner.refiner_blocks.{}.",
        (
            *_same("norm1", "norm2"),
            Rule("self_attn_qkv", _QKV),
            Rule("self_attn_proj", ("attn.to_out.0",)),
            Rule("mlp.fc1", ("ff.net.0.proj",)),
            Rule("mlp.fc2", ("ff.net.2",)),
            Rule("adaLN_modulation.1", ("norm_out.linear",)),
        ),
    ),
    *_below(
        _DOUBLE,
        "transformer_blocks.{}.",
        (
            Rule("img_mod.linear", ("norm1.linear",)),
            Rule("img_attn_qkv", _QKV),
            Rule("img_attn_q_norm", ("attn.norm_q",)),
            Rule("img_attn_k_norm", ("attn.norm_k",)),
            Rule("img_attn_proj", ("attn.to_out.0",)),
            Rule("img_mlp.fc1", ("ff.net.0.proj",)),
            Rule("img_mlp.fc2", ("ff.net.2",)),
            Rule("txt_mod.linear", ("norm1_context.linear",)),
            Rule("txt_attn_qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
            Rule("txt_attn_q_norm", ("attn.norm_added_q",)),
            Rule("txt_attn_k_norm", ("attn.norm_added_k",)),
            Rule("txt_attn_proj", ("attn.to_add_out",)),
            Rule("txt_mlp.fc1", ("ff_context.net.0.proj",)),
            Rule("txt_mlp.fc2", ("ff_context.net.2",)),
        ),
    ),
    *_below(
        _SINGLE,
        "single_transformer_blocks.{}.",
        (
            Rule("linear1", (*_QKV, "proj_mlp")),
            Rule("linear2", ("proj_out",)),
            Rule("q_norm", ("attn.norm_q",)),
            Rule("k_norm", ("attn.norm_k",)),
            Rule("modulation.linear", ("norm.linear",)),
        ),
    ),
    Rule("final_layer.linear", ("proj_out",)),
    Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), SWAP_HALVES),
)

_RESNET = (
    *_same("norm1", "conv1.conv", "norm2", "conv2.conv"),
    Rule("conv_shortcut.conv", ("nin_shortcut.conv",)),
)
_ATTENTION = (
    Rule("group_norm", ("norm",)),
    Rule("to_q", ("q",), SQUEEZE),
    Rule("to_k", ("k",), SQUEEZE),
    Rule("to_v", ("v",), SQUEEZE),
    Rule("to_out.0", ("proj_out",), SQUEEZE),
)
_VAE_ENDS = (
    *_same("conv_in.conv", "conv_out.conv"),
    *_renamed(conv_norm_out="norm_out"),
    *_below("mid_block.resnets.0.", "mid.block_1.", _RESNET),
    *_below("mid_block.attentions.0.", "mid.attn_1.", _ATTENTION),
    *_below("mid_block.resnets.1.", "mid.block_2.", _RESNET),
)
_LEVELS = 4

COMFYUI_VAE = (
    *_same("quant_conv", "post_quant_conv"),
    *_below("encoder.", "encoder.", _VAE_ENDS),
    *_below("decoder.", "decoder.", _VAE_ENDS),
    *_below("encoder.down_blocks.{}.resnets.{}.", "encoder.down.{}.block.{}.", _RESNET),
    Rule("encoder.down_blocks.{}.downsamplers.0.conv.conv", ("encoder.down.{}.downsample.conv.conv",)),
    *(
        rule
        for level in range(_LEVELS)  # the decoder's levels are counted from the other end
        for rule in (
            *_below(
                f"decoder.up_blocks.{level}.resnets.{{}}.", f"decoder.up.{_LEVELS - 1 - level}.block.{{}}.", _RESNET
            ),
            *_below(
                f"decoder.up_blocks.{level}.",
                f"decoder.up.{_LEVELS - 1 - level}.",
                (Rule("upsamplers.0.conv.conv", ("upsample.conv.conv",)),),
            ),
        )
    ),
)

TABLES = {
    ("transformer", "comfyui"): COMFYUI_TRANSFORMER,
    ("transformer", "diffusers"): DIFFUSERS_TRANSFORMER,
    ("vae", "comfyui"): COMFYUI_VAE,
}
"""The rules of a (kind, layout). Those without a row have Tencent's own names."""
