"""The diffusion transformer: latents, noise level and text in, velocity out.

Names are the released checkpoint's, so its keys load as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..attention import AttendFn, attend
from ..errors import InvalidSize
from ..host import Host
from . import lean
from . import ops as default_ops
from .blocks import DoubleBlock, SingleBlock
from .chunks import AS_THEY_ARE
from .compile_config import CompileConfig
from .compiling import compiled_chunks
from .config import TransformerConfig
from .embedders import PatchEmbed, ScalarEmbed, VectorEmbed
from .lean import Form
from .lean_config import LeanConfig
from .modulation import Condition, Mods, Modulation, modulate
from .ops import Ops
from .refiner import TokenRefiner, valid_lengths
from .rope import RopeSettings, RotationTables, rotation_tables


class BlockSource(Protocol):
    """What hands out the blocks, and computes their modulating vectors, when weights are elsewhere meanwhile."""

    def through(self, blocks: Iterable[nn.Module]) -> Generator[nn.Module, None, None]:
        """The blocks in order, each ready to compute until the next is asked for; closed early if no more are."""
        ...

    def remember(self, *vecs: Tensor | None) -> Callable[[nn.Module, Tensor], Mods] | None:
        """What computes modulating vectors in a pass with these conditioning vectors; None: the modulations do."""
        ...


class AllResident:
    """Every block is where it computes."""

    def through(self, blocks: Iterable[nn.Module]) -> Generator[nn.Module, None, None]:
        yield from blocks

    def remember(self, *vecs: Tensor | None) -> None:
        return None


class BlockCache(Protocol):
    """What may answer in place of blocks. The tokens that it is shown may be overwritten as soon as it returns."""

    def before_blocks(self, img: Tensor, modulated_fn: Callable[[], Tensor]) -> Tensor | None:
        """Image tokens after all blocks, of those before them [B, L, D]; None: compute.

        modulated_fn: the first block's modulated input [B, L, D], for which its weights need not be there.
        """
        ...

    def after_first(self, img: Tensor) -> Tensor | None:
        """The same, asked after the first block with its result."""
        ...

    def after_blocks(self, img: Tensor) -> None:
        """Told what the blocks made, if they were computed."""
        ...


class FinalLayer(nn.Module):
    """Modulated norm and a Linear from tokens to patches. The order of its vectors is shift, scale."""

    def __init__(self, config: TransformerConfig, ops: Ops) -> None:
        super().__init__()
        t, h, w = config.patch_size
        self.linear = ops.Linear(config.hidden_size, t * h * w * config.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), ops.Linear(config.hidden_size, 2 * config.hidden_size))

    def forward(self, x: Tensor, vec: Tensor, lean_config: LeanConfig = LeanConfig()) -> Tensor:  # noqa: B008 (frozen)
        shift, scale = self.adaLN_modulation(vec).unsqueeze(1).chunk(2, dim=-1)
        if torch.is_grad_enabled():
            return self.linear(modulate(x, shift, scale))
        return lean.final_layer(x, shift, scale, self.linear, lean_config)


class HunyuanVideoTransformer(nn.Module):
    """HunyuanVideo's MM-DiT. Weights may rest in any dtype; computing happens in `compute_dtype`."""

    def __init__(
        self, config: TransformerConfig, ops: Ops | None = None, compute_dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        layers: Ops = ops or default_ops
        self.config = config
        self.compute_dtype = compute_dtype
        self.img_in = PatchEmbed(config.in_channels, config.hidden_size, config.patch_size, layers)
        self.txt_in = TokenRefiner(config, layers)
        self.time_in = ScalarEmbed(config.hidden_size, layers)
        self.vector_in = VectorEmbed(config.pooled_dim, config.hidden_size, layers)
        if config.has_guidance:
            self.guidance_in = ScalarEmbed(config.hidden_size, layers)
        self.double_blocks = nn.ModuleList([DoubleBlock(config, layers) for _ in range(config.num_double_blocks)])
        self.single_blocks = nn.ModuleList([SingleBlock(config, layers) for _ in range(config.num_single_blocks)])
        self.final_layer = FinalLayer(config, layers)

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks in the order they compute, the double ones first."""
        return [*self.double_blocks, *self.single_blocks]

    @property
    def modulations(self) -> list[Modulation]:
        """What turns the conditioning into the blocks' shifts, scales and gates."""
        return [module for block in self.blocks for module in block.modules() if isinstance(module, Modulation)]

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text_embeds: Tensor,
        text_mask: Tensor | None,
        pooled_embeds: Tensor,
        guidance: Tensor | float | None = None,
        clean_first_frame: bool = False,
        rope: RopeSettings = RopeSettings(),  # noqa: B008 (frozen)
        host: Host | None = None,
        source: BlockSource | None = None,
        cache: BlockCache | None = None,
        lean: LeanConfig = LeanConfig(),  # noqa: B008 (frozen)
        attend_fn: AttendFn = attend,
        compiling: CompileConfig | None = None,
    ) -> Tensor:
        """Velocity [B, C_out, T, H, W] in the compute dtype, of latents [B, C_in, T, H, W] in the transformer's scale.

        timesteps [B], 0..1000, not rounded. text_embeds [B, L, text_dim]; text_mask [B, L], 1 where valid, valid tokens
        first; None if all are. pooled_embeds [B, pooled_dim]. guidance: the scale itself (6.0), a number or [B];
        ignored by models without it. clean_first_frame: I2V token replace, where latent frame 0 is free of noise. host
        is asked for interruption before every block. source: hands out the blocks where some are swapped. cache: may
        answer in their place. lean, attend_fn, compiling: how far the blocks' memory is cut down, how they attend and
        how they are compiled, where no gradients are recorded. Raises InvalidSize if H or W are odd, ValueError
        for a mask with gaps.

        Padding text never changes the result: prompts are trimmed to the longest, and what padding is left is masked.
        """
        dtype = self.compute_dtype
        patches = [n // p for n, p in zip(latents.shape[2:], self.config.patch_size, strict=True)]
        if any(n % p for n, p in zip(latents.shape[2:], self.config.patch_size, strict=True)):
            raise InvalidSize(
                f"Latents of {latents.shape[3]} x {latents.shape[4]} cannot be cut into 2 x 2 patches: width and "
                "height in pixels must be multiples of 16."
            )
        grid = (patches[0], patches[1], patches[2])
        text_embeds, text_mask, lengths = trim_text(text_embeds, text_mask)

        source = source or AllResident()
        condition = self.condition(timesteps, pooled_embeds, guidance, grid if clean_first_frame else None)
        condition = replace(condition, vectors_fn=source.remember(condition.vec, condition.first_vec))
        txt = self.txt_in(text_embeds.to(dtype), timesteps, text_mask)
        x = torch.cat([self.img_in(latents.to(dtype)), txt], dim=1)  # [B, L, D]
        turn = rotation_tables(grid, self.config.rope_axes, self.config.rope_theta, rope, latents.device)
        chunks = AS_THEY_ARE if compiling is None else compiled_chunks(compiling, x.device)
        img = self.run_blocks(x, condition, turn, lengths, host, source, Form(lean, attend_fn, chunks), cache)
        return self.unpatchify(self.final_layer(img, condition.vec, lean), grid)

    def condition(
        self,
        timesteps: Tensor,
        pooled_embeds: Tensor,
        guidance: Tensor | float | None,
        clean_grid: tuple[int, int, int] | None,
    ) -> Condition:
        """The conditioning vectors. With clean_grid the first frame has its own, at timestep 0 and without guidance."""
        dtype = self.compute_dtype
        pooled = self.vector_in(pooled_embeds.to(dtype))
        vec = self.time_in(timesteps, dtype) + pooled
        if self.config.has_guidance:
            # The product is formed in the compute dtype, as in the reference: in bf16, 6.0 becomes 6016, not 6000.
            scale = torch.as_tensor(6.0 if guidance is None else guidance, device="cpu").to(dtype) * 1000
            scale = scale.float().to(timesteps.device).expand(timesteps.shape)
            vec = vec + self.guidance_in(scale, dtype)
        if clean_grid is None:
            return Condition(vec)
        first = self.time_in(torch.zeros_like(timesteps), dtype) + pooled
        return Condition(vec, first, clean_grid[1] * clean_grid[2])

    def run_blocks(
        self,
        x: Tensor,
        condition: Condition,
        turn: RotationTables,
        lengths: list[int] | None,
        host: Host | None,
        source: BlockSource,
        form: Form,
        cache: BlockCache | None,
    ) -> Tensor:
        """All blocks over the tokens of image and text, x [B, L_img + L_txt, D], or what the cache has instead.

        Returns the image tokens. lengths: valid text tokens per item. Without gradients the lean forms run, and x is
        overwritten.
        """
        is_lean = not torch.is_grad_enabled()
        num_img = len(turn)
        rotation = None if is_lean else turn.rows(0, num_img)
        joint_lengths = None if lengths is None else [num_img + n for n in lengths]
        img, txt = x[:, :num_img], x[:, num_img:]
        known = cache.before_blocks(img, partial(self.first_input, img, condition)) if cache else None
        if known is not None:
            return known
        with closing(source.through(self.double_blocks)) as doubles:
            for place, block in enumerate(doubles):
                if host:
                    host.check_interrupt()
                if is_lean:
                    lean.double_block(cast(DoubleBlock, block), img, txt, condition, turn, joint_lengths, form)
                else:
                    img, txt = block(img, txt, condition, rotation, joint_lengths)
                known = cache.after_first(img) if cache and place == 0 else None
                if known is not None:
                    return known
        if not is_lean:
            x = torch.cat([img, txt], dim=1)
        with closing(source.through(self.single_blocks)) as singles:
            for block in singles:
                if host:
                    host.check_interrupt()
                if is_lean:
                    lean.single_block(cast(SingleBlock, block), x, condition, turn, joint_lengths, form)
                else:
                    x = block(x, condition, rotation, joint_lengths)
        if cache:
            cache.after_blocks(x[:, :num_img])
        return x[:, :num_img]

    def first_input(self, img: Tensor, condition: Condition) -> Tensor:
        """What the first block's attention is given of the image: normed, shifted and scaled tokens [B, L, D]."""
        spans = cast(DoubleBlock, self.double_blocks[0]).img_mod(condition)
        modulated = img.new_empty(img.shape)
        for low, high, mods in lean.pieces(img, spans, LeanConfig()):
            modulated[:, low:high] = modulate(img[:, low:high], mods[0], mods[1])
        return modulated

    def unpatchify(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """[B, L, C pt ph pw], channel slowest, to [B, C, T, H, W]."""
        x = tokens.unflatten(-1, (self.config.out_channels, *self.config.patch_size)).unflatten(1, grid)
        return x.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def trim_text(text_embeds: Tensor, text_mask: Tensor | None) -> tuple[Tensor, Tensor | None, list[int] | None]:
    """Cut the text to the batch's longest prompt. Returns (embeds, bool mask, lengths), the last two None if equal.

    What padding is left is zeroed: masks multiply by 0, and infinity or NaN would survive that.
    """
    if text_mask is None:
        return text_embeds, None, None
    text_mask = text_mask.bool()
    lengths = valid_lengths(text_mask)
    longest = max(lengths)
    embeds = text_embeds[:, :longest]
    if min(lengths) == longest:
        return embeds, None, None
    text_mask = text_mask[:, :longest]
    return embeds.masked_fill(~text_mask.unsqueeze(-1), 0), text_mask, lengths
