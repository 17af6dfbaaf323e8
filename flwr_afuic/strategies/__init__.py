"""Flower strategies: the asynchronous engine and one file per method."""

from flwr_afuic.strategies.afuic import AFUIC
from flwr_afuic.strategies.asynchronous import AsyncStrategy
from flwr_afuic.strategies.bounds import NoUnlearning, Retrain

__all__ = ["AFUIC", "AsyncStrategy", "NoUnlearning", "Retrain"]
