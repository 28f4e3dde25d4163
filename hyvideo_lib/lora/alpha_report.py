"""Where a LoRA's alpha stands, from its header and what lies beside it: for `inspect`, which knows no transformer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoint import FileReport
from ..checkpoint.lora_resolve import RELEASED, match_names
from ..checkpoint.lora_tensors import ALPHA
from ..checkpoint.read import Header, read_header
from ..errors import FileUnreadable, UnsupportedFile
from .alpha_sources import CONFIGS, read_alpha_sources
from .files import OWN_NAME, find_lora
from .scales import TENSORS, Scales


@dataclass(frozen=True)
class AlphaReport:
    """places: what states alpha, in words. notes: what does not count. refusal: why a loader refuses; empty if not."""

    places: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    refusal: str = ""


def report_alpha(path: str | Path) -> AlphaReport:
    """Of a LoRA's file. Numbers in its tensors are not looked at. Raises what reading a header raises."""
    header = read_header(path)
    try:
        ranks, with_tensors = _ranks(header)
        scales = Scales(read_alpha_sources(header, ranks))
        places = [
            TENSORS if module in with_tensors else scales.of(module, rank).source for module, rank in ranks.items()
        ]
    except (UnsupportedFile, FileUnreadable) as error:
        return AlphaReport(refusal=str(error))
    return AlphaReport(tuple(dict.fromkeys(places)), scales.notes)


def with_alpha(report: FileReport, file: Path) -> tuple[FileReport, tuple[str, ...]]:
    """A recogniser's report with what is said of a LoRA's alpha, and the places that state it; others as they are."""
    if report.kind != "lora" or not report.supported or not file.is_file():
        return report, ()
    alpha = report_alpha(file)
    notes = (*report.notes, *(f"Alpha: {place}." for place in alpha.places), *alpha.notes)
    return replace(report, supported=not alpha.refusal, reason=alpha.refusal, notes=notes), alpha.places


def peft_file(path: Path) -> Path:
    """The weights of a folder that PEFT or diffusers wrote for a LoRA; any other path itself. Raises as `find_lora`."""
    is_peft = path.is_dir() and any((path / name).is_file() for name in (OWN_NAME, *CONFIGS))
    return find_lora(path) if is_peft else path


def _ranks(header: Header) -> tuple[dict[str, int], set[str]]:
    """The ranks of modules by their paths in the model, and those with an alpha tensor. Raises UnsupportedFile."""
    modules = match_names(header, RELEASED).modules
    ranks = {module.hit.name: module.rank for module in modules if module.rank}
    return ranks, {module.hit.name for module in modules if ALPHA in module.tensors}
