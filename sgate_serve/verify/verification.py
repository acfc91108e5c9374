"""Run a verification: what is stored, how the base is read, then the outputs of an engine.

Five independent checks. The stored parts must be what the conversion of the base writes, byte for
byte. The plan must be what the rules make of the base. The ONNX graph must be what the stored
tensors give. The base, as it is read here, must equal transformers' own model of it. And the
outputs of an engine must equal those of the masked dense model. Where the folder stores a narrower
float type than the base, the last one rounds the masked model alike; for int8, or a graph in
another precision than fp32, it uses the model before rounding. What all rounding costs is measured
against the masked model as the base stores it.
"""

from converters.convert import open_masked
from converters.sizes import masked_to
from sgate_serve.checkpoint.location import find_folder
from sgate_serve.environment import library_versions
from sgate_serve.loaders.sized_folder import open_size
from sgate_serve.models.config_check import check_reading
from sgate_serve.plan.sizes import size_of
from sgate_serve.verify.base_plan import check_same_model, plan_of, rounded_like
from sgate_serve.verify.certificate import Verification
from sgate_serve.verify.certified_files import files_digest
from sgate_serve.verify.findings import Findings
from sgate_serve.verify.output_kind import output_kind
from sgate_serve.verify.outputs import Comparable, Outputs, compare_outputs, is_of_the_system
from sgate_serve.verify.prompts import make_prompts
from sgate_serve.verify.reading import compare_reading
from sgate_serve.verify.stored_parts import compare_stored_parts
from sgate_serve.verify.stored_plan import compare_plan
from sgate_serve.verify.verify_options import VerifyOptions


def verify(options: VerifyOptions) -> Verification:
    """Compare the masked dense model with the converted one on one engine.

    Models are loaded one after the other where they can: at most two at a time, three if weights
    are rounded, four if both the folder and its graph are. Raises SgateError for bad input; a
    difference is a result, not an error.
    """
    options.check()
    out = open_size(options.out, options.keep)
    masked = open_masked(options.checkpoint, options.gates, gates_kind=options.gates_kind)
    if options.keep is not None:
        masked = masked_to(masked, size_of(find_folder(options.out), options.keep).step)
    if masked.base.layout is None:
        check_reading(masked.base.folder)
    check_same_model(masked.spec, out)
    made_by = plan_of(out, masked)
    masked = rounded_like(masked, made_by.plan, out)
    plan, prompts = made_by.plan, make_prompts(options, out, masked.base)
    parts = None if plan is None else compare_stored_parts(masked, plan, out)
    reading = compare_reading(masked.base, prompts.random)
    again = None if plan is None else compare_plan(masked, plan, out)
    pair = Comparable(out, masked, plan)
    found = Findings(pair, made_by.missing, prompts, parts, reading, again)
    return _verification(options, found, _outputs(options, found))


def _outputs(options: VerifyOptions, found: Findings) -> Outputs:
    """Compare outputs; a folder that differs may also be one that the engine does not run."""
    causes, limit = found.causes, options.max_divergence
    try:
        return compare_outputs(found.pair, found.prompts, limit, bisects=not causes)
    except Exception as error:  # engines have no common class of errors
        if not causes or is_of_the_system(error):
            raise
        return Outputs.not_compared(found.prompts.engine, " ".join(str(error).split()))


def _verification(options: VerifyOptions, found: Findings, outputs: Outputs) -> Verification:
    differences = found.differences(outputs)
    compared, parts = outputs.compared, found.parts
    return Verification(
        passed=not differences,
        difference=differences[0] if differences else None,
        engine=outputs.engine,
        engine_version=outputs.engine_version,
        max_abs_diff=compared.max_abs_diff,
        tolerance=compared.tolerance,
        num_tokens=compared.num_tokens,
        tokens_equal=compared.tokens_equal,
        ties=compared.ties,
        tensors_equal=None if parts is None else parts.tensor is None,
        seed=options.seed,
        prompts=tuple(tuple(prompt.tokens.tolist()) for prompt in found.prompts.all),
        versions=library_versions(),
        quantization=outputs.quantization,
        outputs=output_kind(found.pair.out.spec),
        differences=tuple(differences),
        config_equal=None if parts is None else parts.config is None,
        files_equal=None if parts is None else parts.file is None,
        graph_equal=outputs.graph.is_equal,
        plan_equal=None if found.plan is None else found.plan.is_equal,
        base_read_alike=found.reading.is_alike,
        batch_max_abs_diff=None if outputs.batch is None else outputs.batch.max_abs_diff,
        segments=tuple(
            None if prompt.types is None else tuple(prompt.types.tolist())
            for prompt in found.prompts.all
        ),
        not_checked=tuple(found.not_checked(outputs)),
        model_digest=found.pair.out.digest,
        files_digest=files_digest(found.pair.out),
        base_fingerprint=found.pair.masked.base.fingerprint,
        base_digest=found.pair.masked.base.digest,
    )
