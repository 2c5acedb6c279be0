"""Layer-parallel training of deep residual networks with auxiliary variables, over MPI."""

__version__ = "0.1.0"
