"""Everything that a case needs, imported once by the server that worker processes are forked from."""

import importlib
import os

os.environ.setdefault("MPLBACKEND", "agg")


from fuzz.runner import areas

areas()
for name in ("headwater.experiments", "headwater.models", "headwater.training.classifier", "captum.attr"):
    importlib.import_module(name)
