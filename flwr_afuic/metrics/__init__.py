"""How forgetting is judged: pure functions from arrays to numbers, read beside retraining."""

from flwr_afuic.metrics.backdoor import backdoor_success
from flwr_afuic.metrics.classification import accuracy, auroc, balanced_accuracy, cross_entropy
from flwr_afuic.metrics.distance import (
    jensen_shannon_divergence,
    jensen_shannon_per_sample,
    parameter_distance_ratio,
)
from flwr_afuic.metrics.fidelity import (
    ClientSpread,
    client_spread,
    dip_rounds,
    merge_dip,
    score_gap,
)
from flwr_afuic.metrics.gap import Scores, average_gap, gaps
from flwr_afuic.metrics.latency import (
    STALL_TOLERANCE,
    retained_throughput,
    stall_by_site,
    stall_seconds,
    time_to_forget,
)
from flwr_afuic.metrics.leakage import (
    label_from_gradient,
    peak_signal_to_noise,
    structural_similarity,
)
from flwr_afuic.metrics.membership import (
    attack_auc,
    likelihood_ratio_scores,
    membership_auc,
    modified_entropy,
    tpr_at_fpr,
)
from flwr_afuic.metrics.progress import lost_progress
from flwr_afuic.metrics.relearn import RelearnTime, relearn_ratio, relearn_rounds
from flwr_afuic.metrics.resurfacing import Resurfacing, resurfacing
from flwr_afuic.metrics.retrieval import Recall, bootstrap_interval, recall, retrieval_ranks
from flwr_afuic.metrics.timeline import TaskSpan

__all__ = [
    "STALL_TOLERANCE",
    "ClientSpread",
    "Recall",
    "RelearnTime",
    "Resurfacing",
    "Scores",
    "TaskSpan",
    "accuracy",
    "attack_auc",
    "auroc",
    "average_gap",
    "backdoor_success",
    "balanced_accuracy",
    "bootstrap_interval",
    "client_spread",
    "cross_entropy",
    "dip_rounds",
    "gaps",
    "jensen_shannon_divergence",
    "jensen_shannon_per_sample",
    "label_from_gradient",
    "likelihood_ratio_scores",
    "lost_progress",
    "membership_auc",
    "merge_dip",
    "modified_entropy",
    "parameter_distance_ratio",
    "peak_signal_to_noise",
    "recall",
    "relearn_ratio",
    "relearn_rounds",
    "resurfacing",
    "retained_throughput",
    "retrieval_ranks",
    "score_gap",
    "stall_by_site",
    "stall_seconds",
    "structural_similarity",
    "time_to_forget",
    "tpr_at_fpr",
]
