"""Flower strategies: the asynchronous engine and one file per method."""

from flwr_afuic.strategies.afuic import AFUIC
from flwr_afuic.strategies.asynchronous import AsyncStrategy
from flwr_afuic.strategies.bounds import NoUnlearning, Retrain
from flwr_afuic.strategies.ease import EASE
from flwr_afuic.strategies.medu import MEDU
from flwr_afuic.strategies.recording import Recording

__all__ = ["AFUIC", "EASE", "MEDU", "AsyncStrategy", "NoUnlearning", "Recording", "Retrain"]
