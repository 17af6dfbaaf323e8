"""What a report does not show, said in the report itself."""

from __future__ import annotations

from flwr_afuic.report.record import RunRecord
from flwr_afuic.report.tables import METRIC_NAMES, sense


def cannot_tell(record: RunRecord) -> list[str]:
    """Return the metrics on which the original model is as near to retraining as the floor."""
    return [METRIC_NAMES[item.metric] for item in sense(record) if item.tells is False]


def limits(record: RunRecord) -> list[str]:
    """Return what this report does not show."""
    lines = [
        "This is empirical evidence, not a guarantee: a different test might still find a trace.",
        "The reference that bounded the unlearning was distilled from a model that had learned "
        "the erased data. It is a yardstick, not a proof.",
        "The scores on the erased data come from the site itself: verification rests on its word.",
        "Copies at sites, released models, backups and the databases and temporary files of the "
        "runtime are out of reach of this erasure.",
        f"One run with one seed ({record.seed}): differences smaller than the retrain-to-retrain "
        "floor mean nothing.",
        "This page is not the signed certificate, and it is not legal advice.",
    ]
    blunt = cannot_tell(record)
    if blunt:
        verb = "does" if len(blunt) == 1 else "do"
        lines.insert(
            1,
            f"{', '.join(blunt)} {verb} not differ between the original and a retrained model by "
            "more than the floor, and so cannot show that anything was erased here.",
        )
    if record.scenario == "backdoor":
        lines.insert(
            1,
            "The planted trigger is a probe for the influence of the whole site; it does not "
            "follow the trace of any single patient.",
        )
    if record.synthetic:
        lines.insert(0, "The images were generated: nothing here was measured on real patients.")
    return lines
