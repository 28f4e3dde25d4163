"""The stages in a row: prompt to text states, noise to latents, latents to frames.

`generate` runs one request through all of them; a caller with many requests (the command line) keeps a stage open over
several.
"""

from typing import TYPE_CHECKING

from ..lazy import names_from

if TYPE_CHECKING:
    from .caches import check_cache, check_measuring
    from .clock import STAGES, Clock
    from .embeds import load_embeds, save_embeds
    from .files import Files, check_file, check_files, check_tokenizers
    from .ladder import Ladder
    from .latents import check_latents, load_latents, save_latents, save_native_latents
    from .loras import LoraChoice, check_loras, load_loras
    from .notices import Notice
    from .precision import COMPUTE_DTYPES, DTYPES, Precision
    from .report import RunReport, StageLog, StageReport, describe_tiles, joined, measured
    from .request import NEGATIVE_PROMPT, GenerateRequest, check_prompt
    from .run import Result, generate
    from .sampler import SampleRun, offload_transformer
    from .settled import SettledRuns
    from .stages import PixelStage, SampleStage, Texts, TextStage
    from .texts import TEXT_WORKING_BYTES, bringing_layers, offload_text_encoder
    from .tiles import FIT, FIT_SHARED, TilesChoice, VAEWork, tiles_settings
else:
    __getattr__ = names_from(
        __name__,
        {
            "caches": "check_cache check_measuring",
            "clock": "STAGES Clock",
            "embeds": "load_embeds save_embeds",
            "files": "Files check_file check_files check_tokenizers",
            "ladder": "Ladder",
            "latents": "check_latents load_latents save_latents save_native_latents",
            "loras": "LoraChoice check_loras load_loras",
            "notices": "Notice",
            "precision": "COMPUTE_DTYPES DTYPES Precision",
            "report": "RunReport StageLog StageReport describe_tiles joined measured",
            "request": "NEGATIVE_PROMPT GenerateRequest check_prompt",
            "run": "Result generate",
            "sampler": "SampleRun offload_transformer",
            "settled": "SettledRuns",
            "stages": "PixelStage SampleStage Texts TextStage",
            "texts": "TEXT_WORKING_BYTES bringing_layers offload_text_encoder",
            "tiles": "FIT FIT_SHARED TilesChoice VAEWork tiles_settings",
        },
    )

__all__ = [
    "COMPUTE_DTYPES",
    "DTYPES",
    "FIT",
    "FIT_SHARED",
    "NEGATIVE_PROMPT",
    "STAGES",
    "TEXT_WORKING_BYTES",
    "Clock",
    "Files",
    "GenerateRequest",
    "Ladder",
    "LoraChoice",
    "Notice",
    "PixelStage",
    "Precision",
    "Result",
    "RunReport",
    "SampleRun",
    "SampleStage",
    "SettledRuns",
    "StageLog",
    "StageReport",
    "TextStage",
    "Texts",
    "TilesChoice",
    "VAEWork",
    "bringing_layers",
    "check_cache",
    "check_file",
    "check_files",
    "check_latents",
    "check_loras",
    "check_measuring",
    "check_prompt",
    "check_tokenizers",
    "describe_tiles",
    "generate",
    "joined",
    "load_embeds",
    "load_latents",
    "load_loras",
    "measured",
    "offload_text_encoder",
    "offload_transformer",
    "save_embeds",
    "save_latents",
    "save_native_latents",
    "tiles_settings",
]
