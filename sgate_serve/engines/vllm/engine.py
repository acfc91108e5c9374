"""vLLM under the engine contract: in this process, in fp32 and eager, for verification and tests.

`sgate serve` starts vLLM's own server instead (`server`), and benchmarks use vLLM's own settings
(`timed`): this adapter exists to compare its outputs, token by token.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import vllm
from numpy.typing import NDArray
from vllm import PoolingParams
from vllm.exceptions import VLLMValidationError
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from sgate_serve.architecture.family import BASE, CAUSAL_LM
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.contract import (
    EngineStats,
    FinishReason,
    Request,
    SamplingParams,
    TokenEvent,
)
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.request_checks import check_request
from sgate_serve.engines.sampling import Logits
from sgate_serve.engines.vllm.device import has_gpu
from sgate_serve.engines.vllm.precision import RECURRENT_IN_BF16
from sgate_serve.engines.vllm.start import engine_args, start_engine, stop_engine
from sgate_serve.errors import EngineError, RequestError
from sgate_serve.onnx_format.precision import FP32, PRECISIONS, Precision

DEFAULT_SLOTS = 8
CACHE_BYTES = 2**28
# Settings that expose all logits, unrounded.
EXACT: Mapping[str, Any] = {
    "gpu_memory_utilization": 0.2,
    "dtype": "float32",
    "enforce_eager": True,
    "skip_tokenizer_init": True,
    "max_logprobs": -1,
    "logprobs_mode": "raw_logits",
}
EXACT_INT8 = Precision(INT8, bits=8, outer_bits=32)
# On a GPU, vLLM's fp32 attention is Triton's, which by default rounds its inputs to TF32.
UNROUNDED = {"TRITON_F32_DEFAULT": "ieee"}
# vLLM's name for the position at which the second text of a pair starts.
SECOND_SEGMENT = "compressed_token_type_ids"
FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


class VllmEngine:
    """A `LoadedEngine` over an `LLMEngine` whose steps run in this thread."""

    name = "vllm"
    version = str(vllm.__version__)

    def __init__(self, engine: LLMEngine, model: Checkpoint) -> None:
        self.engine, self.spec = engine, model.spec
        self.precision = EXACT_INT8 if model.is_int8 else PRECISIONS[FP32]
        self.max_model_len = engine.model_config.max_model_len
        self.vocab_size = model.spec.vocab_size

    @classmethod
    def load(cls, folder: Path, options: SlotOptions | None = None) -> "VllmEngine":
        """Load a model folder, stock or `sgate`, with the options of a slot engine.

        Raises EngineError for sizes that vLLM rejects, and for a model that it runs by
        transformers' classes or not in fp32; CheckpointError for a broken folder.
        """
        model, options = Checkpoint.open(folder), options or SlotOptions()
        _check_recurrence(model)
        settings: dict[str, Any] = {
            "max_num_seqs": options.slots or DEFAULT_SLOTS,
            "max_model_len": options.max_model_len,
            "max_num_batched_tokens": options.prefill_chunk,
            "kv_cache_memory_bytes": CACHE_BYTES,
            **EXACT,
        }
        if options.threads:
            raise EngineError("vLLM has no engine option threads; set OMP_NUM_THREADS instead")
        args = engine_args(folder, (), **settings)
        os.environ.update(UNROUNDED)  # read when a kernel is compiled, which may be at any step
        engine = start_engine(args, in_process=True, spares_transformers=True)
        return cls(engine, model)

    def add(self, request: Request) -> None:
        """Queue a request; raise RequestError naming the field if it can never run."""
        check_request(request, self.max_model_len, self.vocab_size)
        _check_supported(request.sampling)
        room = self.max_model_len - len(request.prompt)
        try:
            params = sampling_params(request.sampling, min(request.sampling.max_tokens, room))
        except VLLMValidationError as error:  # vLLM's own bounds, such as temperatures above 2
            raise RequestError(str(error), param=error.parameter) from error
        self._add(request.request_id, request.prompt, params)

    def abort(self, request_id: str) -> None:
        self.engine.abort_request([request_id])

    def step(self) -> list[TokenEvent]:
        return [event for output in self.engine.step() for event in _events(output)]

    def has_work(self) -> bool:
        return bool(self.engine.has_unfinished_requests())

    def stats(self) -> EngineStats:
        """Ask vLLM's scheduler, which runs in this process; its gauges date from the last step."""
        scheduler = self.engine.engine_core.engine_core.scheduler
        num_running, num_waiting = scheduler.get_request_counts()
        return EngineStats(num_running, num_waiting, scheduler.get_kv_cache_usage())

    def logits(self, tokens: NDArray[np.int64], types: NDArray[np.int64] | None = None) -> Logits:
        """Return the outputs for `tokens` [s]; needs an idle engine.

        Logits [s, vocab] of a causal LM, [1, labels] of a classifier, or the last hidden states
        [s, hidden] of a base model, without its pooled state. `types` [s] are the segment ids of a
        text pair; raises EngineError unless they are zeros followed by ones.
        """
        if self.spec.task == CAUSAL_LM:
            return self._causal_logits(tokens)
        task = "token_embed" if self.spec.task == BASE else "classify"
        segments = None if types is None else {SECOND_SEGMENT: _start_of_second(types)}
        params = PoolingParams(task=task, use_activation=False, extra_kwargs=segments)
        data = self._run(tokens, params).outputs.data
        return np.atleast_2d(data.float().numpy())

    def residuals(self, tokens: NDArray[np.int64], types: NDArray[np.int64] | None = None) -> None:
        """Return None, since vLLM does not expose its residual stream."""

    def close(self) -> None:
        stop_engine(self.engine)

    def _causal_logits(self, tokens: NDArray[np.int64]) -> Logits:
        params = vllm.SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprobs=-1,
            prompt_logprobs=-1,
            flat_logprobs=True,
            detokenize=False,
        )
        result = self._run(tokens, params)
        # The first token is not predicted.
        parts = [*result.prompt_logprobs[1:], *result.outputs[0].logprobs]
        logits = np.empty((len(parts), self.vocab_size), np.float32)
        for row, part in zip(logits, parts, strict=True):
            row[list(part)] = [entry.logprob for entry in part.values()]
        return logits

    def _run(self, tokens: NDArray[np.int64], params: Any) -> Any:
        assert not self.has_work(), "logits() needs an idle engine"
        self._add("logits", tokens.tolist(), params)
        results = []
        while self.has_work():
            results += self.engine.step()
        return results[-1]

    def _add(self, request_id: str, prompt: Sequence[int], params: Any) -> None:
        self.engine.add_request(request_id, TokensPrompt(prompt_token_ids=list(prompt)), params)


def _check_recurrence(model: Checkpoint) -> None:
    """Raise EngineError for a model that this machine's vLLM does not compute in fp32."""
    if model.spec.family.recurrent_layers and not has_gpu():
        raise EngineError(
            f"{model.folder}: {RECURRENT_IN_BF16}, and here it would compute in fp32; choose "
            "another engine"
        )


def _start_of_second(types: NDArray[np.int64]) -> int:
    start = int((types == 0).sum())
    if not np.array_equal(types, np.arange(len(types)) >= start):
        raise EngineError("vLLM supports segments of zeros and then ones only; use another engine")
    return start


def _check_supported(sampling: SamplingParams) -> None:
    """Reject options that this adapter lacks.

    Here vLLM's log-probabilities are raw logits and its bad words are texts, and its server has
    drafts and grammars of its own.
    """
    if sampling.max_tokens < 1:
        raise RequestError("max_tokens must be at least 1 on vLLM, found 0", param="max_tokens")
    for name in ("logprobs", "prompt_logprobs", "drafted_tokens", "grammar", "bad_words"):
        if getattr(sampling, name) != getattr(SamplingParams, name):
            raise RequestError(
                f"{name} is not supported by this engine; ask vLLM's own server", param=name
            )


def sampling_params(sampling: SamplingParams, max_tokens: int) -> Any:
    """Translate sampling parameters to vLLM's; only the given stop tokens end a request."""
    allowed = sampling.allowed_token_ids
    return vllm.SamplingParams(
        max_tokens=max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop_token_ids=sorted(sampling.stop_token_ids),
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        min_tokens=min(sampling.min_tokens, max_tokens),
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        allowed_token_ids=None if allowed is None else allowed.tolist(),
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _events(output: Any) -> list[TokenEvent]:
    """Return the events of one request's step, without stop tokens."""
    (completion,) = output.outputs
    reason = FINISH_REASONS.get(completion.finish_reason)
    tokens = list(completion.token_ids)
    stop_token = tokens.pop() if reason == "stop" else None
    shown: list[int | None] = [*tokens] or [None]
    events = [TokenEvent(output.request_id, token) for token in shown[:-1]]
    return [*events, TokenEvent(output.request_id, shown[-1], reason, stop_token=stop_token)]
