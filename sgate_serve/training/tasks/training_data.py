"""Training and held-out samples of both tasks, as tensors, and their batches."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from sgate_serve.data.documents import Blocks

Sample = dict[str, Tensor]
Batch = dict[str, Tensor]


class Samples(Dataset[Sample]):
    """A list of samples, each a dictionary of tensors with `input_ids` and `labels`."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


@dataclass(frozen=True)
class TrainingData:
    """The training samples, the held-out samples, and the token that pads a batch.

    `elsewhere` holds more samples to measure on, by name. `notes` tell the user how the samples
    were made.
    """

    train: Samples
    held_out: Samples
    pad_token: int = 0
    notes: tuple[str, ...] = ()
    elsewhere: Mapping[str, Samples] = field(default_factory=dict)

    @property
    def is_ragged(self) -> bool:
        """Say whether training samples differ in length, so that batches need padding."""
        return len({len(sample["input_ids"]) for sample in self.train.samples}) > 1

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return collate(samples, self.pad_token)

    @property
    def digest(self) -> str:
        """The SHA-256 of all samples, in their order, and of the names of those elsewhere."""
        state = hashlib.sha256()
        parts = {"train": self.train, "held out": self.held_out, **self.elsewhere}
        for name, samples in parts.items():
            state.update(f"{name} {len(samples)} {self.pad_token}".encode())
            for sample in samples.samples:
                for key, tensor in sample.items():
                    state.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
                    state.update(tensor.contiguous().numpy().tobytes())
        return state.hexdigest()

    def shuffled_batches(self, size: int, count: int, seed: int) -> list[Batch]:
        """Return `count` random batches of training samples, or fewer if there are not enough."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.train), generator=generator)[: size * count]
        indices = order.tolist()
        parts = [indices[start : start + size] for start in range(0, len(indices), size)]
        return [self.collate([self.train[index] for index in part]) for part in parts]


def block_samples(blocks: Blocks) -> Samples:
    """Return blocks [num_blocks, seq_len] as samples; the model shifts the labels itself."""
    return Samples([{"input_ids": block, "labels": block} for block in torch.from_numpy(blocks)])


def collate(samples: Sequence[Sample], pad_token: int) -> Batch:
    """Stack samples to padded tensors [batch, longest]; scalar labels become a tensor [batch]."""
    padding = {"input_ids": pad_token, "labels": -100}
    batch = {}
    for name in samples[0]:
        tensors = [sample[name] for sample in samples]
        is_scalar = tensors[0].ndim == 0
        batch[name] = (
            torch.stack(tensors)
            if is_scalar
            else pad_sequence(tensors, batch_first=True, padding_value=padding.get(name, 0))
        )
    return batch


def on_device(batch: Mapping[str, Tensor], device: torch.device) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}
