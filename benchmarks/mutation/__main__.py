"""`python -m benchmarks.mutation [MODULE...]`: how many faults the tests notice, and those that they miss."""

from __future__ import annotations

import argparse
import ast
import importlib.machinery
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.mutation.faults import count_faults, plant
from benchmarks.rows import hardware

ROOT = Path(__file__).parents[2]
LIBRARY, TESTS = "hyvideo_lib", "tests/hyvideo_lib"
RECOGNISER = (
    f"{TESTS}/checkpoint/test_recogniser_words.py",
    *(f"{TESTS}/checkpoint/test_recogniser_{name}.py" for name in ("report", "lora", "pickles")),
    "tests/properties/test_recogniser.py",
    *(f"{TESTS}/checkpoint/test_{name}.py" for name in ("detect", "recogniser")),
)
LORA = (
    *(f"{TESTS}/checkpoint/test_lora_{name}.py" for name in ("tensors", "match", "layers", "sizes")),
    f"{TESTS}/lora/test_read.py",
    "tests/properties/test_lora_names.py",
)
MODULES: Mapping[str, Sequence[str]] = {
    "geometry": (f"{TESTS}/test_geometry.py", "tests/properties/test_geometry.py"),
    "sampling/schedule": (f"{TESTS}/sampling/test_schedule.py", "tests/properties/test_schedule.py"),
    "checkpoint/keymaps": (
        *(f"{TESTS}/checkpoint/test_{name}.py" for name in ("keymaps", "convert_stored", "layouts")),
        "tests/properties/test_keymaps.py",
    ),
    **{f"checkpoint/{name}": RECOGNISER for name in ("detect", "examine", "layout", "variants")},
    **{f"checkpoint/lora_{name}": LORA for name in ("tensors", "match", "layers", "resolve")},
    "lora/read": LORA,
}
"""What is mutated, and the tests that should notice, the quickest first."""
AIM = 0.85
BASE_SECONDS, FACTOR = 60, 6
"""A run that takes longer than this, and this many times what it takes without a fault, is stopped: noticed."""


@dataclass
class Result:
    """Of one module. tried: how many of its faults were planted. survivors: those that no test noticed."""

    module: str
    faults: int
    tried: int = 0
    timeouts: int = 0
    survivors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def killed(self) -> int:
        return self.tried - len(self.survivors)

    def line(self) -> str:
        share = 100 * self.killed / max(1, self.tried)
        return (
            f"{self.module}: {self.killed} of {self.tried} noticed ({share:.1f} %), of {self.faults} possible; "
            f"{self.timeouts} by running too long; {self.seconds / 60:.1f} minutes"
        )


@contextmanager
def planted(path: Path, tree: ast.Module) -> Iterator[None]:
    """In the block, importing the file at `path` runs this tree instead of what stands there."""
    usual = importlib.machinery.SourceFileLoader.get_code

    def get_code(loader: importlib.machinery.SourceFileLoader, name: str) -> object:
        if Path(loader.path).resolve() == path:
            return compile(tree, str(path), "exec")
        return usual(loader, name)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        importlib.machinery.SourceFileLoader.get_code = usual  # type: ignore[method-assign]


def run_tests(path: Path, tree: ast.Module, tests: Sequence[str], seconds: float) -> tuple[int, float]:
    """(pytest's exit code, seconds) of a fork in which a module is this tree; -9 if it ran too long."""
    begin = time.monotonic()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        code = 3
        try:
            code = _run_pytest(path, tree, tests)
        finally:
            os._exit(code)
    while time.monotonic() - begin < seconds:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), time.monotonic() - begin
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL, time.monotonic() - begin


def _run_pytest(path: Path, tree: ast.Module, tests: Sequence[str]) -> int:
    import pytest
    from hypothesis import Phase, settings

    # Failing is enough: what the smallest failing example is does not matter here, and looking for it takes long.
    settings.register_profile(
        "mutation", deadline=None, database=None, derandomize=True, phases=(Phase.explicit, Phase.generate)
    )
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    with tempfile.TemporaryDirectory() as folder, planted(path, tree):
        words = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        words += ["--hypothesis-profile=mutation", f"--basetemp={folder}/t"]
        return int(pytest.main([*words, *tests]))


def choose(faults: int, words: argparse.Namespace, module: str) -> list[int]:
    """The numbers of the faults to plant: those that were named, or `limit` chosen at random, or all."""
    if words.faults:
        return [number for number in words.faults if number < faults]
    numbers = list(range(faults))
    few = len(numbers) > words.limit
    return sorted(random.Random(f"{words.seed} {module}").sample(numbers, words.limit)) if few else numbers


def mutate(module: str, tests: Sequence[str], words: argparse.Namespace) -> Result:
    """Plant a module's faults one by one. Raises RuntimeError if the tests fail without any."""
    path = ROOT / LIBRARY / f"{module}.py"
    source = path.read_text(encoding="utf-8")
    result = Result(module, count_faults(source))
    code, usual = run_tests(path, ast.parse(source), tests, 3600)
    if code:
        raise RuntimeError(f"the tests of {module} end with {code} without any fault")
    begin = time.monotonic()
    for number in choose(result.faults, words, module):
        tree, fault = plant(source, number)
        code, _ = run_tests(path, tree, tests, BASE_SECONDS + FACTOR * usual)
        result.tried += 1
        result.timeouts += code == -signal.SIGKILL
        if code == 0:
            result.survivors.append(f"{number}, line {fault.line}: {fault.what}")
            print(f"  {module} survives: {result.survivors[-1]}", flush=True)
        result.seconds = time.monotonic() - begin
    return result


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"{', '.join(MODULES)} (default: all)")
    parser.add_argument("--limit", type=int, default=10**9, metavar="N", help="faults of each module, chosen at random")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of that choice")
    parser.add_argument("--faults", type=int, nargs="+", metavar="N", help="these faults only, by their numbers")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a report of each module is added to this file")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="a JSON line of each module is added to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the modules; 0 if the aim is met by all of them together, 1 if not, 2 for unknown names."""
    words = build_parser().parse_args(argv)
    unknown = [module for module in words.modules if module not in MODULES]
    if unknown:
        print(f"mutation: unknown module {unknown[0]!r}; there are {', '.join(MODULES)}", file=sys.stderr)
        return 2
    os.chdir(ROOT)
    for name in ("torch", "pytest", "hypothesis", "safetensors.torch"):
        importlib.import_module(name)  # before the forks, which then need not
    results = []
    for module in words.modules or MODULES:
        results.append(mutate(module, MODULES[module], words))
        print(results[-1].line(), flush=True)
        if words.out:
            append(words.out, results[-1])
        if words.rows:
            with words.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(results[-1])) + "\n")
    tried, killed = (sum(getattr(result, name) for result in results) for name in ("tried", "killed"))
    print(f"all: {killed} of {tried} noticed ({100 * killed / max(1, tried):.1f} %), aim {100 * AIM:g} %")
    return 0 if killed >= AIM * tried else 1


def append(path: Path, result: Result) -> None:
    date = datetime.now(timezone.utc).date().isoformat()
    machine = hardware()
    lines = [f"## {result.module}", "", f"{result.line()}; {date}, {machine['cores']} cores of {machine['cpu']}.", ""]
    lines += [f"- {survivor}" for survivor in result.survivors] or ["No survivors."]
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join([*lines, "", ""]))


if __name__ == "__main__":
    sys.exit(main())
