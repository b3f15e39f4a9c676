"""Rollouts: the states that the student, the expert, or a mixture of the two really visits.

TorchRL's in-process ``Collector`` runs a policy through the denoising environment and returns B chains as B * K
records. A record is one row ``x_t, t, s`` (plus ``condition``), with ``actor``: who took the step, 0 the student, 1 the
expert, -1 nobody. Forward-diffused states, which need no environment, are made by :func:`forward_states` with the same
columns.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs import EnvBase

from dagdiff.checks import Refusal
from dagdiff.expert import Expert
from dagdiff.mixture import Constant, Ramp
from dagdiff.schedule import Schedule, perturb
from dagdiff.shapes import Condition, Denoiser, States, Times
from dagdiff.transition import Transition

COLUMNS = ("x_t", "t", "s", "condition", "action", "actor")
"""The columns of a record that a rollout keeps; the objective's labels join them."""


@runtime_checkable
class Data(Protocol):
    """Clean points: anything that can be drawn from."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> States:
        """Return ``n`` points, ``(n, *D)``."""
        ...


@runtime_checkable
class LabelledData(Data, Protocol):
    """Clean points that come with conditions."""

    def sample_labelled(self, n: int, generator: torch.Generator | None = None) -> tuple[States, Tensor]:
        """Return ``n`` points and their conditions, ``(n,)``."""
        ...


class MixturePolicy(TensorDictModuleBase):
    """DAgger's behaviour policy: at each step (or once a chain) the expert acts in a random part beta of the chains.

    The expert's action is its prediction for the law of the environment: where its own sub-steps lead by
    ``transition.horizon``. Only the rows that the expert drives are shown to it; with beta 0 or 1 just one network is
    asked.

    Args:
        student: the policy, a denoiser.
        expert: the expert.
        transition: the environment's transition.
        per_chain: let the same driver keep a chain to its end, instead of drawing anew at each step.
        generator: of the draws.
        conditional: whether the environment's records have a ``condition``.
    """

    def __init__(
        self,
        student: Denoiser,
        expert: Expert,
        transition: Transition,
        per_chain: bool = False,
        generator: torch.Generator | None = None,
        conditional: bool = False,
    ) -> None:
        self.in_keys = ["x_t", "t", "s", "step", *(["condition"] if conditional else [])]
        self.out_keys = ["action", "actor"]
        super().__init__()
        self.student, self.expert, self.transition = student, expert, transition
        self.per_chain, self.generator, self.beta = per_chain, generator, 0.0

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``action``, the prediction of x0, and ``actor`` into the environment's record."""
        x_t, t, s = tensordict["x_t"], tensordict["t"].squeeze(-1), tensordict["s"].squeeze(-1)
        condition = tensordict.get("condition", None)
        rows = self._expert_rows(tensordict)
        action = x_t if len(rows) == len(x_t) else self.student(x_t, t, condition)
        if len(rows):
            asked = None if condition is None else condition[rows]
            action = action.index_copy(0, rows, self.advice(x_t[rows], t[rows], s[rows], asked))
        actor = torch.zeros_like(tensordict["step"]).index_fill(0, rows, 1)
        return tensordict.set("action", action).set("actor", actor)

    def advice(self, x_t: States, t: Times, s: Times, condition: Condition) -> States:
        """Return what the expert does where it drives, a prediction of x0."""
        return self.expert.target(x_t, t, self.transition.horizon(s), condition)

    def _expert_rows(self, tensordict: TensorDictBase) -> Tensor:
        """Where the expert acts: round(beta B) rows, drawn afresh each step, or at a chain's first step and then held.

        Their number is known without looking at the device, so nothing waits for it.
        """
        step = tensordict["step"].squeeze(-1)
        count = round(self.beta * len(step))
        if count in (0, len(step)):
            return torch.arange(count, device=step.device)
        draw = torch.rand(step.shape, generator=self.generator, device=step.device)
        held = tensordict.get("actor", None)
        if self.per_chain and held is not None:
            draw = torch.where(step == 0, draw, held.squeeze(-1).to(draw.dtype))
        return draw.argsort(descending=True)[:count]


Driver = Callable[[Denoiser, Expert, Transition, bool, torch.Generator | None, bool], MixturePolicy]
"""Makes the behaviour policy of the rollouts from the arguments of :class:`MixturePolicy`, in their order."""


class Rollout:
    """Chains on demand: B whole chains of the environment a call, as B * K records without gradient.

    It alone tells the behaviour policy its beta.

    Args:
        env: the chains.
        policy: acts in them.
        beta: by progress, the part of the steps of the student's chains that the expert drives.
    """

    def __init__(self, env: EnvBase, policy: MixturePolicy, beta: Ramp = Constant(0.0)) -> None:  # noqa: B008
        self.env, self.policy, self.beta = env, policy, beta
        frames = env.batch_size.numel() * (len(env.times) - 1)
        self._collector = Collector(
            env,
            policy,
            frames_per_batch=frames,
            total_frames=-1,
            trust_policy=True,
            track_traj_ids=False,
            auto_register_policy_transforms=False,
            no_cuda_sync=True,
        )
        self._batches = iter(self._collector)

    def __reduce__(self) -> tuple[type["Rollout"], tuple[EnvBase, MixturePolicy, Ramp]]:
        """Pickle the parts; the collector is built anew."""
        return type(self), (self.env, self.policy, self.beta)

    def state_dict(self) -> dict[str, Any]:
        """Return the chains as they stand: the noise of the next ones is drawn already."""
        return {"chains": self._collector._carrier.to_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the chains back."""
        held = self._collector._carrier
        self._collector._carrier = TensorDict.from_dict(state["chains"], batch_size=held.batch_size, device=held.device)

    def of(self, source: str, progress: float) -> TensorDict:
        """Roll in for a source: the expert drives all of its own chains, and of the student's a part beta."""
        return self(1.0 if source == "expert" else self.beta(progress))

    def __call__(self, beta: float = 0.0) -> TensorDict:
        """Roll the env's batch of chains with the expert driving a part ``beta``; return the flat records."""
        self.policy.beta = beta
        batch = next(self._batches)
        records = batch.select(*COLUMNS, strict=False).reshape(-1)
        return records.update({key: records[key].squeeze(-1) for key in ("t", "s", "actor")})


def draw(
    data: Data, n: int, generator: torch.Generator | None = None, conditional: bool = False
) -> tuple[States, Condition]:
    """Return ``n`` clean points and, if ``conditional``, their conditions (from ``data.sample_labelled``)."""
    if not conditional:
        return data.sample(n, generator), None
    if not isinstance(data, LabelledData):
        raise Refusal(
            f"conditional chains need data with sample_labelled(n, generator); {type(data).__name__} has none. "
            "Give such data, or an environment without conditions."
        )
    return data.sample_labelled(n, generator)


def forward_states(
    data: Data,
    schedule: Schedule,
    grid: Times,
    n: int,
    generator: torch.Generator | None = None,
    conditional: bool = False,
    input_perturbation: float = 0.0,
    at_once: int | None = None,
) -> TensorDict:
    """Return ``n`` forward-diffused records: data perturbed to times drawn uniformly from ``grid`` but its end, 0.

    They are drawn ``at_once``, all by default: the draws of the first record do not depend on those that follow.

    With an ``input_perturbation`` g > 0 the noise is eps + g xi, xi a second standard normal: states somewhat off the
    data's law stand in for the ones that a student's errors lead to, without a rollout (Ning et al. 2023,
    https://arxiv.org/abs/2301.11706). There the network is asked for eps alone; here the expert labels the state that
    the student sees, so the label is right and only the law of the states is wider.
    """
    drawn = []
    for start in range(0, max(n, 1), at_once or max(n, 1)):
        rows = min(at_once or n, n - start)
        x0, condition = draw(data, rows, generator, conditional)
        step = torch.randint(len(grid) - 1, (rows,), generator=generator, device=grid.device)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        if input_perturbation > 0.0:
            second = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
            noise = noise + input_perturbation * second
        drawn.append((x0, noise, step, *(() if condition is None else (condition,))))
    x0, noise, step, *told = drawn[0] if len(drawn) == 1 else map(torch.cat, zip(*drawn, strict=True))
    t, s = grid[step], grid[step + 1]
    records = TensorDict(
        {"x_t": perturb(x0, noise, t, schedule), "t": t, "s": s, "actor": torch.full_like(step, -1)}, [n]
    )
    return records.set("condition", told[0]) if told else records
