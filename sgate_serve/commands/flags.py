"""Flags made from the fields of an options dataclass: their names, types, defaults and help."""

import argparse
from collections.abc import Collection
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from sgate_serve.options import flag_of, number, whole
from sgate_serve.plan import Target

Options = TypeVar("Options")


def add_flags(
    parser: argparse.ArgumentParser,
    options: type[Any],
    leave_out: Collection[str] = (),
    *,
    keep_unset: bool = False,
    group: str | None = None,
) -> None:
    """Add `--field-name` for every field of `options` except `leave_out`.

    A field without default is required, a boolean is a switch, `X | None` takes an X, a tuple of
    paths takes one each time it is given, one of words some separated by commas each time, and one
    of numbers takes them separated by commas. With `keep_unset` a flag that is not given is None,
    and its default is only shown. `--help` lists fields under their group, or else under `group`.
    """
    hints, groups = get_type_hints(options), dict[str, argparse._ArgumentGroup]()
    for field in fields(options):
        if field.name in leave_out:
            continue
        title = field.metadata.get("group") or group
        if title is not None and title not in groups:
            groups[title] = parser.add_argument_group(title)
        place = parser if title is None else groups[title]
        _add_flag(place, field, hints[field.name], keep_unset)


def options_from(args: argparse.Namespace, options: type[Options], **given: Any) -> Options:
    """Build the dataclass from parsed flags, and from `given`, which has precedence."""
    names = {field.name for field in fields(options)}  # type: ignore[arg-type]
    return options(**{k: v for k, v in vars(args).items() if k in names} | given)


def add_gates_flags(parser: argparse.ArgumentParser) -> None:
    mask = parser.add_argument_group("the mask")
    mask.add_argument(
        "--gates",
        type=Path,
        help="gates folder of any kind, or its safetensors file (default: the zero rows and "
        "columns of the weights)",
    )
    mask.add_argument(
        "--gates-kind",
        metavar="KIND",
        help="kind of --gates: sgate, finegates or peft (default: detected)",
    )


def add_target_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that fit the plan's widths to a target."""
    target = parser.add_argument_group("widths that suit a target")
    target.add_argument(
        "--align",
        type=whole,
        default=1,
        metavar="N",
        help="make widths multiples of N (default: 1)",
    )
    target.add_argument(
        "--tensor-parallel",
        type=whole,
        default=1,
        metavar="N",
        help="make widths divisible among N shards (default: 1)",
    )
    target.add_argument(
        "--uniform",
        action="store_true",
        help="give all layers the same widths, so that the result is a stock model",
    )
    target.add_argument(
        "--target-engine", metavar="ENGINE", help="plan for onnx, vllm or torch (default: any)"
    )
    target.add_argument(
        "--index-price",
        type=whole,
        metavar="WEIGHTS",
        help="cost of a gather or scatter, in weights; 0 removes everything that can be removed "
        "(default: the target engine's)",
    )


def add_keep_flag(parser: argparse._ActionsContainer, folder: str = "OUT") -> None:
    parser.add_argument(
        "--keep",
        type=number,
        metavar="FRACTION",
        help=f"the size of {folder} that keeps this fraction of the block weights, one of those "
        "that it was converted with (default: the largest)",
    )


def fractions(text: str) -> tuple[float, ...]:
    """Read numbers separated by commas, for argparse."""
    return tuple(map(number, comma_separated(text)))


def target_from(args: argparse.Namespace) -> Target:
    return Target(args.align, args.tensor_parallel, args.target_engine, args.uniform)


def comma_separated(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise argparse.ArgumentTypeError(f"{text!r}: give a word, or several separated by commas")
    return words


def comma_separated_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(whole(word) for word in comma_separated(text))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give whole numbers separated by commas"
        ) from error


def _add_flag(
    parser: argparse._ActionsContainer, field: Field[Any], hint: Any, keep_unset: bool
) -> None:
    flag = flag_of(field.name)
    text = field.metadata.get("help")
    if hint is bool:
        parser.add_argument(flag, dest=field.name, action="store_true", help=text)
        return
    metavar = field.name.rpartition("_")[2].upper()
    if hint == tuple[Path, ...]:
        parser.add_argument(
            flag,
            dest=field.name,
            action=_Gathered,
            type=Path,
            default=(),
            help=text,
            metavar=metavar,
        )
        return
    required = field.default is MISSING and field.default_factory is MISSING
    default = None if required else field.default
    if isinstance(default, tuple) and default:
        # argparse parses a text default like the user's input, and shows it unchanged.
        default = ",".join(map(str, default))
    if default not in (None, "", ()) and text:
        text += f" (default: {default})"
    parser.add_argument(
        flag,
        dest=field.name,
        action=_Gathered if hint == tuple[str, ...] else "store",
        type=_reader(hint),
        required=required,
        default=None if keep_unset else default,
        help=text,
        metavar=metavar,
    )


class _Gathered(argparse.Action):
    """Gathers the values of a flag that is given several times in a tuple; each may be a tuple."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest)
        # The default may be a text, or None.
        before = before if isinstance(before, tuple) else ()
        added = values if isinstance(values, tuple) else (values,)
        setattr(namespace, self.dest, (*before, *added))


def _reader(hint: Any) -> Any:
    if isinstance(hint, UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if hint == tuple[int, ...]:
        return comma_separated_numbers
    if hint == tuple[str, ...]:
        return comma_separated
    readers = {int: whole, float: number, Path: Path}
    return readers.get(hint, str)
