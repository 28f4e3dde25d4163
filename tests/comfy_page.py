"""ComfyUI's page in a headless Chromium: what a person does on it, and what there is to see."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.UseNewMenu": "Top",
    "Comfy.Minimap.Visible": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.Locale": "en",
}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
VIEW = {"width": 1800, "height": 1000}
START, SLOW, SETTLE = 120_000, 30_000, 2_500
"""Milliseconds: until the page is there, until an answer to a click, until a dropped graph has its sizes."""
TITLE_HEIGHT = 30
Box = tuple[float, float, float, float]

READY = "() => window.app?.graph && LiteGraph.registered_node_types.SaveVideo"
DROP = """({name, type, data}) => {
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, {type}));
    const canvas = document.querySelector('#graph-canvas');
    for (const kind of ['dragenter', 'dragover', 'drop'])
        canvas.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true,
                                                  clientX: 900, clientY: 500}));
}"""
NODES = """() => app.graph.nodes.map(node => ({
    id: node.id, type: node.type, title: node.title,
    is_red: !!node.has_errors || !LiteGraph.registered_node_types[node.type],
    values: node.widgets?.map(widget => widget.value) ?? [],
    size: [...node.size], least: [...node.computeSize()],
}))"""
NODE_BOXES = """title => app.graph.nodes.map(node => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`);
    const [x, y] = node.pos, [width, height] = node.size;
    if (!element) return [x, y - title, x + width, y + height];
    const {scale, offset} = app.canvas.ds, origin = app.canvas.canvas.getBoundingClientRect();
    const {left, top, right, bottom} = element.getBoundingClientRect();
    return [(left - origin.left) / scale - offset[0], (top - origin.top) / scale - offset[1],
            (right - origin.left) / scale - offset[0], (bottom - origin.top) / scale - offset[1]];
})"""
GROUP_BOXES = "() => app.graph.groups.map(({pos: [x, y], size: [w, h]}) => [x, y, x + w, y + h])"
SPOT = """([type, right, down]) => {
    const node = app.graph.nodes.find(node => node.type === type);
    app.canvas.centerOnNode(node);
    const origin = app.canvas.canvas.getBoundingClientRect();
    const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + right, node.pos[1] + down]);
    return [x + origin.left, y + origin.top];
}"""
SET = """([type, name, value]) => {
    const node = app.graph.nodes.find(node => node.type === type);
    const widget = node.widgets.find(widget => widget.name === name);
    widget.value = value;
    widget.callback?.(value);
}"""
PLAYS = """async name => {
    const video = [...document.querySelectorAll('video')].find(video => video.currentSrc.includes(name));
    if (!video || video.readyState < 2) return null;
    video.muted = true;
    await video.play().catch(() => null);
    const {width, height} = video.getBoundingClientRect();
    return video.currentTime > 0 && {video: [video.videoWidth, video.videoHeight], shown: [width, height]};
}"""
VIDEOS = "() => [...document.querySelectorAll('video')].map(video => [video.currentSrc, video.readyState])"


class GraphPage:
    """The page of one server in one renderer, with nothing on its canvas."""

    def __init__(self, chromium: Any, server: Any, renderer: str, has_vue_nodes: bool, **settings: Any) -> None:
        server.post("/settings", SETTINGS | {"Comfy.VueNodes.Enabled": has_vue_nodes} | settings)
        self.server, self.renderer, self.has_vue_nodes = server, renderer, has_vue_nodes
        self.complaints: list[str] = []
        self.context = chromium.new_context(viewport=VIEW)
        self.context.route(lambda url: url.startswith("http") and server.address not in url, lambda it: it.abort())
        self.tab = self.context.new_page()
        self.tab.on("console", self._hear)
        self.tab.on("pageerror", lambda error: self._note(f"{error} {error.stack}"))
        self.tab.on("response", lambda answer: answer.status >= 400 and self._note(f"{answer.status} {answer.url}"))
        self.tab.goto(f"http://{server.address}/", wait_until="domcontentloaded", timeout=START)
        self.tab.wait_for_function(READY, timeout=START)
        self.tab.wait_for_timeout(SETTLE)
        self.tab.evaluate("() => app.graph.clear()")

    def close(self) -> None:
        self.context.close()

    # What goes wrong in the page on the pack's account

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            self._note(f"{message.text} {message.location['url']}")

    def _note(self, text: str) -> None:
        # The page looks for a help page in its language first, and asks a registry on the internet about packs.
        is_usual = "/docs/" in text or "api.comfy.org" in text
        if (self.server.pack.name in text or "Hyv" in text) and not is_usual:
            self.complaints.append(text)

    # What a person does

    def command(self, name: str) -> None:
        self.tab.evaluate("name => app.extensionManager.command.execute(name)", name)
        self.tab.wait_for_timeout(1000)

    def drop(self, path: Path, kind: str) -> None:
        """Let a file fall on the canvas. kind: its MIME type."""
        data = base64.b64encode(path.read_bytes()).decode()
        self.tab.evaluate(DROP, {"name": path.name, "type": kind, "data": data})
        self.tab.wait_for_function("() => app.graph.nodes.length > 0", timeout=SLOW)
        self.tab.wait_for_timeout(SETTLE)

    def set(self, node: str, widget: str, value: Any) -> None:
        self.tab.evaluate(SET, [node, widget, value])

    def press(self, button: str) -> None:
        self.tab.get_by_role("button", name=button, exact=True).first.click(timeout=SLOW)

    def point(self, node: str, right: float, down: float) -> tuple[float, float]:
        """Where a place of a node is on the screen, counted from the corner under its title."""
        x, y = self.tab.evaluate(SPOT, [node, right, down])
        self.tab.wait_for_timeout(1000)
        return x, y

    # What there is to see

    @property
    def nodes(self) -> list[dict[str, Any]]:
        return self.tab.evaluate(NODES)

    def collisions(self) -> list[str]:
        """Nodes that lie on another, or across the edge of a group, as they are drawn."""
        names = [f"{node['id']} {node['title']}" for node in self.nodes]
        boxes: list[Box] = [tuple(box) for box in self.tab.evaluate(NODE_BOXES, TITLE_HEIGHT)]
        groups: list[Box] = [tuple(box) for box in self.tab.evaluate(GROUP_BOXES)]
        found = []
        for i, box in enumerate(boxes):
            found += [f"{names[i]} on {names[j]}" for j in range(i) if meets(box, boxes[j])]
            found += [f"{names[i]} over an edge" for group in groups if meets(box, group) and not lies_in(box, group)]
        return found

    def wait_for_video(self, name: str) -> dict[str, list[float]]:
        """Sizes of the video and of its place on the page, once the video of that file name plays."""
        for _ in range(SLOW // 300):
            if sizes := self.tab.evaluate(PLAYS, name):
                return sizes
            self.tab.wait_for_timeout(300)
        raise AssertionError(f"{name} does not play: {self.tab.evaluate(VIDEOS)}")

    def keep(self, name: str) -> None:
        """A screenshot in the folder that HYVIDEO_SCREENSHOTS names."""
        folder = os.environ.get("HYVIDEO_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            version = self.server.get("/system_stats")["system"]["comfyui_version"]
            self.tab.screenshot(path=str(Path(folder) / f"{version}_{self.renderer}_{name}.png"))


def meets(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def lies_in(inner: Box, outer: Box) -> bool:
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]
