"""Training and held-out samples of both tasks, as tensors, and their batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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

    `notes` tell the user how the samples were made.
    """

    train: Samples
    held_out: Samples
    pad_token: int = 0
    notes: tuple[str, ...] = ()

    @property
    def is_ragged(self) -> bool:
        """Say whether training samples differ in length, so that batches need padding."""
        return len({len(sample["input_ids"]) for sample in self.train.samples}) > 1

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return collate(samples, self.pad_token)

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
