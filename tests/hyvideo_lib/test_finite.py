from __future__ import annotations

import pytest
import torch

from hyvideo_lib.errors import NonFiniteOutput
from hyvideo_lib.finite import CAUSES, FiniteWatch, check_finite

NAN, INF = float("nan"), float("inf")


def latents(*bad: tuple[int, float], videos: int = 3, device: str = "cpu") -> torch.Tensor:
    """Zeros [videos, 2, 1, 2, 2] with one bad number in each of the named videos."""
    made = torch.zeros(videos, 2, 1, 2, 2)
    for video, number in bad:
        made[video, 1, 0, 1, 0] = number
    return made.to(device)


@pytest.mark.parametrize("stage", CAUSES)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_bad_number_is_found_and_said_with_what_helps(stage, bad):
    with pytest.raises(NonFiniteOutput) as caught:
        check_finite(latents((1, bad)), stage, "The states")
    nan, infinite = (1, 0) if bad != bad else (0, 1)
    assert str(caught.value).startswith(
        f"The states [3, 2, 1, 2, 2], float32: NaN in {nan} and infinity in {infinite} of 24 numbers"
    )
    assert str(caught.value).endswith(CAUSES[stage])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8])
def test_numbers_of_every_kind_pass(dtype):
    check_finite(torch.full((4,), 100, dtype=dtype), "text", "It")
    check_finite(torch.zeros(0, dtype=dtype), "text", "It")


def test_the_largest_number_of_float16_passes_and_the_next_does_not():
    check_finite(torch.tensor(65504.0).half(), "sampling", "It")
    with pytest.raises(NonFiniteOutput, match="infinity in 1 of 1"):
        check_finite(torch.tensor(65520.0).half(), "sampling", "It")


@pytest.mark.parametrize("bad", [NAN, INF])
def test_the_watch_names_step_level_and_videos(bad):
    watch = FiniteWatch(5)
    watch.look(latents(), 1, 0.9)
    with pytest.raises(NonFiniteOutput, match=r"^Step 2 of 5 \(sigma 0\.75\) .* in video 1, 3 of 3;.*float16"):
        watch.look(latents((0, bad), (2, bad)), 2, 0.75)


class OnCard(torch.Tensor):
    """Latents that say they are on a graphics card, and a count of how often somebody waited for them."""

    waits = 0

    @property
    def device(self):
        return torch.device("cuda")

    def tolist(self):
        OnCard.waits += 1
        return super().tolist()


def on_card(*bad: tuple[int, float]) -> torch.Tensor:
    return latents(*bad).as_subclass(OnCard)


def test_a_card_is_waited_for_every_few_steps_and_at_the_last():
    OnCard.waits = 0
    watch = FiniteWatch(10, every=4)
    waits = []
    for step in range(1, 11):
        watch.look(on_card(), step, 0.5)
        waits.append(OnCard.waits)
    assert waits == [0, 0, 0, 1, 1, 1, 1, 2, 2, 3]


def test_a_step_that_is_looked_at_later_is_named_all_the_same():
    watch = FiniteWatch(10, every=4)
    watch.look(on_card(), 1, 0.9)
    watch.look(on_card((1, NAN)), 2, 0.8)
    watch.look(on_card((1, NAN)), 3, 0.7)
    with pytest.raises(NonFiniteOutput, match=r"^Step 2 of 10 \(sigma 0\.8\) .* video 2 of 3"):
        watch.look(on_card((0, NAN), (1, NAN)), 4, 0.6)


def test_the_last_step_of_a_run_is_always_looked_at():
    watch = FiniteWatch(2, every=4)
    watch.look(on_card(), 1, 0.5)
    with pytest.raises(NonFiniteOutput, match="Step 2 of 2"):
        watch.look(on_card((0, NAN)), 2, 0.0)
