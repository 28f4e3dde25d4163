"""Video files: pixels to mp4 and back, with the settings that made them inside. imageio-ffmpeg brings the ffmpeg."""

from .flat import FlatWatch
from .frames import frames_from_pixels, pixels_from_frames
from .read import probe_size, read_frames
from .settings import is_mp4, read_settings
from .write import write_video

__all__ = [
    "FlatWatch",
    "frames_from_pixels",
    "is_mp4",
    "pixels_from_frames",
    "probe_size",
    "read_frames",
    "read_settings",
    "write_video",
]
