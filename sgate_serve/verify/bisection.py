"""Find the first layer at which a converted model differs, by its residual stream."""

import numpy as np

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.engines.model_protocols import LogitsModel, Tokens
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.plan import BlockFold, Plan
from sgate_serve.verify.comparison import tolerance_of


def first_different_layer(
    reference: TorchModel,
    engine: LogitsModel,
    prompt: Tokens,
    plan: Plan | None = None,
    types: Tokens | None = None,
) -> str:
    """Compare the residual stream after every layer; name the first layer that differs.

    The engine's stream has the dimensions that `plan` keeps. Layers between a removed block and the
    earlier tensor that its constant moved to cannot be compared: they contain the constant early.
    """
    kept = None if plan is None else plan.hidden
    shifted = set() if plan is None else layers_with_moved_constants(plan, reference.spec)
    streams = engine.residuals(prompt, types)
    if streams is None:
        return (
            f"{engine.name} does not expose residual streams; verify with --engine torch to find "
            "the layer"
        )
    pairs = zip(reference.residuals(prompt, types), streams, strict=True)
    for layer, (wide, found) in enumerate(pairs):
        if layer in shifted:
            continue
        expected = wide if kept is None else wide[:, list(kept)]
        if expected.shape != found.shape:
            return f"the residual stream is {found.shape[1]} wide and no plan says which dimensions"
        difference = float(np.abs(expected - found).max())
        # Not `>`: a NaN must count as different.
        if not difference <= tolerance_of(float(np.abs(expected).max())):
            return f"first differing layer: {layer}, by {difference:.2e} in the residual stream"
    return "after the last layer: the final norm or the head"


def layers_with_moved_constants(plan: Plan, spec: ModelSpec) -> set[int]:
    """Return the layers whose stream already contains the constant of a later block (rule 6)."""
    shifted: set[int] = set()
    for fold in plan.folds:
        if isinstance(fold, BlockFold):
            starts = (
                index
                for index in range(len(spec.layers))
                if fold.target.startswith(f"{spec.family.layer_name(index)}.")
            )
            shifted |= set(range(next(starts, 0), fold.layer))
    return shifted
