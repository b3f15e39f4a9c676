"""D outside the loop: all labelled records in one file, as a TorchRL buffer, and as a Hugging Face data set.

Whoever has D can imitate offline: the states, the expert's labels, where each came from (``source``, an index into
:data:`dagdiff.mixture.SOURCES`), and the round in which it entered.

>>> save_records(Path("d.safetensors"), loop.aggregate.everything())  # doctest: +SKIP
>>> offline = Aggregate({})
... offline.fill(load_records(Path("d.safetensors")))  # doctest: +SKIP
>>> batch = offline.draw(256, Shares(0.25, 0.5, 0.25))  # doctest: +SKIP
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from dagdiff.checkpoint import write_atomically
from dagdiff.checks import Refusal, check_at_least, first_line


def save_records(file: Path | str, records: TensorDict) -> None:
    """Write records to a safetensors file, one tensor a column; whole or not at all."""
    write_atomically(Path(file), lambda partial: save_file(_columns(records), str(partial)))


def load_records(file: Path | str) -> TensorDict:
    """Return what :func:`save_records` wrote.

    Raises:
        Refusal: for a file that holds no records.
    """
    try:
        columns = load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise Refusal(f"{file} can't be read ({first_line(error)}). Name a file that save_records wrote.") from None
    rows = {len(values) if values.ndim else 0 for values in columns.values()}
    missing = {"x_t", "t", "s", "source", "round"} - columns.keys()
    if missing or len(rows) != 1:
        what = f"no {', '.join(sorted(missing))}" if missing else f"columns of {sorted(rows)} rows"
        raise Refusal(f"{file} holds {what}. Name a file that save_records wrote.")
    return TensorDict(columns, [rows.pop()]).unflatten_keys(".")


def as_buffer(records: TensorDict, batch_size: int = 256) -> TensorDictReplayBuffer:
    """Return a TorchRL buffer that holds the records, and yields batches of them."""
    check_at_least("batch_size", batch_size, 1)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(len(records)), batch_size=batch_size)
    buffer.extend(records)
    return buffer


def as_dataset(records: TensorDict) -> Any:
    """Return a Hugging Face ``Dataset``, a row a record; ``pip install datasets``.

    It gives tensors with ``dataset.with_format("torch")``, and leaves with ``dataset.push_to_hub(name)``.

    Raises:
        Refusal: where that package is missing.
    """
    try:
        from datasets import Array2D, Array3D, Array4D, Dataset, Features, Sequence, Value
    except ImportError:
        raise Refusal("as_dataset needs the package 'datasets', which is missing: pip install datasets.") from None
    columns = {name: values.numpy() for name, values in _columns(records).items()}
    kinds = {3: Array2D, 4: Array3D, 5: Array4D}

    def feature(values: Any) -> Any:
        kind = str(values.dtype)
        if values.ndim in kinds:
            return kinds[values.ndim](values.shape[1:], kind)
        return Sequence(Value(kind), values.shape[1]) if values.ndim == 2 else Value(kind)

    return Dataset.from_dict(columns, Features({name: feature(values) for name, values in columns.items()}))


def _columns(records: TensorDict) -> dict[str, Tensor]:
    """The columns by their names, on the CPU, each with storage of its own."""
    return {name: values.detach().cpu().clone().contiguous() for name, values in records.flatten_keys(".").items()}
