"""Clinical sources: tables of DICOM, NIfTI, PNG and JPEG files of patients, read through MONAI."""

from flwr_afuic.data.clinical.preparation import Preparation
from flwr_afuic.data.clinical.problems import Problem, Report
from flwr_afuic.data.clinical.source import ClinicalSet, ClinicalSource
from flwr_afuic.data.clinical.table import Row, read_table

__all__ = [
    "ClinicalSet",
    "ClinicalSource",
    "Preparation",
    "Problem",
    "Report",
    "Row",
    "read_table",
]
