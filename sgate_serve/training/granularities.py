"""The granularities of `--gates`: coupled gates, whole experts, and gates of rows and columns.

Each defines the sites of the gates and the selection of those that close. Gates that can be trained
also have an initialization and an expected removal.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.training.gates.expected_removal import Removal, coupled_removal, row_col_removal
from sgate_serve.training.gates.initialization import GateInitialization, start_at_mask, start_open
from sgate_serve.training.masks.coupled_selection import select_units
from sgate_serve.training.masks.expert_selection import select_experts
from sgate_serve.training.masks.prunable_sites import (
    GateValues,
    PrunableSite,
    expert_sites,
    row_col_sites,
    unit_sites,
)
from sgate_serve.training.masks.removal_target import RemovalTarget
from sgate_serve.training.masks.row_col_selection import select_rows_and_columns
from sgate_serve.training.masks.selection import Ranking, Selection
from sgate_serve.training.train_options import COUPLED, EXPERTS, ROW_COL, TrainOptions


@dataclass(frozen=True)
class Granularity:
    """The functions that make up one granularity."""

    sites: Callable[[ModelSpec], tuple[PrunableSite, ...]]
    select: Callable[[ModelSpec, Ranking, RemovalTarget, str], Selection]

    def check_reachable(self, spec: ModelSpec, target: RemovalTarget, gate_block: int = 1) -> None:
        """Raise TrainingError if no selection of these gates meets `target`; needs no scores."""
        flat = {s.gate.key: np.zeros(s.gate.num_gates, np.float32) for s in self.sites(spec)}
        self.select(spec, Ranking(flat, gate_block=gate_block), target, "")


@dataclass(frozen=True)
class GateParts:
    """What training gates of one granularity takes besides."""

    initialize: Callable[[ModelSpec, GateValues, RemovalTarget, TrainOptions], GateInitialization]
    removal: Callable[[ModelSpec], Removal]


GRANULARITIES: Mapping[str, Granularity] = {
    COUPLED: Granularity(unit_sites, select_units),
    EXPERTS: Granularity(expert_sites, select_experts),
    ROW_COL: Granularity(row_col_sites, select_rows_and_columns),
}
# Whole experts are scored, not trained.
TRAINABLE: Mapping[str, GateParts] = {
    COUPLED: GateParts(start_at_mask, coupled_removal),
    ROW_COL: GateParts(start_open, row_col_removal),
}
