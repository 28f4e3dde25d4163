"""The blocks against their description, written a second time in float64, token pairs and heads one by one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from tiny import TRANSFORMER, randomise, relative_error
from torch import Tensor, nn

from hyvideo_lib.transformer import ops
from hyvideo_lib.transformer.blocks import DoubleBlock, RMSNorm, SingleBlock
from hyvideo_lib.transformer.modulation import Condition
from hyvideo_lib.transformer.rope import rope_angles, rope_rotation

HEADS, SIZE, WIDTH = TRANSFORMER.num_heads, TRANSFORMER.hidden_size, TRANSFORMER.head_dim
GRID = (3, 2, 3)
NUM_IMG, NUM_TXT, FIRST = 18, 5, 6
ANGLES = rope_angles(GRID, TRANSFORMER.rope_axes, TRANSFORMER.rope_theta)
ROTATION = rope_rotation(ANGLES)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(kind: type[nn.Module]) -> nn.Module:
    block = kind(TRANSFORMER, ops)
    randomise(block, 0)
    return block


class Described:
    """One batch item in float64; `vecs` names for each token which of the modulation vectors it takes."""

    def __init__(self, block: nn.Module, vecs: Tensor) -> None:
        self.weights = {name: tensor.double() for name, tensor in block.state_dict().items()}
        self.vecs = vecs.double()

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def mods(self, name: str, which: list[int]) -> list[Tensor]:
        """Shift, scale, gate, ... [L, D] each."""
        return list(self.linear(f"{name}.linear", F.silu(self.vecs))[which].split(SIZE, dim=-1))

    def head_norm(self, name: str, x: Tensor) -> Tensor:
        """x [L, N, D]."""
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.weights[f"{name}.weight"]


def norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def rotate(x: Tensor) -> Tensor:
    """Turn the adjacent pairs of the first NUM_IMG tokens of x [L, N, D]."""
    cos, sin = ANGLES.double().cos()[:, None], ANGLES.double().sin()[:, None]
    out = x.clone()
    out[:NUM_IMG, :, 0::2] = x[:NUM_IMG, :, 0::2] * cos - x[:NUM_IMG, :, 1::2] * sin
    out[:NUM_IMG, :, 1::2] = x[:NUM_IMG, :, 1::2] * cos + x[:NUM_IMG, :, 0::2] * sin
    return out


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[L, N, D] each, head by head, to [L, N D]."""
    heads = [(q[:, h] @ k[:, h].T / WIDTH**0.5).softmax(-1) @ v[:, h] for h in range(HEADS)]
    return torch.cat(heads, dim=-1)


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def describe_double(block: nn.Module, img: Tensor, txt: Tensor, vecs: Tensor, num_first: int) -> tuple[Tensor, Tensor]:
    maths = Described(block, vecs)
    streams = {"img": img.double(), "txt": txt.double()}
    mods = {
        "img": maths.mods("img_mod", [1] * num_first + [0] * (NUM_IMG - num_first)),
        "txt": maths.mods("txt_mod", [0] * len(txt)),
    }
    q, k, v = [], [], []
    for name, x in streams.items():
        shift, scale = mods[name][:2]
        parts = maths.linear(f"{name}_attn_qkv", norm(x) * (1 + scale) + shift).view(len(x), 3, HEADS, WIDTH)
        q.append(maths.head_norm(f"{name}_attn_q_norm", parts[:, 0]))
        k.append(maths.head_norm(f"{name}_attn_k_norm", parts[:, 1]))
        v.append(parts[:, 2])
    out = attention(rotate(torch.cat(q)), rotate(torch.cat(k)), torch.cat(v))
    for name, result in (("img", out[:NUM_IMG]), ("txt", out[NUM_IMG:])):
        _, _, gate1, shift2, scale2, gate2 = mods[name]
        x = streams[name] + gate1 * maths.linear(f"{name}_attn_proj", result)
        hidden = gelu(maths.linear(f"{name}_mlp.fc1", norm(x) * (1 + scale2) + shift2))
        streams[name] = x + gate2 * maths.linear(f"{name}_mlp.fc2", hidden)
    return streams["img"].float(), streams["txt"].float()


def describe_single(block: nn.Module, x: Tensor, vecs: Tensor, num_first: int) -> Tensor:
    maths = Described(block, vecs)
    x = x.double()
    shift, scale, gate = maths.mods("modulation", [1] * num_first + [0] * (len(x) - num_first))
    hidden = maths.linear("linear1", norm(x) * (1 + scale) + shift)
    q, k, v = hidden[:, : 3 * SIZE].view(len(x), 3, HEADS, WIDTH).unbind(1)
    q, k = rotate(maths.head_norm("q_norm", q)), rotate(maths.head_norm("k_norm", k))
    joined = torch.cat([attention(q, k, v), gelu(hidden[:, 3 * SIZE :])], dim=-1)
    return (x + gate * maths.linear("linear2", joined)).float()


@pytest.mark.parametrize("num_first", [0, FIRST], ids=["one vector", "clean first frame"])
@pytest.mark.parametrize("lengths", [None, (5, 2)], ids=["all text", "padded text"])
def test_a_double_block_is_what_its_description_says(num_first: int, lengths: tuple[int, int] | None) -> None:
    block, vecs = make(DoubleBlock), noise(2, 2, SIZE, seed=1)
    img, txt = noise(2, NUM_IMG, SIZE, seed=2), noise(2, NUM_TXT, SIZE, seed=3)
    condition = Condition(vecs[:, 0], vecs[:, 1], num_first) if num_first else Condition(vecs[:, 0])
    joint = None if lengths is None else [NUM_IMG + n for n in lengths]
    found_img, found_txt = block(img, txt, condition, ROTATION, joint)
    for item, n in enumerate(lengths or (NUM_TXT, NUM_TXT)):
        expected = describe_double(block, img[item], txt[item, :n], vecs[item], num_first)
        assert relative_error(found_img[item], expected[0]) <= 1e-6
        assert relative_error(found_txt[item, :n], expected[1]) <= 1e-6


@pytest.mark.parametrize("num_first", [0, FIRST], ids=["one vector", "clean first frame"])
@pytest.mark.parametrize("lengths", [None, (5, 2)], ids=["all text", "padded text"])
def test_a_single_block_is_what_its_description_says(num_first: int, lengths: tuple[int, int] | None) -> None:
    block, vecs = make(SingleBlock), noise(2, 2, SIZE, seed=1)
    x = noise(2, NUM_IMG + NUM_TXT, SIZE, seed=2)
    condition = Condition(vecs[:, 0], vecs[:, 1], num_first) if num_first else Condition(vecs[:, 0])
    joint = None if lengths is None else [NUM_IMG + n for n in lengths]
    found = block(x, condition, ROTATION, joint)
    for item, n in enumerate(lengths or (NUM_TXT, NUM_TXT)):
        expected = describe_single(block, x[item, : NUM_IMG + n], vecs[item], num_first)
        assert relative_error(found[item, : NUM_IMG + n], expected) <= 1e-6


@pytest.mark.parametrize("kind", [DoubleBlock, SingleBlock])
@pytest.mark.parametrize("ratio", [1.0, 2.5])
def test_the_mlp_may_have_another_width(kind: type[nn.Module], ratio: float) -> None:
    block = kind(dataclasses.replace(TRANSFORMER, mlp_ratio=ratio), ops)
    shapes = {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()}
    if kind is DoubleBlock:
        assert shapes["img_mlp.fc1.weight"] == (SIZE * ratio, SIZE)
    else:
        assert shapes["linear1.weight"] == (3 * SIZE + SIZE * ratio, SIZE)
        assert shapes["linear2.weight"] == (SIZE, SIZE + SIZE * ratio)


def test_the_head_norm_takes_its_statistics_in_float32_and_rounds_before_the_gain() -> None:
    head_norm = RMSNorm(WIDTH)
    randomise(head_norm, 0)
    x = noise(2, 3, WIDTH, seed=1).bfloat16()
    rounded = (x.float() * (x.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt()).bfloat16()
    assert torch.equal(head_norm(x), rounded * head_norm.weight.bfloat16())
