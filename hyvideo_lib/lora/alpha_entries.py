"""Alpha as one place of a file states it: for all layers, or by patterns; and what else there changes the numbers.

Values are read as text or as numbers. What cannot be read is kept as a problem, for a layer that no other place speaks
of; what would need another formula than W + scale * up @ down is a refusal, whoever else speaks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .peft_patterns import Patterns, make_budget

Table = Mapping[str, Any]

PEFT_ALPHA = "lora_alpha"
ALPHA_NAMES = (PEFT_ALPHA, "alpha", "network_alpha")
RANK_NAMES = ("r", "rank", "lora_rank", "lora_r", "network_dim", "network_rank")
"""How trainers call the two. `ss_network_alpha` is not among them: converters multiply it in and leave the entry."""
ALPHA_PATTERN, RANK_PATTERN, ROOT = "alpha_pattern", "rank_pattern", "use_rslora"
OTHER_MODELS = re.compile(r"(^|[._])(text_encoder|text_model|te|clip|llm|vae)\d*([._]|$|_\d)", re.I)
"""Components whose values are not about the transformer."""
MAX_DEPTH, MAX_TABLES = 4, 100
"""Of tables within tables of a configuration."""
MAX_VALUE = 1e9
MAX_SHOWN = 60

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_ABSENT = (None, "", "None", "null")

PRODUCTS = ("LORA", "LOHA", "LOKR")
"""PEFT's methods whose scale is alpha over rank."""
OFT_TERMS = 5
"""Of the series by which PEFT's OFT is computed here."""
CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""PEFT's initialisations that take their part out of the model's own weights, so that the rest fits no other model."""
OTHER_FORMULAS = (
    "use_bdlora",
    "use_qalora",
    "kasa_config",
    "monteclora_config",
    "arrow_config",
    "alora_invocation_tokens",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
)
"""PEFT's settings under which more is computed than the product of two matrices, or for another model."""


@dataclass(frozen=True)
class AlphaSource:
    """What one place states. name: in words. key: its entry for alpha, in words.

    problem: why it cannot be read. refusal: why the file cannot be used if this place is the file's own.
    """

    name: str
    key: str = PEFT_ALPHA
    alpha: float | None = None
    rank: int | None = None
    alphas: Patterns = field(default_factory=Patterns)
    ranks: Patterns = field(default_factory=Patterns)
    is_root: bool = False
    problem: str = ""
    refusal: str = ""

    def rank_of(self, module: str) -> float | None:
        """The rank that it states for a module, by its path in the model."""
        own = self.ranks.value(module)
        return self.rank if own is None else own

    def alpha_of(self, module: str) -> float | None:
        own = self.alphas.value(module)
        return self.alpha if own is None else own

    def scale(self, module: str, rank: int) -> float | None:
        """The scale of a module whose matrices have this rank; None where nothing is said of such a one.

        An alpha of 0 is a scale of 0 in PEFT, and alpha = rank for other trainers.
        """
        alpha = self.alpha_of(module)
        if alpha is None or self.rank_of(module) not in (None, rank):
            return None
        if alpha == 0 and self.key != PEFT_ALPHA:
            return 1.0
        return alpha / (math.sqrt(rank) if self.is_root else rank)

    def told(self, module: str) -> str:
        """Where it says which alpha, for a message."""
        alpha, root = self.alpha_of(module), " by the root of the rank" if self.is_root else ""
        return f"{self.name} ({self.key} {'none' if alpha is None else f'{alpha:g}'}{root})"


def parse_table(text: str) -> Table:
    """A JSON table. Raises ValueError."""
    try:
        table = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(table, dict):
        raise ValueError("it is JSON, but not a table")
    return table


def components(entries: Table) -> dict[str, Table]:
    """The tables in a configuration by the component that they are about; "" is the one that names none.

    A component's entries stand in a table of their own ({"transformer": {"r": 8}}) or have its name in front
    ("transformer.r"). Raises ValueError for tables nested too deeply.
    """
    found: dict[str, dict[str, Any]] = {}
    for component, name, value in _walk(entries, "", 0):
        found.setdefault(component, {})[name] = value
        if len(found) > MAX_TABLES:
            raise ValueError(f"it has more than {MAX_TABLES} tables")
    return {component: table for component, table in found.items() if not OTHER_MODELS.search(component)}


def _walk(entries: Table, within: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    for key, value in entries.items():
        component, _, name = str(key).rpartition(".")
        component = ".".join(filter(None, (within, component)))
        if isinstance(value, dict) and name not in (ALPHA_PATTERN, RANK_PATTERN, *OTHER_FORMULAS):
            if depth < MAX_DEPTH:
                yield from _walk(value, ".".join(filter(None, (component, name))), depth + 1)
        else:
            yield component, name, value


def source_of(
    table: Table, name: str, tensors: Iterable[str] = (), keeps_lone_alpha: bool = True
) -> AlphaSource | None:
    """What a table states; None if it is not about alpha. name: of the place, in words.

    tensors: the names that the file has. keeps_lone_alpha: an `alpha` without a rank beside it counts as well;
    elsewhere it may be an optimiser's.
    """
    keys = [key for key in ALPHA_NAMES if table.get(key) not in _ABSENT]
    if not any(key in table for key in (*RANK_NAMES, PEFT_ALPHA)) and not keeps_lone_alpha:
        keys = []
    if not keys and ALPHA_PATTERN not in table and "peft_type" not in table:
        return None
    key = keys[0] if keys else PEFT_ALPHA
    refusal = _refusal(table, tensors)
    try:
        budget = make_budget()
        return AlphaSource(
            name,
            key,
            _agreed(table, keys, _alpha),
            _agreed(table, [key for key in RANK_NAMES if table.get(key) not in _ABSENT], _rank),
            Patterns(_patterns(table, ALPHA_PATTERN, _alpha), budget),
            Patterns(_patterns(table, RANK_PATTERN, _rank), budget),
            _truth(table, ROOT),
            refusal=refusal,
        )
    except ValueError as error:
        return AlphaSource(name, key, problem=str(error), refusal=refusal)


def _agreed(table: Table, keys: list[str], read: Any) -> Any:
    """The one value of entries that mean the same; None without any. Raises ValueError."""
    values = {key: read(key, table[key]) for key in keys}
    if len(set(values.values())) > 1:
        listed = ", ".join(f"{key} {value:g}" for key, value in values.items())
        raise ValueError(f"it contradicts itself ({listed})")
    return next(iter(values.values()), None)


def _number(key: str, value: Any) -> float:
    """Raises ValueError for what is no number, or one that nobody trains with."""
    number = math.nan
    if isinstance(value, str) and len(value) <= MAX_SHOWN and _NUMBER.fullmatch(value.strip()):
        number = float(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value) if abs(value) <= MAX_VALUE else math.inf
    if not 0 <= number <= MAX_VALUE:
        raise ValueError(f"its {key} is {_shown(value)}, which is no number from 0 up")
    return number


_alpha = _number


def _rank(key: str, value: Any) -> int:
    number = _number(key, value)
    if number < 1 or number != int(number):
        raise ValueError(f"its {key} is {_shown(value)}, which is no rank (1, 2, 3, ...)")
    return int(number)


def _patterns(table: Table, key: str, read: Any) -> dict[str, float]:
    """A table of values by pattern, which a header may hold as JSON. Raises ValueError."""
    value = table.get(key)
    if value in _ABSENT:
        return {}
    if isinstance(value, str):
        value = parse_table(value)
    if not isinstance(value, dict):
        raise ValueError(f"its {key} is {_shown(value)}, not a table")
    return {pattern: read(key, own) for pattern, own in value.items()}


def _truth(table: Table, key: str) -> bool:
    value = table.get(key)
    truths = {"true": True, "false": False, "": False, "none": False, "null": False}
    known = truths.get(str(value).strip().lower())
    if known is None:
        raise ValueError(f"its {key} is {_shown(value)}, which is neither true nor false")
    return known


def _refusal(table: Table, tensors: Iterable[str]) -> str:
    """What a configuration says that this library does not compute, in words; empty if nothing."""
    method = str(table.get("peft_type") or "LORA").rpartition(".")[2].upper()
    start = str(table.get("init_lora_weights", "")).lower()
    bias = str(table.get("bias") or "none").lower()
    others = [key for key in OTHER_FORMULAS if table.get(key) not in (*_ABSENT, False, [], {}, "False")]
    names = list(tensors)
    if method == "OFT":
        return _oft_refusal(table)
    if method not in PRODUCTS:
        return f"its method is {method[:MAX_SHOWN]}"
    if start.startswith(CHANGED_BASES):
        return f"it began with {start[:MAX_SHOWN]}, which changes the model's own weights, and fits only such a model"
    if bias != "none" and any(name.endswith(".bias") and ".lora_" not in name for name in names):
        return f"it has new biases of the model (bias {bias[:MAX_SHOWN]}), which are not applied"
    if others:
        return f"it has {others[0]}, which is not supported"
    if str(table.get("use_dora")).lower() == "true" and not any("magnitude" in n or "dora_scale" in n for n in names):
        return "it is DoRA (use_dora), but the file lacks the magnitudes"
    saved = table.get("modules_to_save")
    for module in saved if isinstance(saved, list) else []:
        if any(f".{module}." in f".{name}" and ".lora_" not in name for name in names):
            return f"it has whole layers of the model ({_shown(module)} in modules_to_save), which are not applied"
    return ""


def _oft_refusal(table: Table) -> str:
    """PEFT's other form turns the other way round, and the file's tensors do not tell which it is."""
    is_series = str(table.get("use_cayley_neumann", True)).lower() == "true"
    if not is_series or str(table.get("num_cayley_neumann_terms", OFT_TERMS)) != str(OFT_TERMS):
        return f"it is OFT without the series of {OFT_TERMS} terms (use_cayley_neumann, num_cayley_neumann_terms)"
    return ""


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**MAX_SHOWN else "a huge number"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
