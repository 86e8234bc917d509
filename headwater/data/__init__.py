"""Pictures, their preprocessing, and data sets."""

from headwater.data.pictures import open_picture
from headwater.data.preprocessing import Box, Preprocessing

__all__ = ["Box", "Preprocessing", "open_picture"]
