"""What people read on a node: its tooltips, its help page (web/docs) and its Chinese texts (locales/zh).

All three are held to the schemas, so that a widget cannot be added, renamed or given another default in one place only.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"
LOCALE = ROOT / "locales" / "zh" / "nodeDefs.json"

FEWEST_WORDS = {"inputs": 3, "outputs": 2}
MOST_CHARACTERS = 400
FILE_LISTS = {"file", "llm", "clip"}
"""Inputs whose options are the files that happen to be there."""
CHINESE = re.compile("[一-鿿]")
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?")


@pytest.fixture
def schemas(pack):
    return {schema.node_id: schema for node in pack.nodes.extension.list_nodes() for schema in [node.define_schema()]}


def entries_of(schema, side):
    """The inputs or the outputs of a schema."""
    return getattr(schema, side) or []


def shown_name(entry):
    """What stands beside a socket; for inputs that is the id, as none has a display name."""
    return getattr(entry, "display_name", None) or entry.id


def shown_default(entry):
    """The default as a help page writes it; None for sockets, long texts, and lists without one."""
    default = getattr(entry, "default", None)
    if default is None or getattr(entry, "multiline", False):
        return None
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)


# Tooltips


def test_every_node_says_what_it_is_for(schemas):
    short = [node_id for node_id, schema in schemas.items() if len((schema.description or "").split()) < 5]
    assert short == []


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_every_widget_and_socket_has_a_tooltip_of_useful_length(schemas, side):
    poor = [
        f"{node_id}.{entry.id}: {entry.tooltip!r}"
        for node_id, schema in schemas.items()
        for entry in entries_of(schema, side)
        if not is_useful(entry.tooltip, FEWEST_WORDS[side])
    ]
    assert poor == []


def is_useful(tooltip, fewest_words):
    """A sentence or more, and no page."""
    text = tooltip or ""
    return len(text.split()) >= fewest_words and len(text) <= MOST_CHARACTERS and text.endswith(".")


# Help pages


def sections_of(page):
    """Title and heading -> text of a help page."""
    title, *parts = re.split(r"^## ", page, flags=re.MULTILINE)
    return title, {part.partition("\n")[0].strip(): part.partition("\n")[2] for part in parts}


def tables_of(text):
    """The tables of a text, each a list of rows of cells without its heading."""
    blocks = re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE)
    return [[cells_of(line) for line in block.splitlines()[2:]] for block in blocks]


def cells_of(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.fixture
def pages(schemas):
    """Node id -> (title, sections) of its help page."""
    return {
        node_id: sections_of((DOCS / f"{node_id}.md").read_text("utf-8"))
        for node_id in schemas
        if (DOCS / f"{node_id}.md").is_file()
    }


def test_every_node_has_a_help_page_and_every_page_a_node(schemas):
    assert {path.stem for path in DOCS.glob("*.md")} == set(schemas)
    assert {path.name for path in DOCS.iterdir() if path.is_dir()} <= set(schemas)  # <NodeId>/<language>.md


def test_help_pages_have_the_node_s_name_and_the_same_parts(schemas, pages):
    for node_id, (title, sections) in pages.items():
        assert title.startswith(f"# {schemas[node_id].display_name}\n"), node_id
        assert list(sections) == ["Inputs", "Outputs", "Connect", "When it fails", "Tips"], node_id


@pytest.mark.parametrize(("side", "section"), [("inputs", "Inputs"), ("outputs", "Outputs")])
def test_help_pages_name_each_input_and_output_in_its_order(schemas, pages, side, section):
    for node_id, (_, sections) in pages.items():
        tables = tables_of(sections[section])
        named = [row[0].split("`")[1] for row in tables[0]] if tables else []
        assert named == [shown_name(entry) for entry in entries_of(schemas[node_id], side)], node_id


def test_help_pages_have_full_rows(pages):
    for node_id, (_, sections) in pages.items():
        for section, columns in (("Inputs", 4), ("Outputs", 2), ("When it fails", 3)):
            tables = tables_of(sections[section])
            assert all(len(row) == columns for table in tables[:1] for row in table), f"{node_id}, {section}"


def test_help_pages_give_the_defaults_of_the_schemas(schemas, pages):
    wrong = []
    for node_id, (_, sections) in pages.items():
        rows = tables_of(sections["Inputs"])[0]
        for entry, row in zip(entries_of(schemas[node_id], "inputs"), rows, strict=True):
            default = shown_default(entry)
            if default is not None and row[0] not in (f"`{entry.id}` ({default})", f"`{entry.id}` (`{default}`)"):
                wrong.append(f"{node_id}: {row[0]}, default {default}")
            if entry.optional and default is None and not row[0].endswith(" (optional)"):
                wrong.append(f"{node_id}: {row[0]} is optional")
    assert wrong == []


def test_help_pages_name_every_option(schemas, pages):
    missing = [
        f"{node_id}.{entry.id}: {option}"
        for node_id, (_, sections) in pages.items()
        for entry in entries_of(schemas[node_id], "inputs")
        if entry.id not in FILE_LISTS
        for option in getattr(entry, "options", None) or []
        if f"`{option}`" not in sections["Inputs"]
    ]
    assert missing == []


def test_help_pages_know_only_codes_that_errors_have(pack, pages):
    errors = vars(pack.hyvideo_lib.errors).values()
    known = {error.code for error in errors if isinstance(error, type) and hasattr(error, "code")}
    for node_id, (_, sections) in pages.items():
        codes = {code for row in tables_of(sections["When it fails"])[0] for code in re.findall(r"`(.*?)`", row[1])}
        assert codes <= known, node_id


# Chinese


@pytest.fixture
def locale():
    return json.loads(LOCALE.read_text("utf-8"))


def all_texts(value):
    """Every text of a nested dict."""
    return [text for part in value.values() for text in (all_texts(part) if isinstance(part, dict) else [part])]


def test_the_locale_has_exactly_the_nodes_inputs_and_outputs_of_the_schemas(schemas, locale):
    assert list(locale) == list(schemas)
    for node_id, schema in schemas.items():
        texts = locale[node_id]
        assert set(texts) == {"display_name", "description", "inputs", "outputs"}, node_id
        assert list(texts["inputs"]) == [entry.id for entry in schema.inputs], node_id
        assert list(texts["outputs"]) == [str(index) for index in range(len(entries_of(schema, "outputs")))], node_id
        for entry in (*texts["inputs"].values(), *texts["outputs"].values()):
            assert set(entry) == {"name", "tooltip"}, node_id


def test_the_locale_has_a_text_everywhere_and_chinese_where_it_explains(locale):
    assert all(text.strip() == text and text for text in all_texts(locale))
    for node_id, texts in locale.items():
        assert CHINESE.search(texts["description"]), node_id
        for entry in (*texts["inputs"].values(), *texts["outputs"].values()):
            assert CHINESE.search(entry["tooltip"]), f"{node_id}: {entry}"


def test_chinese_tooltips_hold_the_numbers_of_the_english_ones(schemas, locale):
    """A limit or a recommendation that changes in one language only."""
    wrong = []
    for node_id, schema in schemas.items():
        pairs = [(entry, locale[node_id]["inputs"][entry.id]) for entry in schema.inputs]
        pairs += [(entry, locale[node_id]["outputs"][str(i)]) for i, entry in enumerate(entries_of(schema, "outputs"))]
        for entry, texts in pairs:
            missing = set(NUMBER.findall(entry.tooltip)) - set(NUMBER.findall(texts["tooltip"]))
            if missing:
                wrong.append(f"{node_id}.{entry.id}: {sorted(missing)}")
    assert wrong == []


def test_the_locale_escapes_what_its_message_format_would_read(locale):
    """ComfyUI's page compiles each text: {name}, @:key and a | b have a meaning there; {'...'} is taken literally."""
    literal = re.compile(r"\{'[^']*'\}")
    assert [text for text in all_texts(locale) if set("{}@|$") & set(literal.sub("", text))] == []
