"""Video files: pixels to mp4 and back, with the settings that made them inside. imageio-ffmpeg brings the ffmpeg."""

from .flat import FlatWatch
from .frames import frames_from_pixels, pixels_from_frames
from .probe import VideoInfo, probe_size, probe_video
from .rate import check_fps, rate_text
from .read import read_frames
from .settings import is_mp4, read_settings
from .take import TakenVideo, take_video
from .write import write_video

__all__ = [
    "FlatWatch",
    "TakenVideo",
    "VideoInfo",
    "check_fps",
    "frames_from_pixels",
    "is_mp4",
    "pixels_from_frames",
    "probe_size",
    "probe_video",
    "rate_text",
    "read_frames",
    "read_settings",
    "take_video",
    "write_video",
]
