"""Queue an API workflow on a running ComfyUI, follow it, and fetch the files it saved. Ctrl-C cancels it.

    python docs/headless.py workflows/api/demo_text_to_video.json --prompt "a white square on a black background"

Needs the package websocket-client. Exit codes: 0 done, 1 failed, 2 refused, 3 cancelled.
"""

# ruff: noqa: T201, S310

import argparse
import json
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import websocket

PROMPT_INPUTS = {"HyvEncodePrompt": "prompt", "CLIPTextEncode": "text"}


def main():
    parser = argparse.ArgumentParser(description="Run an API workflow on a ComfyUI server.")
    parser.add_argument("workflow", type=Path)
    parser.add_argument("--prompt", action="append", default=[], help="again for a graph with more than one")
    parser.add_argument("--seed", type=int, help="of every sampler")
    parser.add_argument("--server", default="127.0.0.1:8188")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the files")
    args = parser.parse_args()

    graph = json.loads(args.workflow.read_text(encoding="utf-8"))
    encoders = [node for node in graph.values() if node["class_type"] in PROMPT_INPUTS]
    for node, text in zip(encoders, args.prompt, strict=False):
        node["inputs"][PROMPT_INPUTS[node["class_type"]]] = text
    for node in graph.values():
        if node["class_type"] == "HyvSampler" and args.seed is not None:
            node["inputs"]["seed"] = args.seed

    client = uuid.uuid4().hex
    socket = websocket.create_connection(f"ws://{args.server}/ws?clientId={client}")
    try:
        job = post(args.server, "/prompt", {"prompt": graph, "client_id": client})["prompt_id"]
    except urllib.error.HTTPError as error:
        stop(2, refusal(json.load(error)) if error.code == 400 else str(error))
    try:
        files = follow(socket, job, graph)
    except KeyboardInterrupt:
        post(args.server, "/queue", {"delete": [job]})  # while it waits
        post(args.server, "/interrupt", {"prompt_id": job})  # while it runs
        stop(3, "cancelled")
    args.out.mkdir(parents=True, exist_ok=True)
    for file in files:
        target = args.out / file["filename"]
        urllib.request.urlretrieve(f"http://{args.server}/view?{urllib.parse.urlencode(file)}", target)
        print(target)


def post(server, path, body):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{server}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read() or "null")


def follow(socket, job, graph):
    """The files that the job saved, once it is done."""
    files = []
    while True:
        message = socket.recv()
        if isinstance(message, bytes):  # a preview, or a text that stands on a node
            continue
        kind, data = (event := json.loads(message))["type"], event["data"]
        if data.get("prompt_id") != job:
            continue
        if kind == "progress":  # of steps or tiles
            print(f"{graph[data['node']]['_meta']['title']}: {data['value']}/{data['max']}", file=sys.stderr)
        elif kind == "executed":
            files += (data["output"] or {}).get("images", [])
        elif kind == "execution_error":
            stop(1, f"{data['node_type']}: {data['exception_message']}")
        elif kind == "execution_interrupted":
            stop(3, "cancelled by someone else")
        elif kind == "execution_success":
            return files


def refusal(answer):
    """What was wrong with the graph; the server repeats a sentence for every input it is about."""
    errors = [error for node in answer["node_errors"].values() for error in node["errors"]]
    lines = [error["details"].partition(" - ")[2] or f"{error['message']}: {error['details']}" for error in errors]
    return "\n".join(dict.fromkeys(lines)) or answer["error"]["message"]


def stop(code, message):
    print(message, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
