"""The pack on ComfyUI's page, in headless Chromium, in the classic renderer and in Nodes 2.0.

Screenshots are kept in the folder that HYVIDEO_SCREENSHOTS names, if it is set.
"""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest
from comfy_page import FLAGS, SLOW, GraphPage
from comfy_server import PACK, RUN_SECONDS

sync_api = pytest.importorskip("playwright.sync_api", reason="install playwright for the tests on ComfyUI's page")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
RENDERERS = {"classic": False, "nodes2": True}
WORKFLOWS = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
DEMO = PACK / "workflows" / "demo_text_to_video.json"
REAL = PACK / "workflows" / "720p_text_to_video.json"
LOADED = "async image => { await image.decode(); return image.naturalWidth }"
FIRST_FRONTEND_WITH_NODES2 = (1, 33)
"""Before it the switch exists, but what it shows is unfinished: no node, ComfyUI's own included, has a text field."""


@pytest.fixture(scope="module")
def chromium():
    if not CHROMIUM:
        pytest.skip("install chromium, or name it with CHROMIUM, for the tests on ComfyUI's page")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=list(RENDERERS))
def open_page(request, chromium, server):
    """Opens the page with more settings than the usual ones. Nothing in it may complain of the pack."""
    version = server.get("/system_stats")["system"]["required_frontend_version"]
    if RENDERERS[request.param] and tuple(map(int, version.split(".")[:2])) < FIRST_FRONTEND_WITH_NODES2:
        pytest.skip(f"ComfyUI's page {version} has no finished Nodes 2.0")
    opened = []

    def open_with(**settings) -> GraphPage:
        opened.append(GraphPage(chromium, server, request.param, RENDERERS[request.param], **settings))
        return opened[-1]

    yield open_with
    for page in opened:
        page.close()
        assert page.complaints == []


@pytest.fixture
def page(open_page):
    return open_page()


@pytest.fixture
def no_named_files(server, tmp_path):
    """None of the files that a workflow for the 13B model names is there."""
    moved = {}
    for node in graph_of(REAL.stem)["nodes"]:
        for model in node["properties"].get("models", ()):
            path = server.base / "models" / model["directory"] / model["name"]
            moved[path] = tmp_path / model["name"]
            path.rename(moved[path])
    yield
    for path, place in moved.items():
        place.rename(path)


def graph_of(name: str) -> dict:
    return json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def kinds(nodes: list[dict]) -> list[str]:
    return sorted(node["type"] for node in nodes)


def run(page, server) -> str:
    """Press Run. Returns the id of what is queued then."""
    known = set(server.get("/history")) | set(queued(server))
    page.press("Run")
    return wait_for("a queued run", lambda: (set(server.get("/history")) | set(queued(server))) - known).pop()


def queued(server) -> list[str]:
    queue = server.get("/queue")
    return [entry[1] for entry in queue["queue_running"] + queue["queue_pending"]]


def wait_for_end(server, run_id: str) -> dict:
    return wait_for("the end of the run", lambda: server.get(f"/history/{run_id}").get(run_id))


def wait_for(what: str, found):
    """What `found` returns, once that is something."""
    deadline = time.monotonic() + RUN_SECONDS
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.3)
    raise AssertionError(f"{what} did not come within {RUN_SECONDS} s")


# Opening


def test_the_templates_are_in_the_dialog_and_open(page, server):
    page.command("Comfy.BrowseTemplates")
    page.tab.get_by_text(server.pack.name, exact=True).first.click(timeout=SLOW)
    pictures = {name: page.tab.locator(f"img[alt='{name}']").first for name in WORKFLOWS}
    for name, picture in pictures.items():
        picture.scroll_into_view_if_needed(timeout=SLOW)
        assert picture.evaluate(LOADED) == 768, name
    page.keep("templates")
    pictures[DEMO.stem].click(timeout=SLOW)
    page.tab.wait_for_function("() => app.graph.nodes.length > 0", timeout=SLOW)
    assert kinds(page.nodes) == kinds(graph_of(DEMO.stem)["nodes"])


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_dropped_workflow_opens_whole(page, name):
    page.drop(PACK / "workflows" / f"{name}.json", "application/json")
    nodes = page.nodes
    page.keep(name)
    assert kinds(nodes) == kinds(graph_of(name)["nodes"])
    assert [node["type"] for node in nodes if node["is_red"]] == []
    assert page.tab.get_by_role("dialog").count() == 0
    assert page.tab.locator("[data-node-id]").count() == (len(nodes) if page.has_vue_nodes else 0)
    for node in nodes:
        assert all(given >= least for given, least in zip(node["size"], node["least"], strict=True)), node["title"]
    assert page.collisions() == []


def test_missing_files_are_offered_for_download(open_page, no_named_files):
    page = open_page(**{"Comfy.Workflow.ShowMissingModelsWarning": True})
    page.drop(REAL, "application/json")
    dialog = page.tab.get_by_role("dialog").first
    for node in graph_of(REAL.stem)["nodes"]:
        for model in node["properties"].get("models", ()):
            dialog.get_by_text(model["name"], exact=False).first.wait_for(timeout=SLOW)
            assert dialog.get_by_title(model["url"]).count() > 0
    page.keep("missing_files")


# Running


def test_run_makes_a_video_that_plays_and_restores_the_graph(page, server):
    page.drop(DEMO, "application/json")
    page.set("HyvSampler", "seed", time.time_ns() % 10**9)  # a run known already makes no file
    entry = wait_for_end(server, run(page, server))
    assert entry["status"]["status_str"] == "success"
    file = next(file for output in entry["outputs"].values() for file in output.get("images", ()))
    sizes = page.wait_for_video(file["filename"])
    assert sizes["video"] == [64, 64]
    page.keep("ran")
    assert min(sizes["shown"]) > 64
    assert page.collisions() == []
    before = page.nodes
    page.tab.evaluate("() => app.graph.clear()")
    page.drop(server.base / "output" / file["subfolder"] / file["filename"], "video/mp4")
    after = page.nodes
    assert kinds(after) == kinds(before)
    assert [node["values"][:7] for node in after if node["type"] == "HyvSampler"] == [
        node["values"][:7] for node in before if node["type"] == "HyvSampler"
    ]


def test_the_second_of_two_clips_plays_too(page, server):
    page.drop(PACK / "workflows" / "demo_video_to_video.json", "application/json")
    page.set("HyvSampler", "seed", time.time_ns() % 10**9)
    entry = wait_for_end(server, run(page, server))
    assert entry["status"]["status_str"] == "success"
    files = [file["filename"] for output in entry["outputs"].values() for file in output.get("images", ())]
    assert len(files) == 2
    for file in files:
        page.wait_for_video(file)
    page.keep("ran_video_to_video")
    assert page.collisions() == []


def test_cancel_stops_the_run_and_the_next_one_succeeds(page, server):
    page.drop(DEMO, "application/json")
    page.set("HyvSampler", "steps", 5000)
    run_id = run(page, server)
    page.tab.wait_for_function("() => document.title.includes('%')", timeout=4 * SLOW)
    page.keep("running")
    page.press("Cancel current run")
    messages = [kind for kind, _ in wait_for_end(server, run_id)["status"]["messages"]]
    assert "execution_interrupted" in messages
    page.set("HyvSampler", "steps", 4)
    page.set("HyvSampler", "seed", time.time_ns() % 10**9)
    assert wait_for_end(server, run(page, server))["status"]["status_str"] == "success"


# Help and words


def test_help_opens(page):
    page.drop(DEMO, "application/json")
    page.tab.mouse.click(*page.point("HyvSampler", 130, -14))
    page.tab.get_by_test_id("info-button").first.click(timeout=SLOW)
    text = (PACK / "web" / "docs" / "HyvSampler.md").read_text(encoding="utf-8")
    sentence = text.splitlines()[2]
    page.tab.get_by_text(sentence, exact=True).first.wait_for(timeout=SLOW)
    page.keep("help")


def inputs_of(node_type: str) -> list[dict[str, object]]:
    """Sockets and widgets of a node in the demo workflow."""
    nodes = json.loads(DEMO.read_text(encoding="utf-8"))["nodes"]
    return next(node["inputs"] for node in nodes if node["type"] == node_type)


def test_the_page_speaks_chinese(open_page):
    page = open_page(**{"Comfy.Locale": "zh"})
    page.drop(DEMO, "application/json")
    words = json.loads((PACK / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))["HyvLoadTransformer"]
    titles = {node["type"]: node["title"] for node in page.nodes}
    assert titles["HyvLoadTransformer"] == words["display_name"]
    sockets = [entry for entry in inputs_of("HyvLoadTransformer") if "widget" not in entry]
    first_row = 32 if page.has_vue_nodes else 16
    page.tab.mouse.move(*page.point("HyvLoadTransformer", 60, first_row + 20 * len(sockets)))
    page.tab.get_by_text(words["inputs"]["file"]["tooltip"], exact=True).first.wait_for(timeout=SLOW)
    page.keep("chinese")
