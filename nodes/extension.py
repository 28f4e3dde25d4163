"""What the pack offers to ComfyUI: every node of every module's NODES table."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import decode, info, latents, load, lora, options, plan, sample, text

MODULES = (load, text, latents, options, lora, sample, decode, info, plan)


def list_nodes() -> list[type[io.ComfyNode]]:
    """All nodes in the order of the graph. Raises ValueError if two share an id: one would silently replace the other.

    Ids are read from the schemas, as ComfyUI does.
    """
    nodes = [node for module in MODULES for node in module.NODES]
    ids = [node.define_schema().node_id for node in nodes]
    twice = {node_id for node_id in ids if ids.count(node_id) > 1}
    if twice:
        raise ValueError(f"Node ids are used twice: {', '.join(sorted(twice))}.")
    return nodes


class HyvideoExtension(ComfyExtension):
    """The entry point's answer."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list_nodes()
