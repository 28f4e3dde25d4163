"""ComfyUI's models."""
