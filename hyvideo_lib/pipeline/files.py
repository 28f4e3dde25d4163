"""The four files of a run, and whether they are what they are given as and belong together: from headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from ..checkpoint import FileReport, inspect_file
from ..checkpoint.build_text import check_tokenizer
from ..checkpoint.variants import KIND_NAMES
from ..errors import UnsupportedFile, WrongKind
from ..text import PromptTemplate


@dataclass(frozen=True)
class Files:
    """Where the models are. A tokenizer that is None is looked for beside its encoder."""

    transformer: Path
    vae: Path
    llm: Path
    clip: Path
    llm_tokenizer: Path | None = None
    clip_tokenizer: Path | None = None

    def names(self) -> dict[str, str]:
        """The files' names without folders, for the settings inside a video."""
        return {field.name: path.name for field in fields(self) if (path := getattr(self, field.name))}


@dataclass(frozen=True)
class PlannedFiles:
    """Those of a plan; None stands for the released model's."""

    transformer: Path | None = None
    vae: Path | None = None
    llm: Path | None = None
    clip: Path | None = None


KIND_OF_ROLE = {"transformer": "transformer", "vae": "vae", "llm": "llama", "clip": "clip"}


def check_files(files: Files | PlannedFiles) -> Mapping[str, FileReport]:
    """Look at the headers of all files: that they are what they are given as, and that they fit together.

    Returns the reports by role. Raises FileMissing, FileTruncated, FileUnreadable, WrongKind, UnsupportedFile.
    """
    given = {role: path for role in KIND_OF_ROLE if (path := getattr(files, role))}
    reports = {role: check_file(role, path) for role, path in given.items()}
    config = {role: report.config or {} for role, report in reports.items()}
    if "transformer" not in reports:
        return reports
    if reports["transformer"].variant != "t2v":
        raise UnsupportedFile(
            f"{given['transformer'].name} is no text-to-video transformer: {' '.join(reports['transformer'].notes)} "
            "Give a transformer that takes as many channels as it gives."
        )
    wanted = config["transformer"]
    for role, has, needed, what in (
        ("vae", "latent_channels", "out_channels", "latent channels"),
        ("llm", "hidden_size", "text_dim", "numbers per token"),
        ("clip", "hidden_size", "pooled_dim", "numbers per prompt"),
    ):
        if role in config and config[role][has] != wanted[needed]:
            raise UnsupportedFile(
                f"{given[role].name} and {given['transformer'].name} do not belong together: one has "
                f"{config[role][has]} {what}, the other {wanted[needed]}. Give the files of one model."
            )
    return reports


def check_file(role: str, path: Path, variant: str | None = None) -> FileReport:
    """The report on one file, which must be what its role asks for: "transformer", "vae", "llm" or "clip".

    variant: what the user says a transformer is; the report says so where its tensors contradict.
    """
    kind = KIND_OF_ROLE[role]
    report = inspect_file(path, variant, (kind,))
    if report.kind != kind and report.kind != "unknown":
        raise WrongKind(
            f"{path.name} was given as {KIND_NAMES[kind]}, but it is {KIND_NAMES[report.kind]}. "
            f"Give another file as {role}."
        )
    if not report.supported:
        raise UnsupportedFile(f"{path.name} cannot be used as {KIND_NAMES[kind]}. {report.reason}")
    return report


def encodes(vae: FileReport) -> bool:
    """Whether a VAE that is reported on turns frames into latents; a tiny one, or a decoder alone, does not."""
    return bool((vae.config or {}).get("has_encoder", False))


def check_tokenizers(files: Files, template: PromptTemplate) -> None:
    """Find both tokenizers and hold them to their encoders: seconds at most, where loading the encoders takes longer.

    Raises FileMissing, FileUnreadable, UnsupportedFile, InvalidTemplate, MissingPackage.
    """
    check_tokenizer(files.llm, files.llm_tokenizer, template, KIND_OF_ROLE["llm"])
    check_tokenizer(files.clip, files.clip_tokenizer, template, KIND_OF_ROLE["clip"])


def vae_scaling(path: Path) -> float:
    """What latents of this VAE are multiplied by for the transformer, from the file's header."""
    return float((check_file("vae", path).config or {})["scaling"])
