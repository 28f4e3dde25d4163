"""The pack on ComfyUI's page, in headless Chromium, in the classic renderer and in Nodes 2.0.

Screenshots are kept in the folder that HYVIDEO_SCREENSHOTS names, if it is set.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from comfy_server import PACK

sync_api = pytest.importorskip("playwright.sync_api", reason="install playwright for the tests on ComfyUI's page")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
RENDERERS = {"classic": False, "nodes2": True}
WORKFLOWS = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
READY = "() => window.app?.graph && document.querySelector('#graph-canvas')"
DROP = """async ({name, type, data}) => {
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, {type}));
    const canvas = document.querySelector('#graph-canvas');
    for (const kind of ['dragenter', 'dragover', 'drop'])
        canvas.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true,
                                                  clientX: 900, clientY: 500}));
}"""
TYPES = "() => window.app.graph.nodes.map(n => n.type).sort()"
RED = """() => window.app.graph.nodes.filter(n => n.has_errors || !LiteGraph.registered_node_types[n.type])
                                      .map(n => n.type)"""
PLAYS = """async () => {
    const video = document.querySelector('video');
    if (!video || video.readyState < 2) return false;
    video.muted = true;
    await video.play().catch(() => null);
    return video.videoWidth > 0 && video.currentTime > 0;
}"""


@pytest.fixture(scope="module")
def chromium():
    if not CHROMIUM:
        pytest.skip("install chromium, or name it with CHROMIUM, for the tests on ComfyUI's page")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=list(RENDERERS))
def page(request, chromium, server):
    settings = {
        "Comfy.TutorialCompleted": True,
        "Comfy.VueNodes.Enabled": RENDERERS[request.param],
        "Comfy.Workflow.ShowMissingModelsWarning": False,
        "Comfy.UseNewMenu": "Top",
    }
    server.post("/settings", settings)
    context = chromium.new_context(viewport={"width": 1800, "height": 1000})
    opened = context.new_page()
    opened.renderer = request.param
    opened.goto(f"http://{server.address}/")
    opened.wait_for_function(READY, timeout=120_000)
    opened.wait_for_timeout(3000)
    opened.evaluate("() => window.app.graph.clear()")
    yield opened
    context.close()


def keep(page, name: str) -> None:
    folder = os.environ.get("HYVIDEO_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{page.renderer}_{name}.png"))


def drop(page, path: Path, kind: str) -> None:
    data = base64.b64encode(path.read_bytes()).decode()
    page.evaluate(DROP, {"name": path.name, "type": kind, "data": data})
    page.wait_for_timeout(2500)


def wait_for_end(server, before: int) -> dict:
    """The newest history entry, once there is one more than before."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        history = server.get("/history")
        if len(history) > before:
            return list(history.values())[-1]
        time.sleep(0.5)
    raise AssertionError("the run did not end")


def test_the_templates_are_in_the_dialog(page, server):
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(server.pack.name, exact=False).first.click(timeout=20_000)
    page.get_by_text("demo text to video", exact=False).first.wait_for(timeout=20_000)
    keep(page, "templates")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_dropped_workflow_opens_whole(page, name):
    path = PACK / "workflows" / f"{name}.json"
    drop(page, path, "application/json")
    wanted = sorted(entry["type"] for entry in json.loads(path.read_text())["nodes"])
    assert page.evaluate(TYPES) == wanted
    assert page.evaluate(RED) == []
    assert page.get_by_text("Missing Node", exact=False).count() == 0
    keep(page, name)


def test_run_makes_a_video_that_plays_and_restores_the_graph(page, server):
    path = PACK / "workflows" / "demo_text_to_video.json"
    drop(page, path, "application/json")
    before = len(server.get("/history"))
    page.evaluate(
        "() => { for (const n of app.graph.nodes) if (n.type === 'HyvSampler')"
        " n.widgets.find(w => w.name === 'seed').value = Math.floor(Math.random() * 1e9) }"
    )
    page.evaluate("() => window.app.queuePrompt(0)")
    entry = wait_for_end(server, before)
    assert entry["status"]["status_str"] == "success"
    page.wait_for_function(PLAYS, timeout=30_000)
    page.evaluate("() => { app.canvas.ds.reset?.(); app.canvas.fitViewToSelectionAnimated?.() }")
    keep(page, "ran")
    files = [file for output in entry["outputs"].values() for file in output.get("images", [])]
    video = server.base / "output" / files[0]["subfolder"] / files[0]["filename"]
    types = page.evaluate(TYPES)
    page.evaluate("() => window.app.graph.clear()")
    drop(page, video, "video/mp4")
    assert page.evaluate(TYPES) == types


def test_cancel_stops_the_run(page, server):
    drop(page, PACK / "workflows" / "demo_text_to_video.json", "application/json")
    page.evaluate(
        "() => { for (const n of app.graph.nodes) if (n.type === 'HyvSampler')"
        " n.widgets.find(w => w.name === 'steps').value = 5000 }"
    )
    before = len(server.get("/history"))
    page.evaluate("() => window.app.queuePrompt(0)")
    page.wait_for_timeout(6000)
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Interrupt')")
    entry = wait_for_end(server, before)
    kinds = [message[0] for message in entry["status"]["messages"]]
    assert "execution_interrupted" in kinds


def test_help_opens(page):
    drop(page, PACK / "workflows" / "demo_text_to_video.json", "application/json")
    page.evaluate(
        "() => { const n = app.graph.nodes.find(n => n.type === 'HyvSampler');"
        " app.canvas.deselectAll(); app.canvas.select(n); app.canvas.centerOnNode(n) }"
    )
    page.get_by_test_id("info-button").first.click(timeout=20_000)
    page.get_by_text("strength", exact=False).first.wait_for(timeout=20_000)
    keep(page, "help")
