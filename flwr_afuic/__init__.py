"""flwr-afuic: the right to be forgotten for Flower federations."""

__version__ = "0.1.0"
__all__ = ["__version__"]
