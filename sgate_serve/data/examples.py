"""Labelled texts as a model reads them: class numbers and token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sgate_serve.architecture.config import label_names
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE
from sgate_serve.data.records import Example
from sgate_serve.errors import TrainingError
from sgate_serve.text.tokenization import EncodedTexts, TextCodec
from sgate_serve.text.tokenizer_files import TOKENIZER_FILE
from sgate_serve.text.truncation import Truncation


@dataclass(frozen=True)
class Labels:
    """The class names in the order of a head's outputs; none for a regression (one output)."""

    names: tuple[str, ...]

    @classmethod
    def of_examples(cls, examples: Sequence[Example], path: Path) -> "Labels":
        """Return the classes of training data: sorted names, or the numbers 0 to the largest.

        Raises TrainingError for a single class or a negative number.
        """
        found = {example.label for example in examples}
        if all(isinstance(label, float) for label in found):
            return cls(())
        if len(found) < 2:
            raise TrainingError(
                f"{path}: all labels are {found.pop()!r}; give at least two classes"
            )
        if any(isinstance(label, str) for label in found):
            return cls(tuple(sorted(map(str, found))))
        least, most = min(map(int, found)), max(map(int, found))
        if least < 0:
            raise TrainingError(f"{path}: label {least} is negative; number the classes from 0")
        return cls(tuple(map(str, range(most + 1))))

    @classmethod
    def of_model(cls, model: Checkpoint) -> "Labels":
        """Return the classes of a model that has a head."""
        count = model.spec.num_labels
        if count == 1:
            return cls(())
        names = label_names(model.config, str(model.folder / CONFIG_FILE))
        return cls(names or tuple(map(str, range(count))))

    @property
    def num_outputs(self) -> int:
        return max(1, len(self.names))

    def number(self, example: Example) -> int | float:
        """Return the class number of a label, or a regression's float.

        Raises TrainingError for a label that is not among the classes.
        """
        label = example.label
        if not self.names and not isinstance(label, str):
            return float(label)
        if isinstance(label, str) and label in self.names:
            return self.names.index(label)
        if isinstance(label, int) and 0 <= label < len(self.names):
            return label
        known = f"not one of the {len(self.names)} classes ({', '.join(self.names):.80})"
        problem = known if self.names else "not a number"
        raise TrainingError(
            f"{example.where}: label {label!r} is {problem}; correct it, or add examples of it to "
            "the training data"
        )


class ExampleEncoder:
    """Encodes texts and pairs, truncated to `max_tokens` ids including special tokens.

    `num_full` counts the texts that have `max_tokens` ids, because they fit exactly or were cut.
    """

    def __init__(self, model: Checkpoint, max_tokens: int) -> None:
        codec = TextCodec.load(model.folder)
        if codec is None:
            raise TrainingError(
                f"{model.folder / TOKENIZER_FILE} is missing; put the model's tokenizer.json there"
            )
        self._codec, self._truncation = codec, Truncation(max_tokens)
        self.num_full = 0

    def encode(self, example: Example) -> EncodedTexts:
        encoded = self._codec.encode_texts(example.text, example.text_pair, self._truncation)
        if not encoded.ids:
            raise TrainingError(f"{example.where}: the text has no tokens; remove the record")
        self.num_full += len(encoded.ids) == self._truncation.max_tokens
        return encoded
