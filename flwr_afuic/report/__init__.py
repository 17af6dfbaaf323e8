"""Reports of a run: a checked record, three figures, one HTML page and a terminal table."""

from flwr_afuic.report.figures import write_figures
from flwr_afuic.report.html import write_report
from flwr_afuic.report.record import RunRecord
from flwr_afuic.report.text import summary_table

__all__ = ["RunRecord", "summary_table", "write_figures", "write_report"]
