"""What `--method` chooses: how gates come to be 0 or open.

Trained gates start from Fisher scores and end in the same snap that one-shot scores go to.
"""

from collections.abc import Sequence

import numpy as np
from torch import nn

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.gates import Gates
from sgate_serve.training.contest import best_gates
from sgate_serve.training.gate_phase import GateTraining, train_gates
from sgate_serve.training.granularities import GRANULARITIES
from sgate_serve.training.importance import SCORING_BATCHES, fisher_scores, scores_of
from sgate_serve.training.kurtosis import kurtosis_pull
from sgate_serve.training.parts import Part
from sgate_serve.training.phases import Phase
from sgate_serve.training.processes import agreed
from sgate_serve.training.relaxations import RELAXATIONS
from sgate_serve.training.samples import Batch, Data
from sgate_serve.training.snap import Choice
from sgate_serve.training.start import num_groups_of
from sgate_serve.training.train_options import COUPLED, DENSE, GATES, TrainOptions
from sgate_serve.training.trained_gates import TrainedGates

# Batches that trained gates and their start are compared on.
CONTEST_BATCHES = 12


def find_gates(
    model: nn.Module, base: Checkpoint, data: Data, options: TrainOptions, phase: Phase
) -> tuple[Gates, tuple[str, ...]]:
    """Return gates that are exactly 0 or open, and the tensors of `model` trained beside them.

    Raises TrainingError if no snap meets the target.
    """
    if options.method == DENSE:
        return _open_gates(base, options), ()
    kind, spec = GRANULARITIES[options.gates], base.spec

    def snap(choice: Choice) -> Gates:
        return kind.snap(spec, choice, options.target, base.fingerprint).gates

    batches = data.shuffled_batches(options.batch_size, SCORING_BATCHES, options.seed)
    changed: tuple[str, ...] = ()
    if options.method == GATES:
        gates, training = _gates_to_train(model, spec, batches, options)
        changed = train_gates(model, spec, gates, data, training, phase)
        method = f"{options.gate_relaxation} gates, augmented Lagrangian, top-k snap"
        block, groups = options.gate_block, training.start.num_groups
        choice = Choice(gates.scores(), gates.read_outs(), block, method, groups)
        if options.gates == COUPLED:
            others = data.shuffled_batches(options.batch_size, CONTEST_BATCHES, options.seed + 1)
            start = training.start.logits
            return agreed(best_gates(model, spec, choice, start, snap, others)), changed
    else:
        sites = kind.sites(spec)
        scores = agreed(scores_of(options.method, model, sites, batches, options.seed))
        method = f"one-shot {options.method} scores, top-k snap"
        groups = num_groups_of(spec, scores, options)
        choice = Choice(scores, None, options.gate_block, method, groups)
    return agreed(snap(choice)), changed


def _gates_to_train(
    model: nn.Module, spec: ModelSpec, batches: Sequence[Batch], options: TrainOptions
) -> tuple[TrainedGates, GateTraining]:
    """Return gates that start in the order of their Fisher scores, and how they are trained."""
    kind = GRANULARITIES[options.gates]
    sites = kind.sites(spec)
    scores = agreed(fisher_scores(model, sites, batches))
    pull = kurtosis_pull(model, sites, batches) if options.kurtosis else None
    start = kind.start(spec, scores, options)
    relaxation = RELAXATIONS[options.gate_relaxation]
    gates = TrainedGates(sites, start.logits, kind.removal(spec), relaxation, pull)
    beside = Part(options.beside_gates, options.lora_rank, options.seed)
    return gates, GateTraining(start, options.gate_learning_rate, beside)


def _open_gates(base: Checkpoint, options: TrainOptions) -> Gates:
    sites = GRANULARITIES[options.gates].sites(base.spec)
    return Gates(
        method="dense, nothing removed",
        family=base.spec.family.name,
        granularity=options.gates,
        base_fingerprint=base.fingerprint,
        values={site.gate.key: np.ones(site.gate.num_gates, np.float32) for site in sites},
    )
