"""What is asked for: one prompt and every number that decides what its videos look like."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .. import __version__
from ..caches import CacheConfig
from ..errors import EmptyPrompt, InvalidSetting, InvalidSize, InvalidSteps
from ..geometry import check_frames, check_size, image_tokens, latent_shape
from ..sampling import (
    GuidanceConfig,
    check_seed,
    check_steps,
    consecutive_seeds,
    find_solver,
    make_sigmas,
    truncate_sigmas,
)
from ..text import TEMPLATES, PromptTemplate, plain_text
from ..transformer import RopeSettings
from ..vae import Tiles
from ..video import check_fps
from .loras import LoraChoice
from .tiles import TilesChoice, check_choice, tiles_settings

NEGATIVE_PROMPT = (
    "Aerial view, aerial view, overexposed, low quality, deformation, a poor composition, bad hands, bad teeth, "
    "bad eyes, bad limbs, distortion"
)
"""The reference's, used when classifier-free guidance is on and no other is given."""

TEXT_TOKENS = 256
"""The longest prompt there is; shorter ones take a little less."""
MAX_STEPS = 10_000
MAX_VIDEOS = 10_000
MAX_PIXELS = 2**40
"""Of all frames together. Nothing holds so many; larger numbers are slips of the finger."""


@dataclass(frozen=True)
class GenerateRequest:
    """One prompt and everything that decides what its videos look like. `check` holds it to the rules.

    negative_prompt: used only with classifier-free guidance; None is the reference's. frames: 4k + 1. videos: how
    many, from consecutive seeds. strength: of a run that starts from given latents, the fraction of the steps that
    are run. tiles: of the VAE; FIT takes those that fit with the least to compute, None cuts nothing. fps: of
    the file that is written. loras: all of them act together. cache: skips passes of the transformer at the cost of
    quality; None computes all.
    """

    prompt: str
    negative_prompt: str | None = None
    template: PromptTemplate = TEMPLATES["video"]
    width: int = 848
    height: int = 480
    frames: int = 73
    steps: int = 50
    shift: float = 7.0
    solver: str = "euler"
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    seed: int = 0
    videos: int = 1
    strength: float = 1.0
    tiles: TilesChoice = field(default_factory=Tiles)
    rope: RopeSettings = field(default_factory=RopeSettings)
    fps: float = 24.0
    loras: tuple[LoraChoice, ...] = ()
    cache: CacheConfig | None = None

    def check(self) -> None:
        """Raise the BadInput that fits the first thing wrong; nothing is loaded for it."""
        check_prompt(self.prompt)
        plain_text(self.negative_prompt or "", "The negative prompt")
        check_size(self.width, self.height)
        check_frames(self.frames)
        if self.width * self.height * self.frames > MAX_PIXELS:
            raise InvalidSize(
                f"{self.width} x {self.height} with {self.frames} frames is more than any machine can hold. "
                "The released model is made for up to 1280 x 720 with 129 frames."
            )
        if check_steps(self.steps) > MAX_STEPS:
            raise InvalidSteps(f"steps is {self.steps}, but must be at most {MAX_STEPS}. 20 to 50 are usual.")
        truncate_sigmas(make_sigmas(self.steps, self.shift), self.strength)
        find_solver(self.solver)
        check_seed(self.seed)
        if not 1 <= self.videos <= MAX_VIDEOS:
            raise InvalidSetting(f"videos is {self.videos}, but must be from 1 to {MAX_VIDEOS} per prompt.")
        check_choice(self.tiles)
        for lora in self.loras:
            lora.check()
        check_fps(self.fps)

    @property
    def seeds(self) -> list[int]:
        return consecutive_seeds(self.seed, self.videos)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(T, H, W) of the latents."""
        return latent_shape(self.width, self.height, self.frames)

    @property
    def tokens(self) -> int:
        """Of image and a full text together."""
        return image_tokens(self.width, self.height, self.frames) + TEXT_TOKENS

    @property
    def used_negative(self) -> str | None:
        """The negative prompt of this run; None without classifier-free guidance."""
        if not self.guidance.uses_cfg:
            return None
        return NEGATIVE_PROMPT if self.negative_prompt is None else self.negative_prompt

    def settings(self, seed: int) -> dict[str, Any]:
        """Plain values that tell how one video was made, for its file."""
        names = {template.text: name for name, template in TEMPLATES.items()}
        return {
            "hyvideo": __version__,
            "prompt": self.prompt,
            "negative_prompt": self.used_negative,
            "template": names.get(self.template.text, self.template.text),
            **{name: getattr(self, name) for name in ("width", "height", "frames", "steps", "shift", "solver")},
            "guidance": self.guidance.embedded,
            **{name: value for name, value in asdict(self.guidance).items() if name.startswith("cfg_")},
            "cfg_rescale": self.guidance.rescale,
            "cfg_in_turn": not self.guidance.batched,
            "seed": seed,
            "strength": self.strength,
            "tiles": tiles_settings(self.tiles),
            "rope_extrapolate": self.rope.extrapolate,
            "rope_scale": list(self.rope.scale),
            "loras": [lora.settings() for lora in self.loras],
            "cache": self.cache.settings() if self.cache else None,
            "fps": self.fps,
        }


def check_prompt(prompt: str) -> None:
    """Raises EmptyPrompt for a prompt of blanks, InvalidSetting for one that is not text."""
    if not plain_text(prompt, "The prompt").strip():
        raise EmptyPrompt("The prompt is empty. Say in a few words what the video should show.")
