"""How fast this machine trains a model, so that a run can be planned in seconds.

bf16 autocast pays only on CPUs with bf16 instructions and only from some width on, so it is timed
beside fp32, not assumed.
"""

import json
import statistics
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

TIMED_STEPS = 3


@dataclass(frozen=True)
class Pace:
    """How many steps to train, and whether under bf16 autocast."""

    steps: int
    bf16: bool


def plan_pace(model: nn.Module, batch: torch.Tensor, seconds: float, file: Path) -> Pace:
    """Time training steps on `batch` [batch, seq_len] and plan as many as fit into `seconds`.

    The plan is kept in `file`, and taken from there when an interrupted run continues.
    """
    if file.exists():
        return Pace(**json.loads(file.read_text(encoding="utf-8")))
    times = {bf16: step_seconds(model, batch, bf16=bf16) for bf16 in (False, True)}
    bf16 = times[True] < times[False]
    pace = Pace(max(1, int(seconds / times[bf16])), bf16)
    file.write_text(json.dumps(asdict(pace)) + "\n", encoding="utf-8")
    return pace


def step_seconds(model: nn.Module, batch: torch.Tensor, *, bf16: bool) -> float:
    """Return the median time of a training step of a copy of `model`; the first is not counted."""
    copy = deepcopy(model)
    optimizer = torch.optim.AdamW(copy.parameters())
    times = []
    for _ in range(1 + TIMED_STEPS):
        start = time.perf_counter()
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
            loss = copy(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
