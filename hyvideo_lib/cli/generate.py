"""`hyvideo generate`: the whole pipeline from named files."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, InvalidFrames, InvalidSetting, InvalidSize
from ..text.plain import plain_text
from .arguments import TEMPLATES, Parser, add_cache, add_device, add_lora, add_sampling, add_swap, add_tiles, number
from .conflicts import check_conflicts
from .options import (
    cache_options,
    choose_device,
    lora_options,
    precision_options,
    rope_options,
    sampling_options,
    swap_options,
    template_options,
    tiles_options,
)
from .outputs import check_suffix, default_output, numbered
from .prompts import PromptLine, read_prompts
from .report import Console
from .start import FPS, FRAMES, HEIGHT, WIDTH, Start, check_start, find_start, from_latents

if TYPE_CHECKING:
    from ..pipeline import Files, GenerateRequest
    from .render import Task

SUMMARY = "Make videos from prompts with model files of your own."
STEPS, SHIFT, GUIDANCE = 50, 7.0, 6.0
STRENGTH = 0.7


def add_arguments(parser: Parser) -> None:
    parser.description = (
        f"{SUMMARY} Settings and seed are stored in the mp4: `hyvideo inspect FILE.mp4` prints them. Everything is "
        "checked before anything is loaded. Several prompts are made one after the other, and one that fails does not "
        "stop the rest. The seconds that are told for a video add up over all of them: what several share, such as "
        "loading, is counted with the first."
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what the video should show; several make several")
    parser.add_argument(
        "--prompts-file",
        type=Path,
        metavar="FILE",
        help="a prompt a line, in UTF-8 or with a byte order mark; blank lines and lines beginning with # are skipped",
    )
    files = parser.add_argument_group("model files (.safetensors; transformer and llm also GGUF; folders of parts)")
    files.add_argument("--transformer", type=Path, metavar="FILE", help="the diffusion transformer")
    files.add_argument("--vae", type=Path, metavar="FILE", help="the video VAE")
    files.add_argument("--llm", type=Path, metavar="FILE", help="the Llama text encoder")
    files.add_argument("--clip", type=Path, metavar="FILE", help="the CLIP-L text encoder")
    for name in ("llm", "clip"):
        files.add_argument(
            f"--{name}-tokenizer",
            type=Path,
            metavar="PATH",
            help="its tokenizer.json, or the folder with it (default: looked for beside the encoder)",
        )
    _add_prompt_options(parser)
    _add_size(parser)
    add_sampling(parser, steps=STEPS, shift=SHIFT, guidance=GUIDANCE, negative="the reference's")
    parser.add_argument(
        "--seed", metavar="N", help="a whole number; all prompts get the same (default: a random one, which is told)"
    )
    parser.add_argument(
        "--rope-extrapolate", action="store_true", help="RIFLEx: for more than 192 frames without repetition"
    )
    parser.add_argument(
        "--rope-scale",
        metavar="T,H,W",
        help="what positions along time, height and width are multiplied by, 0.1 to 4; below 1 the model believes the "
        "video smaller than it is, which can help beyond the trained size (default: 1,1,1)",
    )
    _add_input(parser)
    add_tiles(parser)
    add_lora(parser)
    add_cache(parser)
    add_device(parser)
    add_swap(parser)
    _add_output(parser)


def _add_prompt_options(parser: Parser) -> None:
    group = parser.add_argument_group("prompt template")
    group.add_argument("--template", default="video", metavar="NAME", help=f"{', '.join(TEMPLATES)} (default: video)")
    group.add_argument(
        "--template-text",
        metavar="TEXT",
        help="a template of your own, with {} where the prompt goes; \\n stands for a line break",
    )


def _add_size(parser: Parser) -> None:
    group = parser.add_argument_group("size")
    for name, default, text in (
        ("width", WIDTH, "pixels, a multiple of 16"),
        ("height", HEIGHT, "pixels, a multiple of 16"),
        ("frames", FRAMES, "4k + 1"),
    ):
        error = InvalidFrames if name == "frames" else InvalidSize
        group.add_argument(
            f"--{name}",
            type=number(int, f"--{name}", error),
            metavar="N",
            help=f"{text} (default: {default}, or the input's)",
        )
    group.add_argument(
        "--fps",
        type=number(float, "--fps", InvalidSetting),
        metavar="X",
        help=f"frames per second of the file (default: {FPS:g}, or the input's); an input video at another rate is "
        "resampled in time",
    )
    group.description = "The released model is made for 1280 x 720 and 960 x 544 with up to 129 frames."


def _add_input(parser: Parser) -> None:
    group = parser.add_argument_group("video to video")
    group.add_argument(
        "--input-video",
        type=Path,
        metavar="FILE",
        help="begin with this video or picture, scaled and cropped to the size; its first frames (129 unless --frames "
        "says otherwise) one by one at its own rate, with their sound; what is found and taken is told",
    )
    group.add_argument("--input-latents", type=Path, metavar="FILE", help="begin with these latents")
    group.add_argument(
        "--strength",
        type=number(float, "--strength", InvalidSetting),
        metavar="X",
        help=f"above 0 and up to 1: how much the input is changed, as a fraction of the steps (default: {STRENGTH})",
    )


def _add_output(parser: Parser) -> None:
    group = parser.add_argument_group("files written")
    group.add_argument(
        "--out", type=Path, metavar="FILE", help="the mp4; several get -1, -2, ... (default: output/hyvideo-TIME.mp4)"
    )
    group.add_argument("--force", action="store_true", help="replace files that exist")
    group.add_argument("--save-latents", type=Path, metavar="FILE", help="also write the latents (.safetensors)")
    group.add_argument(
        "--decode", type=Path, metavar="FILE", help="no sampling: make the video of these latents; needs only --vae"
    )


def run(options: Namespace, console: Console) -> int:
    check_conflicts(options)
    return _decode(options, console) if options.decode else _generate(options, console)


def _generate(options: Namespace, console: Console) -> int:
    from ..pipeline import check_cache, check_files, check_loras, check_tokenizers
    from .render import Renderer

    prompts = _prompts(options)
    start = find_start(options)
    request = request_from(options, start)
    replace(request, prompt="-").check()  # what all prompts share; each prompt is held to the rules by itself
    tasks = _tasks(options, prompts, request)
    precision, device, files = precision_options(options), choose_device(options.device), _files(options)
    reports = check_files(files)
    check_tokenizers(files, request.template)
    check_start(start, request, reports)
    loras = check_loras(request.loras, reports["transformer"])
    check_cache(request.cache, reports["transformer"], request.width * request.height)
    precision.check_device(device, reports["transformer"], request.tokens)
    swap = swap_options(options)
    console.note(f"Seed {request.seed}")
    renderer = Renderer(files, precision, device, console, options.force, loras, swap, options.measure_ratios)
    return renderer.render(tasks, start.latents, start.video)


def _prompts(options: Namespace) -> list[PromptLine]:
    if options.prompts and options.prompts_file:
        raise BadInput("Prompts were given both as words and as --prompts-file. Give one of the two.")
    if options.prompts_file:
        return read_prompts(options.prompts_file)
    if not options.prompts:
        raise BadInput("There is no prompt. Give one in quotes, or a file of them with --prompts-file.")
    count = len(options.prompts)
    for index, text in enumerate(options.prompts, 1):
        plain_text(text, "The prompt" if count == 1 else f"Prompt {index} of {count}")
    return [PromptLine(text) for text in options.prompts]


def _files(options: Namespace) -> Files:
    from ..pipeline import Files

    names = ("transformer", "vae", "llm", "clip")
    missing = [f"--{name}" for name in names if getattr(options, name) is None]
    if missing:
        raise BadInput(
            f"Model files are needed: {', '.join(missing)} missing. To try hyvideo without any, use `hyvideo demo`."
        )
    return Files(*(getattr(options, name) for name in (*names, "llm_tokenizer", "clip_tokenizer")))


def request_from(options: Namespace, start: Start) -> GenerateRequest:
    """Everything that all prompts share; the prompt itself is empty."""
    from ..pipeline import GenerateRequest

    if options.strength is not None and not start.is_given:
        raise InvalidSetting("strength needs something to begin with: give --input-video or --input-latents.")
    strength = STRENGTH if options.strength is None else options.strength
    return GenerateRequest(
        prompt="",
        template=template_options(options),
        width=start.width,
        height=start.height,
        frames=start.frames,
        fps=start.fps,
        strength=strength if start.is_given else 1.0,
        rope=rope_options(options),
        loras=lora_options(options),
        cache=cache_options(options),
        **sampling_options(options),
    )


def _tasks(options: Namespace, prompts: list[PromptLine], request: GenerateRequest) -> list[Task]:
    from .render import Task

    output = check_suffix(options.out or default_output(), ".mp4", "--out")
    outputs = numbered(output, len(prompts), request.videos)
    latents: list[list[Path | None]] = [[None] * request.videos for _ in prompts]
    if options.save_latents:
        path = check_suffix(options.save_latents, ".safetensors", "--save-latents")
        latents = [list(row) for row in numbered(path, len(prompts), request.videos)]
    tasks = []
    for prompt, names, keeps in zip(prompts, outputs, latents, strict=True):
        own = replace(request, prompt=prompt.text)
        for seed, name, keep in zip(own.seeds, names, keeps, strict=True):
            tasks.append(Task(own, seed, name, prompt.number, keep))
    return tasks


def _readable(prompt: object) -> str:
    """The prompt that latents were made with, as a run takes one; other words where it is none."""
    try:
        return prompt if isinstance(prompt, str) and plain_text(prompt, "The prompt").strip() else "(unknown)"
    except InvalidSetting:
        return "(unknown)"


def _without_sound(settings: dict[str, Any], console: Console) -> dict[str, Any]:
    """The settings of latents, from which an input's sound cannot come; its loss is told."""
    source: Any = settings.get("input")
    taken = source.get("taken") if isinstance(source, dict) else None
    if not isinstance(taken, dict) or not taken.get("sound"):
        return settings
    console.note("Warning: the sound of the input is lost, as latents hold none.")
    return {**settings, "input": {**source, "taken": {**taken, "sound": False}}}


def _decode(options: Namespace, console: Console) -> int:
    """Latents that a run kept, to the video it did not come to write."""
    from ..pipeline import Files, GenerateRequest, check_file, check_latents, load_latents
    from .render import Renderer, Task

    if options.vae is None:
        raise BadInput("Decoding needs the VAE: --vae FILE missing.")
    latents, settings = load_latents(options.decode)
    start = from_latents(options, latents, settings)
    settings = _without_sound(settings, console)
    seed = settings.get("seed")
    request = GenerateRequest(
        prompt=_readable(settings.get("prompt")),
        width=start.width,
        height=start.height,
        frames=start.frames,
        fps=start.fps,
        seed=seed if isinstance(seed, int) else 0,
        tiles=tiles_options(options),
    )
    request.check()
    check_latents(latents, request, (check_file("vae", options.vae).config or {})["latent_channels"])
    own = request.settings(request.seed)
    settings = {**own, **settings, "tiles": own["tiles"], "fps": start.fps}
    task = Task(
        request,
        request.seed,
        check_suffix(options.out or default_output(), ".mp4", "--out"),
        settings=settings,
        latents=latents,
        kept=options.decode,
        is_kept_for_now=False,
    )
    files = Files(options.decode, options.vae, options.decode, options.decode)  # only the VAE is opened
    renderer = Renderer(files, precision_options(options), choose_device(options.device), console, options.force)
    return renderer.decode(task)
