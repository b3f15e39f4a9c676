"""The errors: bad input is turned away on the first lines, with the value, what is wrong with it, and the cure.

The command line prints a :class:`Refusal` as one line and exits with status 2; from Python it is an ordinary
ValueError.
"""

import difflib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # words are refused before torch is loaded
    from numpy.typing import ArrayLike
    from torch import Tensor


class Refusal(ValueError):
    """Input that dagdiff turns away. The message names the value, the problem and the cure."""


def check_in(name: str, value: str, known: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``known``; else reject and suggest the nearest name."""
    known = sorted(known)
    if value in known:
        return value
    begun = [each for each in known if value and each.startswith(value)]
    near = (begun + difflib.get_close_matches(value, known, n=1, cutoff=0.5))[:1]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    some = ", ".join(known[:_MOST]) + (f", ... ({len(known)} in all)" if len(known) > _MOST else "")
    raise Refusal(f"unknown {name} {value!r}.{hint} Known: {some}.")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message that is not blank, at most 300 characters, or its kind if none is."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:300]


def check_at_least(name: str, value: float, least: float) -> None:
    """Reject a number below ``least`` (or one that is not a number)."""
    if not value >= least:
        raise Refusal(f"{name} must be at least {least}; got {value}. Pass e.g. {name}={least}.")


def check_weights(low: float, high: float) -> None:
    """Reject what is no range of weights of guidance: two that rise, from 1 to 1000."""
    if not 1.0 <= low < high <= 1000.0:
        raise Refusal(
            f"guidance must be one weight, or two that rise, from 1 to 1000; got {low:g},{high:g}. Pass e.g. "
            "--guidance 3,8."
        )


def check_range(black: float, white: float) -> None:
    """Reject a range of values whose ends are not finite and in order."""
    if not -math.inf < black < white < math.inf:
        raise Refusal(f"value_range must be black and white, the lesser first; got {black}, {white}. Pass 0,1.")


def check_at_most(name: str, value: float, most: float) -> None:
    """Reject a number above ``most`` (or one that is not a number)."""
    if not value <= most:
        raise Refusal(f"{name} must be at most {most:,}; got {value:.6g}. Pass a smaller one.")


def check_number(name: str, value: float) -> None:
    """Reject NaN and infinity."""
    if not math.isfinite(value):
        raise Refusal(f"{name} must be a finite number; got {value}. Pass e.g. {name}=1.")


def check_above(name: str, value: float, bound: float) -> None:
    """Reject a number that is not above ``bound`` (or is not a number)."""
    if not value > bound:
        raise Refusal(f"{name} must be above {bound}; got {value}. Pass e.g. {name}={bound + 1}.")


def check_path(name: str, path: Path) -> None:
    """Reject a path that no file system takes: too long or deep, with a zero byte, through a file, or in a circle."""
    reason = ""
    try:
        longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
        if longest > _NAME or len(path.parts) > _PARTS:
            reason = f"{longest} bytes in a name" if longest > _NAME else f"{len(path.parts)} folders deep"
        else:
            os.stat(path)
    except FileNotFoundError:
        reason = "a link to nothing" if path.is_symlink() else ""
    except (OSError, ValueError) as error:  # a zero byte, or what no encoding holds, is a ValueError
        reason = getattr(error, "strerror", None) or first_line(error)
    if reason:
        shown = str(path) if len(str(path)) <= 80 else f"{str(path)[:77]}..."
        raise Refusal(f"{name} {shown} is no usable path ({reason}). Name another.")


def check_share(name: str, value: float) -> None:
    """Reject a number outside [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise Refusal(f"{name} must lie in [0, 1]; got {value}. Pass e.g. {name}=0.5.")


def check_seed(name: str, value: int) -> int:
    """Reject a seed that would repeat another's stream: torch's CPU generator reads 32 bits of it; return it."""
    if not 0 <= value < 2**32:
        raise Refusal(f"{name} must lie in [0, 2^32 - 1], or it repeats another's draws; got {value}. Pass e.g. 0.")
    return value


def check_shares(shares: tuple[float, ...]) -> None:
    """Reject shares that are negative or do not sum to 1."""
    if len(shares) != 3 or not all(math.isfinite(share) and share >= 0.0 for share in shares):
        raise Refusal(
            f"shares must be three numbers >= 0 (forward, student, expert); got {shares}. Pass e.g. 0.5,0.5,0."
        )
    if abs(sum(shares) - 1.0) > 1e-6:
        raise Refusal(f"shares must sum to 1; got {shares}, which sum to {sum(shares):g}. Pass e.g. 0.5,0.5,0.")


def check_times(times: "Tensor | ArrayLike") -> "Tensor":
    """Reject a time grid that does not fall from 1 to 0; return it, numbers in a list or an array as float32."""
    from torch import Tensor

    if not isinstance(times, Tensor):
        times = as_floats("times", times, _GRID)
    if times.ndim != 1 or len(times) < 2:
        raise Refusal(f"times must be a 1-D grid of at least 2 values; got shape {tuple(times.shape)}. {_GRID}")
    if times.is_meta:
        return times
    if not times.isfinite().all() or times[0] > 1.0 or times[-1] != 0.0:
        raise Refusal(f"times must fall from at most 1 to exactly 0; got {times.tolist()}. {_GRID}")
    rises = (times[1:] >= times[:-1]).nonzero().flatten().tolist()
    if rises:
        i = rises[0] + 1
        raise Refusal(
            f"times must fall from 1 to 0; got times[{i}]={times[i]:g} after times[{i - 1}]={times[i - 1]:g}. {_GRID}"
        )
    return times


def as_floats(name: str, values: "Tensor | ArrayLike", cure: str) -> "Tensor":
    """Return the numbers of a list, an array or a tensor as a new float32 tensor on the CPU; reject other things."""
    import numpy as np
    import torch
    from torch import Tensor

    if isinstance(values, Tensor):
        return values.detach().to("cpu", torch.float32, copy=True)
    try:
        return torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
    except (TypeError, ValueError):
        raise Refusal(f"{name} must be an array of numbers; got {values!r:.80}. {cure}") from None


def check_finite(name: str, values: "Tensor") -> "Tensor":
    """Reject NaN and infinity in data; return the data."""
    bad = int((~values.isfinite()).sum())
    if bad:
        raise Refusal(
            f"{name} holds {bad} values that are NaN or infinite, of {values.numel()}. Drop or repair those rows first."
        )
    return values


def check_same_shape(name: str, got: "Tensor", expected: "Tensor") -> "Tensor":
    """Reject an answer that is no tensor of the shape of the states it was asked about; return it."""
    from torch import Tensor

    if not isinstance(got, Tensor) or got.shape != expected.shape:
        shape = tuple(got.shape) if isinstance(got, Tensor) else f"a {type(got).__name__}"
        raise Refusal(
            f"{name} must answer with the shape of the states, {tuple(expected.shape)}; got {shape}. "
            "Return one prediction of x0 per row."
        )
    return got


_MOST = 12  # names that a refusal lists
_NAME, _PARTS = 255, 200  # bytes of a name in common file systems, and names of a path
_GRID = "Pass e.g. torch.linspace(1, 0, 5)."
