"""What AFU-IC is compared with: methods of the literature as Flower strategies, one a file."""

from flwr_afuic.strategies.comparators.base import Comparator
from flwr_afuic.strategies.comparators.distillation import ProxyDistill
from flwr_afuic.strategies.comparators.fcu import FCU
from flwr_afuic.strategies.comparators.federaser import FedEraser
from flwr_afuic.strategies.comparators.fedosd import FedOSD
from flwr_afuic.strategies.comparators.negation import NoT
from flwr_afuic.strategies.comparators.pga import PGA

__all__ = ["FCU", "PGA", "Comparator", "FedEraser", "FedOSD", "NoT", "ProxyDistill"]
