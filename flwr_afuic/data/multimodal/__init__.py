"""Image-text pairs: a table on disk, the covid_cxr_text set, or generated ones."""

from flwr_afuic.data.multimodal.captions import choose_caption, names_somebody
from flwr_afuic.data.multimodal.pairs import Federation, ImageTextSet, split_places
from flwr_afuic.data.multimodal.phantoms import make_pair_phantoms
from flwr_afuic.data.multimodal.source import CLIENTS, load_covid_cxr_text, load_pairs
from flwr_afuic.data.multimodal.table import PairRow, read_pairs

__all__ = [
    "CLIENTS",
    "Federation",
    "ImageTextSet",
    "PairRow",
    "choose_caption",
    "load_covid_cxr_text",
    "load_pairs",
    "make_pair_phantoms",
    "names_somebody",
    "read_pairs",
    "split_places",
]
