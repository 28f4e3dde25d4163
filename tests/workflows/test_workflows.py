"""Every example workflow against the schemas of its nodes, and against its twin for the API."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
EXPECTED = {
    "demo_text_to_video",
    "demo_video_to_video",
    "720p_text_to_video",
    "720p_text_to_video_12gb",
    "720p_native_text_encoders",
}
DEMO = "hyvideo-demo"
WIDGET_TYPES = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool, "COMBO": str}
NOTES = {"Note", "MarkdownNote"}
"""Nodes that only the page knows; they are not sent to the server."""
TITLE_HEIGHT = 30
"""Of a node, in the units of the canvas, above its position."""
ABSOLUTE_PATH = re.compile(r"(?<![\w:/.])/(home|root|work|opt|tmp|mnt|Users|usr|var)/|\b[A-Za-z]:\\|file://")
Json = dict[str, Any]


@dataclass(frozen=True)
class Slot:
    """One input of a node. control: whether the page puts "what happens to it after a run" behind the widget."""

    name: str
    type: str
    is_optional: bool = False
    options: tuple[str, ...] | None = None
    low: float | None = None
    high: float | None = None
    step: float | None = None
    has_control: bool = False

    @property
    def is_widget(self) -> bool:
        return self.type in WIDGET_TYPES


@dataclass(frozen=True)
class Form:
    """What a workflow must know of a node: inputs in the order of the schema, and (name, type) of the outputs."""

    inputs: tuple[Slot, ...]
    outputs: tuple[tuple[str, str], ...] = ()

    @property
    def widgets(self) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.inputs if slot.is_widget)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """As the page lays them out: sockets before widgets."""
        return tuple(slot for slot in self.inputs if not slot.is_widget) + self.widgets


CORE = {
    "CreateVideo": Form(
        (Slot("images", "IMAGE"), Slot("fps", "FLOAT", low=1, high=120), Slot("audio", "AUDIO", is_optional=True)),
        (("VIDEO", "VIDEO"),),
    ),
    "SaveVideo": Form(
        (
            Slot("video", "VIDEO"),
            Slot("filename_prefix", "STRING"),
            Slot("format", "COMBO", options=("auto", "mp4")),
            Slot("codec", "COMBO", options=("auto", "h264")),
        )
    ),
    "DualCLIPLoader": Form(
        (
            Slot("clip_name1", "COMBO", options=()),
            Slot("clip_name2", "COMBO", options=()),
            Slot("type", "COMBO", options=("sdxl", "sd3", "flux", "hunyuan_video", "hidream", "hunyuan_image")),
            Slot("device", "COMBO", is_optional=True, options=("default", "cpu")),
        ),
        (("CLIP", "CLIP"),),
    ),
    "CLIPTextEncode": Form((Slot("text", "STRING"), Slot("clip", "CLIP")), (("CONDITIONING", "CONDITIONING"),)),
}
"""ComfyUI's own nodes that the workflows use, as versions 0.3.64 and 0.8.0 both have them."""


def form_of(schema: Any) -> Form:
    slots = []
    for entry in schema.inputs:
        has_control = getattr(entry, "control_after_generate", None)
        if has_control is None:  # the page goes by the name then
            has_control = entry.id in ("seed", "noise_seed")
        options = getattr(entry, "options", None)
        slots.append(
            Slot(
                entry.id,
                entry.get_io_type(),
                bool(entry.optional),
                None if options is None else tuple(options),
                *(getattr(entry, name, None) for name in ("min", "max", "step")),
                has_control=bool(has_control) and entry.get_io_type() == "INT",
            )
        )
    outputs = ((output.display_name or output.io_type, output.io_type) for output in schema.outputs or ())
    return Form(tuple(slots), tuple(outputs))


@pytest.fixture(scope="module")
def forms(pack: ModuleType) -> dict[str, Form]:
    """By node id: ours as their schemas say, and ComfyUI's from the table."""
    schemas = [node.define_schema() for node in pack.nodes.extension.list_nodes()]
    return {schema.node_id: form_of(schema) for schema in schemas} | CORE


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def graph(name: str) -> Json:
    return read(FOLDER / f"{name}.json")


def read(path: Path) -> Json:
    return json.loads(path.read_text(encoding="utf-8"))


def real_nodes(graph: Json) -> list[Json]:
    return [node for node in graph["nodes"] if node["type"] not in NOTES]


def widget_values(node: Json, form: Form) -> Iterator[tuple[Slot, Any]]:
    """Widgets with their values. Fails if the list of values is longer or shorter than the widgets of the schema."""
    values = iter(node["widgets_values"])
    for slot in form.widgets:
        yield slot, next(values)
        if slot.has_control:
            assert next(values) in ("fixed", "increment", "decrement", "randomize")
    assert not list(values), f"{node['type']} has more values than widgets"


def to_api(graph: Json, forms: dict[str, Form]) -> Json:
    """What the page sends for a graph: widget values and links by input, without notes."""
    links = {link[0]: link for link in graph["links"]}
    prompt = {}
    for node in real_nodes(graph):
        inputs = {slot.name: value for slot, value in widget_values(node, forms[node["type"]])}
        for entry in node["inputs"]:
            if entry["link"] is not None:
                _, source, slot_index, *_ = links[entry["link"]]
                inputs[entry["name"]] = [str(source), slot_index]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


# The folder


def test_the_workflows_are_the_ones_promised():
    assert set(NAMES) == EXPECTED


def test_every_workflow_has_a_twin_for_the_api_and_no_twin_is_alone():
    assert {path.stem for path in (FOLDER / "api").iterdir()} == set(NAMES)


def test_every_workflow_has_a_picture():
    """ComfyUI shows a .jpg of the same name in its list of templates."""
    pictures = {path.stem for path in FOLDER.glob("*.jpg") if path.read_bytes()[:2] == b"\xff\xd8"}
    assert pictures == set(NAMES)


@pytest.mark.parametrize("folder", [FOLDER, FOLDER / "api"], ids=["page", "api"])
def test_no_path_of_a_machine_is_in_it(name, folder):
    text = json.dumps(read(folder / f"{name}.json"), ensure_ascii=False)
    assert ABSOLUTE_PATH.search(text) is None


# Nodes and links


def test_every_node_is_known(graph, forms):
    assert {node["type"] for node in real_nodes(graph)} <= forms.keys()


def test_ids_are_unique_and_counted(graph):
    nodes, links = [node["id"] for node in graph["nodes"]], [link[0] for link in graph["links"]]
    assert len(set(nodes)) == len(nodes)
    assert len(set(links)) == len(links)
    assert graph["last_node_id"] >= max(nodes)
    assert graph["last_link_id"] >= max(links)
    assert graph["version"] == 0.4


def test_graph_ids_differ_between_workflows():
    ids = [read(FOLDER / f"{name}.json")["id"] for name in NAMES]
    assert len(set(ids)) == len(ids)


def test_slots_are_those_of_the_schema(graph, forms):
    for node in real_nodes(graph):
        form = forms[node["type"]]
        found = [(entry["name"], entry["type"], "widget" in entry) for entry in node["inputs"]]
        assert found == [(slot.name, slot.type, slot.is_widget) for slot in form.slots], node["type"]
        assert [(entry["name"], entry["type"]) for entry in node["outputs"]] == list(form.outputs), node["type"]
        assert all(entry["widget"] == {"name": entry["name"]} for entry in node["inputs"] if "widget" in entry)


def test_links_join_slots_of_their_type(graph):
    nodes = {node["id"]: node for node in graph["nodes"]}
    for link, source, output, target, entry, kind in graph["links"]:
        given, taken = nodes[source]["outputs"][output], nodes[target]["inputs"][entry]
        assert given["type"] == taken["type"] == kind
        assert link in given["links"]
        assert taken["link"] == link


def test_slots_know_no_link_that_is_not_there(graph):
    links = {link[0] for link in graph["links"]}
    taken = [entry["link"] for node in graph["nodes"] for entry in node["inputs"] if entry["link"] is not None]
    given = [link for node in graph["nodes"] for entry in node["outputs"] for link in entry["links"] or ()]
    assert sorted(taken) == sorted(given) == sorted(links)


def test_every_socket_that_must_be_linked_is(graph, forms):
    for node in real_nodes(graph):
        linked = {entry["name"] for entry in node["inputs"] if entry["link"] is not None}
        needed = {slot.name for slot in forms[node["type"]].slots if not (slot.is_widget or slot.is_optional)}
        assert needed <= linked, node["type"]


def test_every_end_is_a_saved_video(graph):
    """Nothing is computed that goes nowhere."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    ends = [node for node in real_nodes(graph) if not any(entry["links"] for entry in node["outputs"])]
    assert {node["type"] for node in ends} == {"SaveVideo"}
    for end in ends:
        source = next(link[1] for link in graph["links"] if link[3] == end["id"])
        assert nodes[source]["type"] == "CreateVideo"


# Widgets


def test_widgets_hold_values_that_are_accepted(graph, forms):
    for node in real_nodes(graph):
        for slot, value in widget_values(node, forms[node["type"]]):
            check_value(slot, value, f"{node['type']}.{slot.name}")


def check_value(slot: Slot, value: Any, where: str) -> None:
    assert isinstance(value, WIDGET_TYPES[slot.type]), where
    assert isinstance(value, bool) == (slot.type == "BOOLEAN"), where
    if slot.type == "COMBO":
        is_download = value.endswith(".safetensors")  # which files there are, differs between machines
        assert is_download or value in slot.options, where
    if slot.low is not None:
        assert value >= slot.low, where
    if slot.high is not None:
        assert value <= slot.high, where
    if slot.type == "INT" and slot.step:
        assert (value - slot.low) % slot.step == 0, where


def test_the_nodes_accept_their_inputs(graph, forms, pack):
    """Sizes, tiles and guidance, by the nodes' own checks before a run; file names aside."""
    nodes = {node.define_schema().node_id: node for node in pack.nodes.extension.list_nodes()}
    checked = 0
    for node in real_nodes(graph):
        names_a_file = any(str(value).endswith(".safetensors") for value in node["widgets_values"])
        check = getattr(nodes.get(node["type"]), "validate_inputs", None)
        own = vars(nodes[node["type"]]) if check else {}
        if "validate_inputs" not in own or names_a_file:
            continue
        wanted = own["validate_inputs"].__func__.__code__.co_varnames
        values = {slot.name: value for slot, value in widget_values(node, forms[node["type"]])}
        assert check(**{key: value for key, value in values.items() if key in wanted}) is True, node["type"]
        checked += 1
    assert checked >= 3


def test_the_demo_workflows_need_no_file(name, graph):
    files = [value for node in real_nodes(graph) for value in node["widgets_values"] if ".safetensors" in str(value)]
    loaders = [node for node in real_nodes(graph) if "Load" in node["type"]]
    if name.startswith("demo"):
        assert not files
        assert all(DEMO in node["widgets_values"] for node in loaders)
    else:
        assert len(files) == 4


def test_every_file_has_a_link_to_download_it(graph):
    """In the form that ComfyUI's page offers downloads by."""
    for node in real_nodes(graph):
        files = [value for value in node["widgets_values"] if str(value).endswith(".safetensors")]
        models = node["properties"].get("models", [])
        assert sorted(model["name"] for model in models) == sorted(files), node["type"]
        for model in models:
            assert model.keys() == {"name", "url", "directory"}
            assert re.fullmatch(
                r"https://huggingface\.co/[\w-]+/[\w-]+/resolve/main/([\w-]+/)*" + re.escape(model["name"]),
                model["url"],
            )
            assert model["directory"] in ("diffusion_models", "vae", "text_encoders")


# What a person sees


def test_a_note_says_what_goes_where(graph):
    notes = [node for node in graph["nodes"] if node["type"] in NOTES]
    assert len(notes) == 1
    assert not notes[0]["inputs"]
    text = notes[0]["widgets_values"][0]
    assert "output/video/" in text
    for node in real_nodes(graph):
        for model in node["properties"].get("models", ()):
            assert f"[{model['name']}]({model['url']})" in text
            assert f"models/{model['directory']}" in text


def test_nodes_do_not_overlap_and_groups_hold_whole_nodes(graph):
    boxes = [box(node["pos"], node["size"]) for node in graph["nodes"]]
    assert not [pair for pair in combinations(boxes, 2) if overlap(*pair)]
    groups = [(x, y, x + width, y + height) for x, y, width, height in (g["bounding"] for g in graph["groups"])]
    assert not [pair for pair in combinations(groups, 2) if overlap(*pair)]
    for group in groups:
        for node in boxes:
            assert not overlap(group, node) or within(node, group)


def box(position: list[float], size: list[float]) -> tuple[float, ...]:
    """Left, top, right, bottom of a node with its title."""
    (x, y), (width, height) = position, size
    return x, y - TITLE_HEIGHT, x + width, y + height


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def within(inner: tuple[float, ...], outer: tuple[float, ...]) -> bool:
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


# The twins


def test_the_twin_is_what_the_page_would_send(name, graph, forms):
    twin = read(FOLDER / "api" / f"{name}.json")
    sent = {key: {part: node[part] for part in ("class_type", "inputs")} for key, node in twin.items()}
    assert sent == to_api(graph, forms)


def test_the_nodes_of_a_twin_have_titles(name, graph):
    twin = read(FOLDER / "api" / f"{name}.json")
    titles = {str(node["id"]): node["title"] for node in graph["nodes"] if "title" in node}
    for key, node in twin.items():
        assert node["_meta"]["title"] == titles.get(key, node["_meta"]["title"]) != ""
