"""Every error that Headwater raises on purpose, each saying what was given, what is accepted and what to do."""

from __future__ import annotations


class HeadwaterError(Exception):
    """Base of all of Headwater's own errors."""


class UnsupportedOperationError(HeadwaterError):
    """The network contains an operation for which no rule is registered."""


class TraceError(HeadwaterError):
    """The network could not be turned into a list of operations."""


class InputError(HeadwaterError, ValueError):
    """A tensor, target, name or option does not fit."""


class ImageError(HeadwaterError):
    """An image file cannot be read, or is not safe to read."""


class CheckpointError(HeadwaterError):
    """A weights file is missing, unsafe, broken, or of another architecture."""


class DownloadError(HeadwaterError):
    """Weights are not at hand and could not be fetched."""


class DataError(HeadwaterError):
    """A data folder does not have the layout that was expected."""


class StorageError(HeadwaterError):
    """Object storage denies access, cannot be reached, or is not known."""


class ClusterError(HeadwaterError):
    """The workers of a cluster cannot do the work: they cannot start, lack the network, or keep dying."""


class ExportError(HeadwaterError):
    """A network with its sweep cannot be written as one graph, or the graph gives other maps."""


class CompileError(HeadwaterError):
    """A sweep cannot be compiled; the message names the operation."""


class MissingDependencyError(HeadwaterError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class OutputError(HeadwaterError):
    """A result cannot be written where it was asked for."""


class CompileWarning(UserWarning):
    """A sweep cannot be compiled and runs uncompiled, as was asked for."""


class ConservationWarning(UserWarning):
    """A map does not sum to the relevance that the sweep began with."""
