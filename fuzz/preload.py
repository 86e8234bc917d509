"""Imported once by the server that processes are forked from: everything that a case needs."""

import importlib
import os

os.environ.setdefault("MPLBACKEND", "agg")


from fuzz.runner import areas

areas()
for name in ("headwater.experiments", "headwater.models", "headwater.training.classifier", "captum.attr"):
    importlib.import_module(name)
