"""Blocks as one buffer of bytes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from hyvideo_lib.memory.flat import ALIGNMENT, FlatLayout

DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.uint8)
shapes = st.lists(st.integers(0, 5), max_size=3)
tensors = st.lists(st.tuples(st.sampled_from(DTYPES), shapes), max_size=6)


@given(tensors, st.integers(0, 2**31))
def test_what_is_packed_comes_out_again(kinds, seed):
    generator = torch.Generator().manual_seed(seed)
    given = [torch.randint(0, 100, shape, generator=generator).to(dtype) for dtype, shape in kinds]
    layout = FlatLayout(given)
    assert sum(tensor.nbytes for tensor in given) <= layout.num_bytes
    buffer = torch.full((layout.num_bytes + 7,), 255, dtype=torch.uint8)
    layout.pack(given, buffer)
    views = layout.views(buffer)
    for tensor, view in zip(given, views, strict=True):
        assert (view.dtype, view.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(view.float(), tensor.float())
    starts = [view.data_ptr() - buffer.data_ptr() for view in views if view.numel()]
    assert all(start % ALIGNMENT == 0 for start in starts)
    assert (buffer[layout.num_bytes :] == 255).all()


def test_strided_tensors_are_packed_in_their_own_order():
    tensor = torch.arange(12.0).reshape(3, 4).T
    layout = FlatLayout([tensor])
    buffer = torch.empty(layout.num_bytes, dtype=torch.uint8)
    layout.pack([tensor], buffer)
    assert torch.equal(layout.views(buffer)[0], tensor)
