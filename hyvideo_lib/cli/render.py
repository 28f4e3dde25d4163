"""Tasks to files: the stages of the pipeline run over all videos of a command, each failing by itself.

One bad prompt does not stop the others; what would stop them too (Ctrl-C, memory, a full disk) ends the run. Latents go
to a file as soon as they are sampled, since minutes or hours are in them, and stay there until the video is written.
"""

from __future__ import annotations

import logging
import secrets
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from ..atomic import check_output
from ..caches import CacheReport, Measurement, save_curve
from ..errors import DiskFull, HyvError, Interrupted, OutOfMemory, OutputExists, OutputNotWritable
from ..lora import LoraUse
from ..memory import BlockSwap
from ..pipeline import (
    STAGES,
    Clock,
    Files,
    GenerateRequest,
    Notice,
    PixelStage,
    Precision,
    RunReport,
    SampleStage,
    StageReport,
    Texts,
    TextStage,
    check_measuring,
    check_prompt,
    joined,
    save_latents,
    tiles_settings,
)
from ..vae import Tiles
from ..video import TakenVideo, write_video
from .card import CardHost
from .interrupt import stop_on_signals, telling_stops
from .progress import Progress, duration
from .report import Console, describe, unexpected

logger = logging.getLogger(__name__)

FATAL = (Interrupted, OutOfMemory, DiskFull)
"""Errors that the next video would meet as well."""


@dataclass(eq=False)
class Task:
    """One video on its way. `settings` are those that go into its file.

    keep: where latents are wanted for good. kept: where they are; for now only, if just until the video is written.
    texts, latents: what the stages made so far. stages: the report on each. A stage that served several videos, such as
    loading, stands with the first of them alone, so that the seconds of all videos add up.
    """

    request: GenerateRequest
    seed: int
    output: Path
    line: int | None = None
    keep: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, StageReport] = field(default_factory=dict)
    texts: Texts | None = None
    latents: Tensor | None = None
    notices: list[Notice] = field(default_factory=list)
    kept: Path | None = None
    error: HyvError | None = None
    is_done: bool = False
    is_kept_for_now: bool = True

    @property
    def warnings(self) -> list[dict[str, str]]:
        return [asdict(notice) for notice in (*self.prompt_notices, *self.notices)]

    @property
    def prompt_notices(self) -> tuple[Notice, ...]:
        return self.texts.warnings if self.texts else ()

    @property
    def seconds(self) -> dict[str, float]:
        """Per stage."""
        return RunReport(self.stages).seconds

    @property
    def label(self) -> str:
        """How to speak of it among others."""
        return f"line {self.line}" if self.line is not None else self.output.name

    @property
    def is_open(self) -> bool:
        return self.error is None and not self.is_done

    def describe(self) -> dict[str, Any]:
        """What the report says of it."""
        about: dict[str, Any] = {"prompt": self.request.prompt, "seed": self.seed}
        if self.line is not None:
            about["line"] = self.line
        about["latents"] = str(self.kept) if self.kept else None
        if self.is_done:
            about = {"file": str(self.output), **about, "settings": self.settings}
        about |= {"seconds": self.seconds, "report": RunReport(self.stages).to_dict()}
        if self.error:
            about["error"] = describe(self.error)
        return {**about, "warnings": self.warnings}


class Renderer:
    """What all videos of a command share."""

    def __init__(
        self,
        files: Files,
        precision: Precision,
        device: str,
        console: Console,
        overwrite: bool,
        loras: Sequence[LoraUse] = (),
        swap: BlockSwap = BlockSwap(),  # noqa: B008 (frozen)
        measured: str | None = None,
    ) -> None:
        """loras: those of all requests, which are told about before the work. swap: see SampleStage.

        measured: where magnitude ratios are to be written, measured over all videos.
        """
        self.files, self.precision, self.console, self.overwrite = files, precision, console, overwrite
        self.swap = swap
        self.ratios = Path(measured) if measured else None
        self._measurement = Measurement() if measured else None
        self.loras = loras
        self.progress = Progress(console)
        self.host = CardHost(device, on_stage=self.progress.stage, on_step=self.progress.step)
        self.encoding_notices: list[Notice] = []
        self._video: TakenVideo | None = None
        self._begin = time.perf_counter()

    def render(self, tasks: Sequence[Task], start: Tensor | None = None, video: TakenVideo | None = None) -> int:
        """Make all videos, report, and return the exit code.

        Tasks of one request stand together. start: unscaled latents to begin with; video: the same as frames, whose
        sound goes into every file.
        """
        self._video = video

        def work() -> None:
            self._tell_loras()
            self._check(tasks)
            if video:
                self.console.note(video.sentences())
            self._run_stages(tasks, start)
            self._write_ratios(tasks)

        return self._guarded(tasks, work)

    def decode(self, task: Task) -> int:
        """Finish one video whose latents are there already, and report."""

        def work() -> None:
            self._check([task])
            self._decode([task])

        return self._guarded([task], work)

    def _guarded(self, tasks: Sequence[Task], work: Callable[[], None]) -> int:
        """Do the work under the signal handlers. An error that ends the run is every open task's."""
        failure: HyvError | None = None
        try:
            with telling_stops(), stop_on_signals(self.host.cancel):
                work()
        except HyvError as error:
            failure = error
        except Exception as error:
            failure = unexpected(error)
        self.progress.close()
        for task in tasks:
            if failure and task.is_open:
                task.error = self._with_latents(failure, task)
        return self._report(tasks, failure)

    def _tell_loras(self) -> None:
        for use in self.loras:
            self.console.note(f"LoRA {use.describe()}")
            for warning in use.warnings().values():
                self.console.note(f"Warning: {warning}")

    def _check(self, tasks: Sequence[Task]) -> None:
        """What can be told of each task before anything is loaded."""
        if self.ratios:
            check_output(self.ratios, self.overwrite)
            check_measuring(tasks[0].request)
        for task in tasks:
            if task.is_open:
                with self._attempt(task):
                    check_prompt(task.request.prompt)
                    check_output(task.output, self.overwrite)
                    if task.keep:
                        check_output(task.keep, self.overwrite)

    def _run_stages(self, tasks: Sequence[Task], start: Tensor | None) -> None:
        if not any(task.is_open for task in tasks):
            return
        shared = Clock(self.host)
        if self._video is not None:
            with closing(PixelStage(self.files.vae, self.precision, self.host, shared)) as pixels:
                start = pixels.encode(self._video.video, tasks[0].request.tiles, shared)
            self.encoding_notices = shared.notices
        requests = [list(group) for _, group in groupby(tasks, key=lambda task: id(task.request))]
        with closing(TextStage(self.files, self.precision, self.host, shared)) as encode:
            for videos in requests:
                self._encode(videos, encode, shared)
        for videos in requests:
            self._sample(videos, start)
            self._decode(videos)

    def _encode(self, videos: Sequence[Task], encode: TextStage, loading: Clock) -> None:
        """Encode the one prompt of these videos."""
        opened = [task for task in videos if task.is_open]
        if not opened:
            return
        with self._attempt(opened[0], loading) as clock:
            opened[0].texts = encode(opened[0].request, clock)
        for task in opened:
            task.texts, task.error = opened[0].texts, opened[0].error

    def _sample(self, videos: Sequence[Task], start: Tensor | None) -> None:
        """Latents of these videos of one prompt."""
        if not any(task.is_open for task in videos):
            return
        loading = Clock(self.host)
        with closing(SampleStage(self.files, self.precision, self.host, loading, self.swap)) as sample:
            for task in videos:
                if task.texts is None or not task.is_open:
                    continue
                if len(videos) > 1 or task.line is not None:
                    self.console.note(f"{task.output.name}: {task.request.prompt} (seed {task.seed})")
                with self._attempt(task, loading) as clock:
                    task.latents = sample(task.request, task.texts, task.seed, clock, start, self._measurement)
                    task.settings = {
                        **task.request.settings(task.seed),
                        **self._surroundings(clock.stages["sample"]),
                        "input": self._video.to_dict() if self._video else None,
                    }
                    self._tell_cache(task, sample.cache_report)
                    self._keep(task)

    def _tell_cache(self, task: Task, report: CacheReport | None) -> None:
        """Put what the step cache did into the settings, and say it."""
        if report:
            task.settings["cache"] = report.to_dict()
            self.progress.close()
            if not self.console.quiet:
                self.console.note(f"{report.method} {report.sentence()}")

    def _write_ratios(self, tasks: Sequence[Task]) -> None:
        done = [task for task in tasks if task.is_done]
        if self.ratios and self._measurement and done:
            request = done[0].request
            about = {
                "files": self.files.names(),
                "videos": len(done),
                **{name: getattr(request, name) for name in ("width", "height", "frames", "steps", "shift")},
            }
            save_curve(self.ratios, self._measurement.curve(), about, self.overwrite)
            self.console.note(f"Magnitude ratios: {self.ratios}")

    def _decode(self, videos: Sequence[Task]) -> None:
        """Files of these videos, which have latents."""
        if not any(task.is_open for task in videos):
            return
        loading = Clock(self.host)
        with closing(PixelStage(self.files.vae, self.precision, self.host, loading)) as pixels:
            for task in videos:
                if task.latents is None or not task.is_open:
                    continue
                with self._attempt(task, loading) as clock:
                    self._write(task, pixels, clock)
                if task.is_done:
                    self._tell(task)

    def _write(self, task: Task, pixels: PixelStage, clock: Clock) -> None:
        """Decode into the file: frames go to it as they are done, so that the video never exists as a whole."""
        assert task.latents is not None
        request = task.request

        def write(parts: Iterator[Tensor], tiles: Tiles | None) -> dict[str, Any]:
            def settings() -> dict[str, Any]:
                stages = joined((task.stages, clock.stages))
                stages.pop("write", None)  # that one cannot stand in what is written
                report = RunReport(stages)
                decoded = {"tiles": tiles_settings(tiles), "asked_tiles": tiles_settings(request.tiles)}
                decoded["preview"] = pixels.is_preview
                return {**task.settings, **decoded, "seconds": report.seconds, "report": report.to_dict()}

            size = request.width, request.height
            sound = self._video.sound if self._video else None
            with clock.stage("write", is_told=False), closing(self._one_by_one(parts, request.frames)) as frames:
                write_video(task.output, frames, *size, request.fps, settings(), self.overwrite, settings, sound)
            return settings()

        task.settings = pixels.render(task.latents, request.tiles, clock, write)
        task.latents, task.is_done = None, True
        if task.kept and task.is_kept_for_now:
            task.kept.unlink(missing_ok=True)
            task.kept = None

    def _one_by_one(self, parts: Iterator[Tensor], total: int) -> Generator[Tensor, None, None]:
        """The frames of all parts, with a chance to stop before each. Once all are decoded, writing has a bar."""
        done = 0
        for part in parts:
            done += len(part)
            is_last = done == total
            if is_last:
                self.host.stage(STAGES["write"].title, len(part))
            for index, frame in enumerate(part):
                self.host.check_interrupt()
                yield frame
                if is_last:
                    self.host.step(index + 1, len(part))
            del part

    def _tell(self, task: Task) -> None:
        self.progress.close()
        request, total = task.request, duration(sum(task.seconds.values()))
        self.console.say(
            f"{task.output}  ({request.frames} frames of {request.width} x {request.height}, seed {task.seed}, {total})"
        )

    @contextmanager
    def _attempt(self, task: Task, loading: Clock | None = None) -> Iterator[Clock]:
        """A part of a task under a clock of its own: what fails in it is the task's error, and ends there unless FATAL.

        loading: a clock whose stages several tasks need; they are charged to the first one, and taken off the clock.
        """
        clock = Clock(self.host)
        if loading:
            task.stages, loading.stages = joined((task.stages, loading.stages)), {}
        try:
            with telling_stops():
                yield clock
        except HyvError as error:
            task.error = self._with_latents(error, task)
            if isinstance(error, FATAL):
                raise task.error from error
        except Exception as error:
            task.error = self._with_latents(unexpected(error), task)
        finally:
            task.stages = joined((task.stages, clock.stages))
            task.notices += clock.notices

    def _keep(self, task: Task) -> None:
        """Put the latents where they outlive this process: where the user said, else beside the video, else in temp."""
        assert task.latents is not None
        name = f"{task.output.stem}-{secrets.token_hex(3)}.latents.safetensors"
        places = [task.keep, task.output.parent / name, Path(tempfile.gettempdir(), name)]
        for path in filter(None, places):
            overwrite = self.overwrite and path == task.keep
            try:
                save_latents(path, task.latents, task.settings, overwrite)
            except (DiskFull, OutputNotWritable, OutputExists) as error:
                logger.warning("latents could not be kept in %s: %s", path, error)
                continue
            task.kept, task.is_kept_for_now = path, task.keep is None
            return

    def _with_latents(self, error: HyvError, task: Task) -> HyvError:
        """The error, with the whereabouts of the latents if the task has any."""
        if task.latents is None:
            return error
        if task.kept is None:
            self._keep(task)
        if task.kept is None:
            text = f"Its latents could not be kept: no room in {task.output.parent} nor in {tempfile.gettempdir()}."
        else:
            text = f"The latents are kept in {task.kept}; `hyvideo generate --decode` makes the video from them."
        told = type(error)(f"{error} {text}")
        told.__cause__ = error
        return told

    def _surroundings(self, sampled: StageReport) -> dict[str, Any]:
        """What else decides the numbers: files, device, dtypes, and what became of the attention and compiling that
        were asked for."""
        device, precision = self.host.device, self.precision
        asked = asdict(precision.compiling) if precision.compiling else None
        return {
            "files": self.files.names(),
            "device": str(device),
            "dtype": str(precision.transformer_dtype(device)).removeprefix("torch."),
            "storage_dtype": precision.storage,
            "matmul": precision.matmul,
            "attention": sampled.attention,
            "compile_asked": asked,
            "compile": None if sampled.uncompiled else asked,
            "vae_dtype": str(precision.vae_dtype(device)).removeprefix("torch."),
        }

    def _notices(self, tasks: Sequence[Task]) -> Iterator[Notice]:
        """Those on a prompt once for all of its videos, then those on the videos."""
        yield from self.encoding_notices
        for _, same in groupby(tasks, key=lambda task: task.texts):
            yield from next(same).prompt_notices
        for task in tasks:
            yield from task.notices

    def _report(self, tasks: Sequence[Task], failure: HyvError | None) -> int:
        """failure: what ended the run, if that is no task's."""
        failed = [task for task in tasks if task.error]
        report: dict[str, Any] = {
            "videos": [task.describe() for task in tasks if task.is_done],
            "failed": [task.describe() for task in failed],
            "warnings": [asdict(notice) for notice in self._notices(tasks)],
            "seconds": round(time.perf_counter() - self._begin, 3),
        }
        if self._video:
            report["input"] = self._video.to_dict()
        if self.loras:
            report["loras"] = [use.lora.coverage.to_dict() for use in self.loras]
            told = [entry for use in self.loras for entry in use.warnings().items()]
            report["warnings"] += [{"code": code, "message": warning} for code, warning in told]
        if not failed and failure:
            return self.console.fail(failure, report)
        if not failed:
            self.console.result(report)
            return 0
        first = failed[0].error
        assert first is not None
        if len(tasks) == 1:
            return self.console.fail(first, report)
        for error, group in groupby(failed, key=lambda task: task.error):
            names = ", ".join(task.label for task in group)
            self.console.note(f"Error in {names}: {error}")
        self.console.note(f"{len(tasks) - len(failed)} of {len(tasks)} videos were made.")
        return self.console.fail(first, report, is_told=True)
