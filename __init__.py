"""hyvideo: HunyuanVideo for ComfyUI. What ComfyUI reads; nothing is imported before it asks.

(ComfyUI has a module `nodes` of its own, and test runners import this file outside any package, so the import of ours
is relative and stands inside the function.)
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The extension with all nodes. ComfyUI prints one line only when this fails, so the traceback is logged here."""
    try:
        from .nodes.extension import HyvideoExtension
    except Exception:
        import logging

        logging.getLogger(__name__).exception("hyvideo could not be loaded")
        raise
    return HyvideoExtension()
