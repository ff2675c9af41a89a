"""Whole networks as a strategy of hypothesis: `networks` draws a valid ONNX model and data for it.

`scope` holds a graph in the making, `layers`, `operators` and `bodies` what is put into it, and `dressing` the form in
which a model file comes: names, order of nodes, dimensions, constants. Networks are valid by construction: ONNX Runtime
runs the plain form of each of them.
"""

from networks.strategy import Network, networks

__all__ = ["Network", "networks"]
