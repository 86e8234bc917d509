"""Images, their preprocessing, and data sets."""

from headwater.data.images import open_image
from headwater.data.preprocessing import Box, Preprocessing

__all__ = ["Box", "Preprocessing", "open_image"]
