"""What kinds of layers there are, for :func:`headwater.register_layer`; see :mod:`headwater.engine.layers`."""

from headwater.engine.layer_table import register_layer
from headwater.engine.layers import (
    Elementwise,
    Join,
    Layer,
    MatrixProduct,
    MaxPool,
    MaxSelect,
    Product,
    Rearrange,
)
from headwater.engine.linear_layers import Average, Linear

__all__ = [
    "Average",
    "Elementwise",
    "Join",
    "Layer",
    "Linear",
    "MatrixProduct",
    "MaxPool",
    "MaxSelect",
    "Product",
    "Rearrange",
    "register_layer",
]
