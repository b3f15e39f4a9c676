"""Compiled networks: torch.compile in place, so that weights keep their names in files and checkpoints.

A network is compiled at its first call, forward and backward, once for each kind of call and for batches of any number
of rows. Only the network is: the schedule and the loss around it stay as they are, and so does the optimiser's step,
which is one operation already. Answers differ from those of the plain network by rounding; more is refused
(:func:`check_compiled`).
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.checks import Refusal, first_line
from dagdiff.policies.student import Student
from dagdiff.shapes import Condition, States, Times


def compiled(part: Any, backend: str = "inductor") -> Any:
    """Let the networks of a student or an expert, and of any copy of it, be compiled when first called; return it.

    Methods beside the call, such as ``features``, are not compiled.

    Args:
        part: one that holds no network, such as a closed form, is left alone.
        backend: of torch.compile.
    """
    students = [each for each in part.modules() if isinstance(each, Student)] if isinstance(part, nn.Module) else []
    for student in students:
        student.register_forward_pre_hook(_Compile(backend))
    network = getattr(part, "network", part)
    if not students and isinstance(network, nn.Module):
        network.compile(backend=backend, dynamic=True)
    return part


def check_compiler(device: torch.device) -> None:
    """Reject a machine on which torch can't compile; a small function is compiled to see.

    Raises:
        Refusal: with torch's own reason.
    """
    try:
        torch.compile(torch.nn.functional.silu, options={"fx_graph_cache": False})(torch.ones(8, device=device))
    except Exception as error:  # whatever is missing: a compiler, headers, a driver
        reason = first_line(error)
        raise Refusal(
            f"compile needs a C++ compiler that torch can use ({reason:.150}). Install g++, or run without --compile."
        ) from None


def check_compiled(student: Any, x_t: States, t: Times, condition: Condition = None) -> None:
    """Refuse a student that, compiled, does not answer or learn as it does uncompiled: compilers have faults.

    A network with dropout is not compared, since its two calls differ by chance. Gradients are left as they were.

    Args:
        student: its networks are compiled by the first call, if they are not yet.
        x_t: some states, ``(B, *D)``, B at least 2.
        t: their times, ``(B,)``.
        condition: of each.

    Raises:
        Refusal: where answers or gradients differ by more than a twentieth of their size.
    """
    if any(isinstance(part, nn.Dropout) and part.p > 0.0 for part in student.modules()):
        return
    weights = [weight for weight in student.parameters() if weight.requires_grad]

    def asked() -> tuple[Tensor, Tensor]:
        answer = student(x_t, t, condition)
        found = torch.autograd.grad(answer.float().square().mean(), weights, allow_unused=True, materialize_grads=True)
        return answer.detach().flatten(), torch.cat([gradient.flatten() for gradient in found])

    with torch.compiler.set_stance("force_eager"):
        plain = asked()
    for what, mine, other in zip(("answers", "gradients"), asked(), plain, strict=True):
        off = float((mine - other).norm() / other.norm().clamp(min=1e-30))
        if not off <= _TOLERANCE:
            raise Refusal(
                f"compiled, the student's {what} are off by {off:.2g} of their size. That is a fault of torch "
                f"{torch.__version__}'s compiler with this network on this machine. Leave --compile away."
            )


_TOLERANCE = 0.05  # bfloat16 rounds to 0.005


class _Compile:
    """Compiles a student's network before its first call. A copied student has a network and a hook of its own."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.done: weakref.ref[nn.Module] | None = None  # what is compiled

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        """Before the call."""
        network: Any = module.network
        if self.done is None or self.done() is not network:
            network.compile(backend=self.backend, dynamic=True)
            self.done = weakref.ref(network)
