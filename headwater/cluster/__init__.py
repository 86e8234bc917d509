"""Many machines instead of one: chunks of images, measured by the workers of a Ray cluster."""

from headwater.cluster.engine import ChunkWorker, Engine, Row, Rows
from headwater.cluster.journal import LOST
from headwater.cluster.ray_engine import Ray

__all__ = ["LOST", "ChunkWorker", "Engine", "Ray", "Row", "Rows"]
