"""A real ComfyUI server with the pack installed, and a client of its HTTP and WebSocket interface.

COMFYUI_PATH names a checkout of ComfyUI and COMFYUI_PYTHON the interpreter that runs it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

PACK = Path(__file__).parents[1]
PACK_PARTS = (
    "__init__.py",
    "nodes",
    "hyvideo_lib",
    "workflows",
    "web",
    "locales",
    "pyproject.toml",
    "requirements.txt",
)
START_SECONDS, RUN_SECONDS = 240, 300
Prompt = dict[str, dict[str, Any]]


class Refused(Exception):  # noqa: N818
    """The server's 400 for a prompt."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(json.dumps(answer)[:2000])
        self.answer = answer

    @property
    def details(self) -> str:
        """Everything it says about nodes, in one text."""
        errors = (error for node in self.answer.get("node_errors", {}).values() for error in node["errors"])
        return "\n".join(f"{error['message']}: {error['details']}" for error in errors)


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
"""As fast for a model this small, and a page that draws without a card needs the other cores."""


class Server:
    """One ComfyUI process in a base folder of its own."""

    def __init__(self, base: Path, install: str = "copy", folder: str = "hyvideo-under-test", *options: str) -> None:
        self.base = base
        self.pack = base / "custom_nodes" / folder
        self.log_file = base / "server.log"
        self.port = free_port()
        self.options = options
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (base / name).mkdir(parents=True, exist_ok=True)
        install_pack(self.pack, install)

    def __enter__(self) -> Server:
        command = [os.environ["COMFYUI_PYTHON"], "main.py", "--cpu", "--base-directory", str(self.base)]
        command += ["--port", str(self.port), "--disable-auto-launch", "--database-url", "sqlite:///:memory:"]
        command += ["--preview-method", "latent2rgb", "--disable-api-nodes", *self.options]
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=os.environ["COMFYUI_PATH"], stdout=log, stderr=subprocess.STDOUT, env=ONE_THREAD
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                return self
            except OSError:
                time.sleep(0.5)
        self.process.kill()
        raise RuntimeError(f"ComfyUI did not start:\n{self.log[-4000:]}")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=60) as answer:
            data = answer.read()
        return json.loads(data) if answer.headers.get_content_type() == "application/json" else data

    def post(self, path: str, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.address}{path}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise Refused(json.loads(error.read())) from None
        return json.loads(text) if text else None

    def view(self, file: dict[str, str]) -> bytes:
        """A file that a run left, through the server."""
        return self.get("/view?" + urllib.parse.urlencode(file))

    def free(self) -> None:
        """Ask for everything back, and wait until the worker has done it."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(2.5)

    # What the process holds

    def status(self, name: str) -> int:
        """A number of /proc/PID/status: RssAnon in kB, Threads."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
        raise KeyError(name)

    @property
    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def install_pack(target: Path, how: str) -> None:
    if how == "symlink":
        target.symlink_to(PACK, target_is_directory=True)
        return
    target.mkdir()
    for part in PACK_PARTS:
        source = PACK / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, target / part)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Outcome:
    """What a client heard of one run. previews: encoded images; texts: progress texts by node."""

    status: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event["data"] for event in self.events if event["type"] == kind]

    @property
    def executed_nodes(self) -> set[str]:
        """Nodes that really ran, not those whose cached output was used."""
        return {data["node"] for data in self.of("executing") if data.get("node")}

    @property
    def files(self) -> list[dict[str, str]]:
        outputs = self.history.get("outputs", {}).values()
        return [entry for output in outputs for key in ("images", "video") for entry in output.get(key, [])]

    @property
    def error(self) -> dict[str, Any]:
        return self.of("execution_error")[0]


class Client:
    """One page or script: its own id and WebSocket."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.id = uuid.uuid4().hex
        self.socket = websocket.create_connection(f"ws://{server.address}/ws?clientId={self.id}", timeout=RUN_SECONDS)

    def close(self) -> None:
        self.socket.close()

    def queue(self, prompt: Prompt) -> str:
        answer = self.server.post("/prompt", {"prompt": prompt, "client_id": self.id})
        return str(answer["prompt_id"])

    def run(self, prompt: Prompt, on_event: Callable[[str, Any], None] | None = None) -> Outcome:
        """Queue, listen until the end, and fetch the history."""
        return self.follow(self.queue(prompt), on_event)

    def follow(self, prompt_id: str, on_event: Callable[[str, Any], None] | None = None) -> Outcome:
        outcome = Outcome()
        ends = {"execution_success", "execution_error", "execution_interrupted"}
        while True:
            message = self.socket.recv()
            if isinstance(message, bytes):
                kind = struct.unpack(">I", message[:4])[0]
                if kind == 3:
                    size = struct.unpack(">I", message[4:8])[0]
                    outcome.texts.append((message[8 : 8 + size].decode(), message[8 + size :].decode()))
                else:
                    outcome.previews.append(message)
                    if on_event:
                        on_event("preview", message)
                continue
            event = json.loads(message)
            if event["data"].get("prompt_id") not in (None, prompt_id):
                continue
            outcome.events.append(event)
            if on_event:
                on_event(event["type"], event["data"])
            if event["type"] in ends and event["data"].get("prompt_id") == prompt_id:
                outcome.status = event["type"].removeprefix("execution_")
                break
        for _ in range(100):  # the history is written just after the last event
            history = self.server.get(f"/history/{prompt_id}")
            if prompt_id in history:
                outcome.history = history[prompt_id]
                break
            time.sleep(0.05)
        return outcome


def demo_prompt(text: str = "a red circle moving left on a black background", **changes: Any) -> Prompt:
    """A graph of every option socket on the demo model, in the API's form. changes: `node__input` = value."""
    prompt: Prompt = {
        "swap": node("HyvBlockSwap", double_blocks=-1, single_blocks=-1, prefetch=1),
        "model": node(
            "HyvLoadTransformer",
            file="hyvideo-demo",
            variant="auto",
            storage="as in the file",
            compute_dtype="auto",
            attention="auto",
            block_swap=["swap", 0],
        ),
        "texts": node(
            "HyvLoadTextEncoders",
            llm="hyvideo-demo",
            clip="hyvideo-demo",
            llm_tokenizer="found beside the file",
            clip_tokenizer="found beside the file",
            storage="auto",
            device="auto",
        ),
        "vae": node("HyvLoadVAE", file="hyvideo-demo", dtype="auto"),
        "template": node("HyvPromptTemplate", text="{}"),
        "embeds": node(
            "HyvEncodePrompt",
            text_encoders=["texts", 0],
            prompt=text,
            negative_prompt="",
            template="video",
            custom_template=["template", 0],
        ),
        "empty": node("HyvEmptyLatents", width=64, height=64, frames=17, batch=1),
        "rope": node("HyvRope", time_scale=1.0, height_scale=1.0, width_scale=1.0, extrapolate=False),
        "cfg": node("HyvGuidance", cfg_scale=1.0, start=0.0, end=1.0, rescale=0.0, batched=True),
        "cache": node(
            "HyvCache",
            method="teacache",
            threshold=0.0,  # computes every step
            start=-1.0,
            end=1.0,
            max_skips=-1,
            residuals="device",
        ),
        "sampler": node(
            "HyvSampler",
            model=["model", 0],
            embeds=["embeds", 0],
            latents=["empty", 0],
            steps=20,
            guidance=2.0,
            shift=3.0,
            seed=1,
            solver="euler",
            strength=1.0,
            rope=["rope", 0],
            guidance_options=["cfg", 0],
            cache=["cache", 0],
        ),
        "decode": node(
            "HyvDecode", vae=["vae", 0], latents=["sampler", 0], tiles="none", tile_size=256, tile_frames=64
        ),
        "video": node("CreateVideo", images=["decode", 0], fps=8.0),
        "save": node("SaveVideo", video=["video", 0], filename_prefix="hyvideo", format="auto", codec="auto"),
    }
    for name, value in changes.items():
        where, _, key = name.partition("__")
        if value is None:
            del prompt[where]["inputs"][key]
        else:
            prompt[where]["inputs"][key] = value
    return prompt


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
