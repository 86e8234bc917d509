"""Pictures of relevance for inputs that are no images: features, signals, volumes, videos and tokens.

In goes an input and its relevance; out comes a PNG, HTML for tokens, or a NIfTI file for volumes. It knows no network;
colours and their range are those of :mod:`headwater.report.images`.
"""

from headwater.pictures.features import features_figure, largest_and_rest
from headwater.pictures.nifti import read_nifti, save_nifti
from headwater.pictures.notebook import explanation_html, explanation_png
from headwater.pictures.picture import picture
from headwater.pictures.pieces import Piece, pieces
from headwater.pictures.signal import signal_figure, summed_per_column
from headwater.pictures.tokens import tokens_figure, tokens_html
from headwater.pictures.video import chosen_frames, frame_parts, video_figure
from headwater.pictures.volume import strongest_voxel, volume_figure

__all__ = [
    "Piece",
    "chosen_frames",
    "explanation_html",
    "explanation_png",
    "features_figure",
    "frame_parts",
    "largest_and_rest",
    "picture",
    "pieces",
    "read_nifti",
    "save_nifti",
    "signal_figure",
    "strongest_voxel",
    "summed_per_column",
    "tokens_figure",
    "tokens_html",
    "video_figure",
    "volume_figure",
]
