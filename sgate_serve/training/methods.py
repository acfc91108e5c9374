"""The methods of `--method`, each of which decides which gates close.

One-shot methods score the gates once. Trained gates start from Fisher scores. All of them end in
the same selection.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import nn

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.gates import Gates
from sgate_serve.progress import activity
from sgate_serve.training.gates.initialization import num_groups_of
from sgate_serve.training.gates.kurtosis import kurtosis_pressure
from sgate_serve.training.gates.relaxations import RELAXATIONS
from sgate_serve.training.gates.trained_gates import TrainedGates
from sgate_serve.training.granularities import GRANULARITIES, TRAINABLE
from sgate_serve.training.masks.comparison import best_mask
from sgate_serve.training.masks.given_mask import is_to_refit, load_deltas, read_mask
from sgate_serve.training.masks.importance import SCORING_BATCHES, fisher_scores, scores_of
from sgate_serve.training.masks.known_scores import known_scores
from sgate_serve.training.masks.reconstruction import calibration_batches, reconstruct
from sgate_serve.training.masks.removal_target import RemovalTarget
from sgate_serve.training.masks.selection import Ranking
from sgate_serve.training.phases.gates import GateTraining, train_gates
from sgate_serve.training.phases.trainer import Phase
from sgate_serve.training.phases.tuning import Tuning
from sgate_serve.training.processes import agreed
from sgate_serve.training.tasks.training_data import Batch, TrainingData
from sgate_serve.training.train_options import COUPLED, DENSE, FISHER, GATES, TrainOptions

# Batches on which the masks of trained gates and of their start are compared.
COMPARISON_BATCHES = 12


def find_gates(
    model: nn.Module,
    base: Checkpoint,
    data: TrainingData,
    target: RemovalTarget,
    options: TrainOptions,
    gate_phase: Phase,
) -> tuple[Gates, tuple[str, ...]]:
    """Return the gates, and the names of the tensors that changed with them.

    They are those given by `--mask`, or exactly 0 or open. Under coupled gates, what reads the
    units is refitted to those that stay. Raises TrainingError if no selection meets the target.
    """
    if options.method == DENSE:
        return _open_gates(base, options), ()
    if options.mask is None:
        gates, changed = _choose(model, base, data, target, options, gate_phase)
        refits = options.refits
    else:
        gates = read_mask(base, options)
        changed, refits = load_deltas(model, gates), is_to_refit(gates, options)
    if refits:
        masks = gates.masks(base.spec)
        with activity("refitting to what stays"):
            batches = calibration_batches(base.spec, data, options.batch_size, options.seed)
            changed += reconstruct(model, base.spec, masks, batches)
    return gates, tuple(dict.fromkeys(changed))


def _choose(
    model: nn.Module,
    base: Checkpoint,
    data: TrainingData,
    target: RemovalTarget,
    options: TrainOptions,
    gate_phase: Phase,
) -> tuple[Gates, tuple[str, ...]]:
    granularity, spec = GRANULARITIES[options.gates], base.spec

    def select(ranking: Ranking) -> Gates:
        return granularity.select(spec, ranking, target, base.fingerprint).gates

    batches = data.shuffled_batches(options.batch_size, SCORING_BATCHES, options.seed)
    changed: tuple[str, ...] = ()
    if options.method == GATES:
        gates, training = _gates_to_train(model, base, data, batches, target, options)
        changed = train_gates(model, spec, gates, data, training, gate_phase)
        method = f"{options.gate_relaxation} gates, augmented Lagrangian, top-k snap"
        groups = training.initial.num_groups
        ranking = Ranking(gates.scores(), gates.read_outs(), options.gate_block, method, groups)
        if options.gates == COUPLED:
            others = data.shuffled_batches(options.batch_size, COMPARISON_BATCHES, options.seed + 1)
            initial = training.initial.logits
            with activity("comparing masks"):
                best = best_mask(model, spec, ranking, initial, select, others)
            return agreed(best), changed
    else:
        sites = granularity.sites(spec)
        compute = partial(scores_of, options.method, model, sites, batches, options.seed)
        scores = known_scores(options.method, sites, base, data, options, compute)
        method = f"one-shot {options.method} scores, top-k snap"
        groups = num_groups_of(spec, scores, target, options)
        ranking = Ranking(scores, None, options.gate_block, method, groups, options.is_joint)
    with activity("choosing what closes", is_brief=True):
        chosen = select(ranking)
    return agreed(chosen), changed


def _gates_to_train(
    model: nn.Module,
    base: Checkpoint,
    data: TrainingData,
    batches: Sequence[Batch],
    target: RemovalTarget,
    options: TrainOptions,
) -> tuple[TrainedGates, GateTraining]:
    """Return gates initialized by their Fisher scores, and the settings of their training."""
    trainable, spec = TRAINABLE[options.gates], base.spec
    sites = GRANULARITIES[options.gates].sites(spec)
    compute = partial(fisher_scores, model, sites, batches)
    scores = known_scores(FISHER, sites, base, data, options, compute)
    with activity("measuring kurtosis", is_brief=True):
        pressure = kurtosis_pressure(model, sites, batches) if options.kurtosis else None
    with activity("choosing where to start", is_brief=True):
        initial = trainable.initialize(spec, scores, target, options)
    relaxation = RELAXATIONS[options.gate_relaxation]
    gates = TrainedGates(sites, initial.logits, trainable.removal(spec), relaxation, pressure)
    tuning = Tuning(options.gate_tuning, options.rank_for(spec.hidden_size), options.seed)
    return gates, GateTraining(initial, options.gate_learning_rate, tuning)


def _open_gates(base: Checkpoint, options: TrainOptions) -> Gates:
    sites = GRANULARITIES[options.gates].sites(base.spec)
    return Gates(
        method="dense, nothing removed",
        family=base.spec.family.name,
        granularity=options.gates,
        base_fingerprint=base.fingerprint,
        values={site.gate.key: np.ones(site.gate.num_gates, np.float32) for site in sites},
    )
