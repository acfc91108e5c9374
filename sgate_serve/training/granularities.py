"""What `--gates` chooses: where gates sit, how they start, what they remove, how they snap."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.training.coupled_snap import snap_units
from sgate_serve.training.expected_removal import Removal, coupled_removal, row_col_removal
from sgate_serve.training.row_col_snap import snap_rows_and_columns
from sgate_serve.training.sites import Scores, TrainedSite, row_col_sites, unit_sites
from sgate_serve.training.snap import Choice, Snap
from sgate_serve.training.start import Start, mask_start, papers_start
from sgate_serve.training.train_options import COUPLED, ROW_COL, TrainOptions


@dataclass(frozen=True)
class Granularity:
    """One kind of gates: where they sit, start, what they remove on average, and how they end."""

    sites: Callable[[ModelSpec], tuple[TrainedSite, ...]]
    start: Callable[[ModelSpec, Scores, TrainOptions], Start]
    removal: Callable[[ModelSpec], Removal]
    snap: Callable[[ModelSpec, Choice, float, str], Snap]

    def check_reachable(self, spec: ModelSpec, target: float, block: int = 1) -> None:
        """Raise TrainingError, before anything is trained, if no gates here meet `target`."""
        flat = {s.gate.key: np.zeros(s.gate.num_gates, np.float32) for s in self.sites(spec)}
        self.snap(spec, Choice(flat, block=block), target, "")


GRANULARITIES: Mapping[str, Granularity] = {
    COUPLED: Granularity(unit_sites, mask_start, coupled_removal, snap_units),
    ROW_COL: Granularity(row_col_sites, papers_start, row_col_removal, snap_rows_and_columns),
}
