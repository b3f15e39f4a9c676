"""The shift, measured: nothing for a perfect student, the right step for a broken one, and at nobody's cost."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dagdiff.checks import Refusal
from dagdiff.expert import Expert
from dagdiff.metrics.imitation import gaps, imitation_loss
from dagdiff.metrics.shift import Bracket, Shift, StepShift, measure_shift
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.policy import ExpertPolicy
from dagdiff.report.anatomy import advice, format_shift
from dagdiff.schedule import CosineSchedule, FlowSchedule, VPSchedule, step_grid
from dagdiff.transition import Ddim, Renoise, Transition, chain

SCHEDULES = {"cosine": CosineSchedule(), "flow": FlowSchedule(), "vp": VPSchedule.linear()}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
MEANS, STD = torch.tensor([[1.0, 0.3], [-1.0, -0.3]]), 0.25


def exact(schedule: Callable) -> GaussianMixtureExpert:
    return GaussianMixtureExpert(MEANS, torch.full((2,), STD), torch.full((2,), 0.5), schedule)


def data(rows: int = 400, modes: tuple[int, ...] = (0, 1)) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mode = torch.tensor(modes)[torch.randint(len(modes), (rows,), generator=generator)]
    return MEANS[mode] + STD * torch.randn(rows, 2, generator=generator)


def measured(
    policy: Callable, expert: Expert, x0: Tensor, steps: int = 4, law: Transition | None = None
) -> list[StepShift]:
    return shifted(policy, expert, x0, steps, law).rows


def shifted(policy: Callable, expert: Expert, x0: Tensor, steps: int = 4, law: Transition | None = None) -> Shift:
    law = law or Ddim(expert.schedule)
    return measure_shift(policy, expert, law, step_grid(steps), x0, generator=torch.Generator().manual_seed(1))


@every_schedule
def test_a_student_equal_to_the_expert_has_no_loss_and_the_experts_own_chain(schedule: Callable) -> None:
    for row in measured(exact(schedule), Expert(exact(schedule), schedule), data()):
        assert row.loss_forward == row.loss_own == row.loss_expert == row.own_errors == row.data_mismatch == 0.0
        assert row.sliced_w2_expert == pytest.approx(0.0, abs=1e-6)
        assert -0.02 < row.energy_expert <= 0.0, "a cloud against itself is just below zero"
        assert -0.02 < row.mmd_expert <= 0.0
        assert row.accuracy_expert == pytest.approx(0.5, abs=0.01), "twins can't be told apart"
        assert row.mismatch_low == row.mismatch_high == row.errors_low == row.errors_high == row.displacement == 0.0


@every_schedule
def test_a_fine_chain_of_the_exact_expert_stays_at_the_floor_of_forward_states(schedule: Callable) -> None:
    expert, x0 = Expert(exact(schedule), schedule), data(500)
    rows = measured(exact(schedule), expert, x0, steps=12)
    assert [row.step for row in rows] == list(range(12))
    assert [row.t for row in rows] == pytest.approx(step_grid(12)[:-1].tolist())
    # The floor: two samples of the data, 0.1 in sliced W2 and well below 0.02 in energy.
    assert max(row.energy_forward for row in rows) < 0.03
    assert max(row.sliced_w2_forward for row in rows) < 0.2
    assert max(abs(row.mmd_forward) for row in rows) < 0.01
    assert max(abs(row.accuracy_forward - 0.5) for row in rows) < 3.5 * rows[0].accuracy_error


@every_schedule
def test_a_student_blind_in_one_half_plane_shows_the_gap_where_its_chains_go_there(schedule: Callable) -> None:
    """The student errs by 1 where x < 0 and t <= 0.5; its data lie at x > 0, so off-policy states hardly show it."""
    teacher = exact(schedule)

    def blind(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        wrong = (x_t[:, :1] < 0) & (t[:, None] <= 0.5)
        return teacher(x_t, t, condition) + wrong.float()

    rows = measured(blind, Expert(teacher, schedule), data(modes=(0,)), steps=8)
    early = [row for row in rows if row.t > 0.5]
    late = [row for row in rows if row.t <= 0.5]
    assert len(early) == len(late) == 4
    assert all(row.loss_own == row.loss_forward == row.data_mismatch == 0.0 for row in early)
    assert late[0].data_mismatch > 0.02 and late[-1].data_mismatch > 0.1
    assert abs(late[0].own_errors) < 1e-6, "the student has not left the expert's states before it errs"
    assert all(row.displacement == pytest.approx(0.0, abs=1e-5) for row in rows[:5]) and rows[5].displacement > 0.05
    assert late[-1].loss_forward < 0.05
    assert late[0].loss_own == pytest.approx(0.5, abs=0.1), "half of the chains are in the half-plane, each errs by 1"
    assert all(row.sliced_w2_expert == pytest.approx(0.0, abs=1e-6) for row in rows[:5]), "the error shows one step on"
    assert rows[5].sliced_w2_expert > 0.03


def test_no_evaluation_is_charged() -> None:
    schedule = CosineSchedule()
    expert, law = Expert(exact(schedule), schedule, substeps=3), Ddim(schedule)
    expert.nfe = 11
    measured(exact(schedule), expert, data(50))
    x_t, t = torch.randn(9, 2), torch.full((9,), 0.5)
    imitation_loss(exact(schedule), expert, law, x_t, t, t - 0.25)
    assert expert.nfe == 11


@pytest.mark.parametrize("law", [Ddim, Renoise])
def test_the_imitation_loss_asks_for_the_guess_that_serves_the_law(law: Callable) -> None:
    schedule = CosineSchedule()
    expert, x_t = Expert(exact(schedule), schedule, substeps=4), torch.randn(30, 2)
    t, s = torch.full((30,), 0.8), torch.full((30,), 0.4)
    goal = expert.target(x_t, t, s if law is Ddim else torch.zeros(30))
    other = expert.target(x_t, t, torch.zeros(30) if law is Ddim else s)
    for found, shift in ((goal, 0.0), (goal, 0.5)):
        loss = imitation_loss(lambda x, t, c=None, g=found + shift: g, expert, law(schedule), x_t, t, s)
        assert loss == pytest.approx(shift**2, abs=1e-9)
    assert imitation_loss(lambda x, t, c=None: other, expert, law(schedule), x_t, t, s) > 1e-4


def test_a_bare_network_may_be_measured() -> None:
    """A student that is no StudentPolicy carries gradient; a measurement must not."""
    schedule = CosineSchedule()
    student: nn.Module = Student(MLP(width=8), schedule)
    rows = measured(student, Expert(exact(schedule), schedule), data(50))
    assert all(row.loss_own > 0 for row in rows)


def test_labels_go_with_their_rows() -> None:
    schedule = CosineSchedule()
    expert, labels = Expert(exact(schedule), schedule), torch.arange(100) % 2
    seen = []

    def policy(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        seen.append(condition)
        return exact(schedule)(x_t, t, condition)

    shift = measure_shift(policy, expert, Ddim(schedule), step_grid(3), MEANS[labels], labels)
    assert all(condition is labels for condition in seen)
    assert all(row.loss_own == 0.0 for row in shift.rows)


def test_tables() -> None:
    shift = shifted(
        lambda x, t, c=None: torch.zeros_like(x), Expert(exact(CosineSchedule()), CosineSchedule()), data(50)
    )
    lines, row = format_shift(shift).splitlines(), shift.rows[1]
    legend = lines.index("", len(lines) - 11)
    assert legend == (1 + 4) + 2 * (1 + 2 + 4) and len(lines) == legend + 1 + 9
    assert max(len(line) for line in lines[:legend]) <= 110
    error, low, high = row.step_error, row.step_error_low, row.step_error_high
    assert lines[0].split()[:2] == ["step", "t"]
    assert lines[2].split(None, 2)[2].startswith(f"{error:.3g} [{low:.3g}, {high:.3g}]")
    assert f"{row.growth:.3g} [{row.growth_low:.3g}, {row.growth_high:.3g}]" in lines[2]
    assert f"{100 * row.share:.0f} % [{100 * row.share_low:.0f}, {100 * row.share_high:.0f}]" in lines[2]
    assert lines[7].split()[:5] == ["step", "t", "forward", "expert", "own"]
    losses = [f"{loss:.3g}" for loss in (row.loss_forward, row.loss_expert, row.loss_own)]
    assert lines[9].split()[:5] == ["1", f"{row.t:.2f}", *losses]
    mean, low, high = row.errors_ratio
    assert f"{mean:.2f}x [{low:.2f}, {high:.2f}]" in lines[9]
    assert f"{0.5 + 2 * row.accuracy_error:.3f}" in lines[-4]
    assert lines[-3].endswith(f"between {shift.ends.low:.3g} and {shift.ends.high:.3g}")
    assert list(row.as_row())[-2:] == ["data_mismatch", "own_errors"]
    losses = {"loss_forward": row.loss_forward, "loss_expert": row.loss_expert, "loss_own": row.loss_own}
    assert gaps(losses) == pytest.approx(
        {"data_mismatch": row.data_mismatch, "own_errors": row.own_errors, "loss_gap": row.loss_own - row.loss_forward}
    )


@every_schedule
def test_forward_states_stand_at_the_steps_own_time(schedule: Callable) -> None:
    asked: list[tuple[Tensor, Tensor]] = []

    def policy(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        asked.append((x_t, t))
        return torch.zeros_like(x_t)

    rows = measured(policy, Expert(exact(schedule), schedule), torch.full((800, 2), 3.0))
    for step, row in enumerate(rows):
        x_t, t = asked[4 + 3 * step]  # four steps of the chain, then forward, own and expert states of each step
        alpha, sigma = (float(part[0]) for part in schedule(t))
        assert float(t[0]) == pytest.approx(row.t)
        assert float(x_t.mean()) == pytest.approx(3.0 * alpha, abs=0.1)
        assert float(x_t.std()) == pytest.approx(sigma, rel=0.1)


# The advice


def rotten(teacher: Callable, steps: tuple[int, ...], count: int, size: float = 1.0) -> Callable:
    """A student that errs by ``size`` at these steps, in a half-plane where its data never lie."""

    def student(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        step = int((step_grid(count) - t[0]).abs().argmin())
        wrong = (x_t.flatten(1)[:, :1] < -0.5) & torch.tensor(step in steps)
        return teacher(x_t, t, condition) + size * wrong.float().reshape(-1, *[1] * (x_t.ndim - 1))

    return student


@pytest.mark.parametrize(
    ("steps", "words"), [((5,), "step 5: "), ((4, 5, 6), "steps 4-6: "), ((3, 5, 6), "steps 3, 5-6: ")]
)
def test_data_mismatch_is_named_at_exactly_the_steps_where_the_student_is_broken(
    steps: tuple[int, ...], words: str
) -> None:
    schedule = CosineSchedule()
    teacher = exact(schedule)
    rows = measured(rotten(teacher, steps, 8), Expert(teacher, schedule), data(300, modes=(0,)), steps=8)
    led, forward = (sum(getattr(rows[k], name) for k in steps) for name in ("loss_expert", "loss_forward"))
    first = advice(rows).splitlines()[0]
    assert first.startswith(f"data mismatch at {words}")
    ratio = led / max(forward, 1e-12)
    shown = f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x" if ratio < 1000 else "over 1000x"
    assert f"loss on expert states {shown} that on forward states" in first
    assert "train on expert or student states" in first


def test_own_errors_are_named_where_the_student_leads_itself_astray() -> None:
    """It errs at step 2, and so comes at step 3 to where it errs again, beyond the expert's states."""
    schedule, times = CosineSchedule(), step_grid(4)
    teacher = exact(schedule)

    def astray(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        step = int((times - t[0]).abs().argmin())
        far = (x_t[:, :1] > 2.0).float()
        return teacher(x_t, t, condition) + 2.0 * float(step == 2) + (0.5 + 2.0 * far) * float(step == 3)

    rows = measured(astray, Expert(teacher, schedule, 8), data(400), steps=4)
    said = advice(rows)
    assert "data mismatch at" not in said
    assert "own errors at step 3: loss on own states " in said
    assert said.endswith("train on student states (DAgger)")
    assert rows[3].displacement > 0.5 and rows[3].growth > 0.0 and rows[0].displacement == 0.0
    assert rows[0].growth != rows[0].growth, "nothing has been displaced yet"


def test_a_student_equal_to_its_expert_has_no_shift_to_repair() -> None:
    schedule = CosineSchedule()
    rows = measured(exact(schedule), Expert(exact(schedule), schedule), data(200))
    assert advice(rows).startswith("no shift to repair") and "1.00x" in advice(rows)


def test_an_error_that_is_alike_everywhere_is_no_shift() -> None:
    """A bad student, but as bad on forward states as on its own: more updates help it, other states do not."""
    schedule, generator = CosineSchedule(), torch.Generator().manual_seed(5)
    teacher = exact(schedule)

    def noisy(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return teacher(x_t, t, condition) + 0.3 * torch.randn(x_t.shape, generator=generator)

    rows = measured(noisy, Expert(teacher, schedule), data(300))
    assert all(row.loss_own == pytest.approx(0.09, rel=0.2) for row in rows)
    assert advice(rows).startswith("no shift to repair")
    assert advice(rows).endswith("larger student or more updates")
    assert all(row.mismatch_low < 0.0 < row.mismatch_high and row.errors_low < 0.0 < row.errors_high for row in rows)


def test_a_rounding_error_is_no_shift() -> None:
    schedule = CosineSchedule()
    teacher = exact(schedule)
    rows = measured(rotten(teacher, (0, 1, 2, 3), 4, size=1e-5), Expert(teacher, schedule), data(200, modes=(0,)))
    assert any(row.loss_own > 2.0 * row.loss_forward for row in rows)
    assert advice(rows).startswith("no shift to repair")


def test_the_advice_rests_on_the_bounds() -> None:
    row = StepShift(
        0, 1.0, 0.1, 0.1, 0.4, 0.0, 0.0, 0.0, 0.0,
        loss_zero=1.0, mismatch_low=-0.01, mismatch_high=0.01, errors_low=0.2, errors_high=0.4,
    )  # fmt: skip
    assert row.errors_ratio == pytest.approx((4.0, 3.0, 5.0))
    assert row.mismatch_ratio == pytest.approx((1.0, 0.9, 1.1))
    assert advice([row]).startswith("own errors at step 0: loss on own states 4.00x that on expert states; ")
    wide = replace(row, step=1, errors_low=-0.05, errors_high=0.7)
    assert advice([wide]) == "own errors undecided at step 1 (between 0.50x and 8.00x): measure more chains"
    calm = replace(row, step=2, loss_own=0.1, errors_low=-0.02, errors_high=0.03)
    assert advice([calm]).startswith("no shift to repair: losses on the three laws of states differ by 1.30x at most")
    assert advice([row, wide, calm]) == f"{advice([row])}; {advice([wide])}"
    assert advice([calm, replace(row, step=3), replace(row, step=4)]).startswith("own errors at steps 3-4: ")
    both = replace(
        row, loss_expert=0.3, loss_own=0.9, mismatch_low=0.1, mismatch_high=0.3, errors_low=0.5, errors_high=0.7
    )
    assert [line.split(" at ")[0] for line in advice([both]).splitlines()] == ["data mismatch", "own errors"]
    for rows in ([], [replace(row, errors_low=float("nan"))], [replace(row, mismatch_low=float("nan"))]):
        with pytest.raises(Refusal, match="measure_shift"):
            advice(rows)


def test_images_are_measured_as_points_of_the_plane_are() -> None:
    """A Gaussian on (3, 4, 4) and its exact expert; the student errs where its data, all bright, never lie."""
    schedule = CosineSchedule()

    def gaussian(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        alpha, sigma = (part.reshape(-1, 1, 1, 1) for part in schedule(t))
        return alpha * x_t / (alpha**2 + sigma**2)  # E[x0 | x_t] of N(0, 1)

    x0 = 1.0 + 0.1 * torch.randn(200, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    rows = measured(rotten(gaussian, (3,), 4), Expert(gaussian, schedule), x0)
    assert advice(rows).startswith("data mismatch at step 3: ")
    assert rows[-1].accuracy_forward > 0.95 > 0.6 > rows[-1].accuracy_expert
    assert rows[-1].mmd_forward > 0.05 > abs(rows[-1].mmd_expert)


# References: the expert in the student's place, the known density, the bracket


@pytest.mark.parametrize("law", [Ddim, Renoise])
def test_expert_states_are_those_of_the_expert_in_the_students_place(law: Callable) -> None:
    schedule, times = CosineSchedule(), step_grid(4)
    expert = Expert(exact(schedule), schedule, substeps=4)
    policy = ExpertPolicy(expert, law(schedule), times)
    for step in chain(policy, law(schedule), times, torch.randn(20, 2)):
        wanted = expert.target(step.x_t, step.t, step.s if law is Ddim else torch.zeros(20))
        assert torch.equal(step.x0, wanted)
    shift = shifted(policy, expert, data(60), law=law(schedule))
    assert all(row.displacement == row.loss_own == 0.0 for row in shift.rows), "it is its own perfect imitator"
    assert shift.ends == Bracket(0.0, 0.0)


def test_a_growth_is_what_the_expert_makes_of_a_displacement() -> None:
    """Where the expert always answers 0, DDIM shrinks a displacement as sigma falls, and at data nothing is left."""
    schedule = FlowSchedule()
    expert = Expert(lambda x, t, c=None: torch.zeros_like(x), schedule)
    rows = measured(lambda x, t, c=None: torch.ones_like(x), expert, data(100))
    assert all(row.growth == pytest.approx(0.0, abs=1e-6) for row in rows[1:])
    expert = Expert(lambda x, t, c=None: x, schedule)  # x_s = alpha_s x + s / t (x - alpha_t x), a factor alone
    rows = measured(lambda x, t, c=None: x + 1.0, expert, data(100))
    factor = 1.0
    for t, s, row in zip((0.25, 0.5, 0.75), (0.0, 0.25, 0.5), reversed(rows[1:]), strict=True):
        factor *= (1 - s) + s / t * (1 - (1 - t))
        assert row.growth == pytest.approx(factor, rel=1e-3)


def test_the_surprise_is_known_where_the_density_is() -> None:
    """At t = 1/2 own states are N(1, 1/4), by one step from noise, and true ones N(0, 1/2): 3/2 nats apart in 2-D."""
    schedule = FlowSchedule()
    teacher = GaussianMixtureExpert(torch.zeros(1, 2), torch.ones(1), torch.ones(1), schedule)
    points = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    arguments = Expert(teacher, schedule), Ddim(schedule), step_grid(2), points
    shift = measure_shift(
        lambda x, t, c=None: teacher(x, t) + 2.0, *arguments, density=teacher.log_density, truth=points
    )
    first, last = shift.rows
    assert first.surprise == pytest.approx(0.0, abs=0.05), "noise is noise"
    assert last.surprise == pytest.approx(1.5, abs=0.1)
    plain = measure_shift(teacher, *arguments)
    assert all(row.surprise != row.surprise for row in plain.rows), "not measured without a density"


def test_the_bracket_holds_the_distance_of_two_known_clouds() -> None:
    """The student's chain ends at the expert's, moved by (0.3, 0.4): W2 is 0.5, and the same noise says just that."""
    schedule = CosineSchedule()
    teacher, moved = exact(schedule), torch.tensor([0.3, 0.4])
    last = float(step_grid(4)[-2])
    student = lambda x, t, c=None: teacher(x, t, c) + moved * (t[:, None] <= last)  # noqa: E731
    ends = shifted(student, Expert(teacher, schedule), data(1000)).ends
    assert ends.high == pytest.approx(0.5, rel=1e-4)
    assert 0.9 * 0.5 < ends.low <= ends.high
