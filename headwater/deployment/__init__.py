"""A network with its relevance map as one graph that runs without Headwater: ONNX or an archive of ``torch.export``."""

from headwater.deployment.export import Exported as Exported
from headwater.deployment.export import export as export
from headwater.deployment.running import run_exported as run_exported

__all__ = ["Exported", "export", "run_exported"]
