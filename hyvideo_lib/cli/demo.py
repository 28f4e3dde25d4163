"""`hyvideo demo`: a prompt of the demo model's small world to a clip, in seconds, with no download."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..demo import assets
from ..errors import FileMissing
from .arguments import Parser, add_cache, add_device, add_lora, add_sampling, add_swap, add_tiles
from .conflicts import check_conflicts
from .options import cache_options, choose_device, lora_options, precision_options, sampling_options, swap_options
from .outputs import FOLDER, check_suffix, numbered
from .report import Console

SUMMARY = "Make a small clip with the embedded demo model."
OUTPUT = FOLDER / "demo.mp4"
SEED = 0


def add_arguments(parser: Parser) -> None:
    parser.description = (
        f"{SUMMARY} It knows one shape (circle, square, triangle) in one of seven colours (red, green, blue, yellow, "
        "white, purple, orange) that moves left, right, up or down or stands still, on a black, gray, navy or beige "
        f"background, in clips of {assets.WIDTH} x {assets.HEIGHT} pixels and {assets.FRAMES} frames."
    )
    parser.add_argument("prompt", nargs="?", default=assets.PROMPT, help=f"(default: {assets.PROMPT!r})")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"the mp4 to write (default: {OUTPUT}, replaced each time)"
    )
    parser.add_argument("--force", action="store_true", help="replace the file named by --out if it exists")
    parser.add_argument("--seed", default=SEED, metavar="N", help=f"(default: {SEED}, so that runs are alike)")
    add_sampling(parser, steps=assets.STEPS, shift=assets.SHIFT, guidance=assets.GUIDANCE, negative="an empty one")
    add_tiles(parser)
    add_lora(
        parser, "; large is the demo's own, for prompts like 'a large red circle moving left on a black background'"
    )
    add_cache(parser)
    add_device(parser)
    add_swap(parser, assets.DOUBLE_BLOCKS, assets.SINGLE_BLOCKS)


def run(options: Namespace, console: Console) -> int:
    from ..pipeline import Files, GenerateRequest, check_files, check_loras
    from .render import Renderer, Task

    check_conflicts(options)
    output = check_suffix(options.out or OUTPUT, ".mp4", "--out")
    request = GenerateRequest(
        prompt=options.prompt,
        width=assets.WIDTH,
        height=assets.HEIGHT,
        frames=assets.FRAMES,
        fps=assets.FPS,
        loras=lora_options(options, {"large": assets.LORAS["kohya"]}),
        cache=cache_options(options),
        **sampling_options(options, negative=""),
    )
    request.check()
    files = Files(assets.TRANSFORMER, assets.VAE, assets.LLM, assets.CLIP)
    check_complete(files.transformer.parent, [files.transformer, files.vae, files.llm, files.clip])
    report = check_files(files)["transformer"]
    loras = check_loras(request.loras, report)
    precision, device = precision_options(options), choose_device(options.device)
    precision.check_device(device, report, request.tokens)
    (names,) = numbered(output, 1, request.videos)
    tasks = [Task(request, seed, name) for seed, name in zip(request.seeds, names, strict=True)]
    renderer = Renderer(
        files,
        precision,
        device,
        console,
        overwrite=options.force or options.out is None,
        loras=loras,
        swap=swap_options(options),
        measured=options.measure_ratios,
    )
    with one_thread():
        return renderer.render(tasks)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one CPU thread within the block.

    The demo's tensors are so small that a second thread gains little, and where cores are busy or a container counts
    more of them than it may use, threads wait for each other at every layer: 14 s became 136 s on two busy cores.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_complete(folder: Path, files: list[Path]) -> None:
    """Raises FileMissing if the package came without its demo model."""
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileMissing(
            f"The demo model is incomplete: {', '.join(missing)} missing in {folder}. Install hyvideo again, or clone "
            "the repository anew."
        )
