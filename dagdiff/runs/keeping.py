"""Keeping a run while it trains: checkpoints, the table of rounds, the log and pictures, as rounds close.

What a round writes must not slow it down: each kind of writing waits until twenty times its own cost has passed since
the last, so a run is slowed by a twentieth at most. Every ``save_every`` minutes a checkpoint is written in any case,
within a round too.
"""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dagdiff import __version__, engine
from dagdiff.checkpoint import save_csv
from dagdiff.checks import Refusal, first_line
from dagdiff.dagger import DAgger
from dagdiff.jobs.deferred import Wish
from dagdiff.jobs.pace import Pace
from dagdiff.jobs.stops import Stopped
from dagdiff.progress import Progress
from dagdiff.report import figures
from dagdiff.report.images import sample_panels
from dagdiff.round import Round
from dagdiff.runs.checkpoints import Checkpoints
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.looks import Looks, log_look
from dagdiff.strategies.halving import Halving
from dagdiff.versions import commit, versions


class Keeper:
    """Keeps one run in its folder; of several processes each has one.

    Args:
        experiment: the run.
        training: its training.
        out: the folder.
        save_every: minutes after which a checkpoint is written even within a round.
        wish: whether a signal has asked to stop.
        log: makes the logger.
        looks: at the student, at chosen rounds.
    """

    def __init__(
        self,
        experiment: Experiment,
        training: Halving,
        out: Path,
        save_every: float,
        wish: Wish,
        log: Callable[[], Any],
        looks: Looks,
    ) -> None:
        self.experiment, self.training, self.out = experiment, training, out
        self.save_every, self.wish = save_every, wish
        self.checkpoints = Checkpoints(out)
        self.made = {"dagdiff": __version__, **versions(torch.get_num_threads()), "commit": commit()}
        self.rounds = list[Round]()
        self._saving, self._table, self._drawing = Pace(0.1), Pace(0.02), Pace(1.0)
        self._log: Any = None
        self._make_log: Callable[[], Any] | None = log
        self.looks = looks
        self._bar: Progress | None = None

    def resume(self) -> None:
        """Set the training back to the newest checkpoint, if there is one."""
        found = self.checkpoints.load()
        if found is None:
            return
        state, made = found
        other = {name: f"{made.get(name)} -> {value}" for name, value in self.made.items() if made.get(name) != value}
        if other and engine.rank() == 0:
            told = ", ".join(f"{name} {change}" for name, change in other.items())
            print(f"dagdiff: warning: resumed with other versions ({told}); digits may differ", file=sys.stderr)
        self.training.load_state_dict(state)
        self.rounds = list(self.training.finished)
        if engine.rank() > 0:
            return
        self.looks.resume()
        for number, done in enumerate(self.rounds, 1):
            self._tell(done)
            self._log_look(number)

    def watch(self) -> None:
        """Save if it is due or asked for; called before each round, after each update, and at the end.

        Raises:
            Stopped: after saving, where a signal has come.
        """
        between = not (self.training.loop and self.training.loop.logs)
        due = (between and self._saving.due) or self._saving.waited >= 60.0 * self.save_every
        if self._bar is not None:
            self._bar.advance(self._updates() - self._bar.done)
        told = [self.wish.signal, int(due) if engine.rank() == 0 else 0]
        signal, due_now = engine.totals(told, torch.device("cpu"))
        if signal or due_now:
            self._saving(self.save)
        if signal:
            number = max(self.wish.signal, 1)
            raise Stopped(
                f"stopped at update {self._updates()}; the run is saved in {self.out}, and the same command resumes "
                f"it, or dagdiff distill --resume {self.out}",
                128 + number,
            )

    def save(self) -> None:
        """Write a checkpoint."""
        loop = self.training.loop
        assert loop is not None
        stage = self.training.stage + 1
        of = f"stage-{stage:02d}-" if len(self.training.stages) > 1 else ""
        within = f"-update-{len(loop.logs):06d}" if loop.logs else ""
        name = f"{of}round-{len(loop.made):04d}{within}"
        self.checkpoints.save(name, stage, self.training.state_dict(), self.made)

    def close(self, loop: DAgger, done: Round) -> None:
        """Keep a round that has closed."""
        self.rounds.append(done)
        if engine.rank() > 0:
            return
        self._tell(done)
        if self._bar is not None:
            self._show(self._bar, done, replayed=done.number <= loop.replayed)
        if self._table.due:
            self._table(self.save_rounds)
        self._look(loop, done)
        if self._drawing.due and not engine.sharded(self.experiment.student):  # one process can't ask a part of it
            with loop.ledger.free():
                self._drawing(self.draw)

    def shown(self, progress: bool) -> Iterator[tuple[DAgger, Round]]:
        """Train, yielding each round with its loop, and show how far it is, in updates of the student."""
        settings = self.experiment.settings
        total = settings.updates * len(settings.stages or [0])
        with Progress("training", total, "update", self._updates(), progress) as self._bar:
            yield from self.experiment.rounds(self.training)

    def save_rounds(self) -> None:
        """Write ``rounds.csv``: one line a round."""
        save_csv(self.out / "rounds.csv", [row(done) for done in self.rounds])

    def draw(self) -> None:
        """Draw the student's samples beside the data and the truth."""
        figures.save(sample_panels(self.experiment.clouds()), self.out / "samples.png")

    def _show(self, bar: Progress, done: Round, replayed: bool) -> None:
        """Show a round: how far training is, and the losses that matter."""
        more = done.updates - bar.done
        if replayed:
            bar.skip(more)
        own = {"on student states": sum(done.loss_own) / len(done.loss_own)} if done.loss_own else {}
        bar.advance(0 if replayed else more, round=len(self.rounds), loss=done.losses["loss"], **own)

    def _look(self, loop: DAgger, done: Round) -> None:
        """Look at the student after a round, if that is due; a round that is replayed was looked at."""
        number, settings = len(self.rounds), self.experiment.settings
        if done.number > loop.replayed:
            if not self.looks.due(number, number == settings.rounds * len(settings.stages or [0])):
                return
            with loop.ledger.free():
                self.looks.look(number, done.updates)
        self._log_look(number)

    def _log_look(self, number: int) -> None:
        """Log the look at a round, if it was looked at."""
        look = self.looks.at(number)
        if look is not None:
            self._log_to(partial(log_look, look=look, picture=self.looks.picture(number)))

    def _tell(self, done: Round) -> None:
        """Log a round."""

        def write(log: Any) -> None:
            for name, value in row(done).items():
                log.log_scalar(name, value, step=done.updates)

        self._log_to(write)

    def _log_to(self, write: Callable[[Any], object]) -> None:
        """Write to the logger. One that fails is left out from then on, and training continues."""
        if self._make_log is None:
            return
        try:
            if self._log is None:
                shutil.rmtree(self.out / "log", ignore_errors=True)  # of a run that was stopped: its rounds come again
                self._log = self._make_log()
            write(self._log)
        except Refusal:
            raise
        except Exception as error:  # whatever a logger of somebody's raises
            self._make_log = None
            told = f"{type(error).__name__}: {first_line(error)}"
            print(f"dagdiff: warning: the logger failed ({told}); the run continues without it", file=sys.stderr)

    def _updates(self) -> int:
        loop, before = self.training.loop, self.training.finished
        return (before[-1].updates if before else 0) + (loop.learner.updates + len(loop.logs) if loop else 0)


def row(done: Round) -> Mapping[str, Any]:
    """Return a round as one flat line: per-step lists become columns."""
    fields = asdict(done)
    shares = dict(zip(("share_forward", "share_student", "share_expert"), fields.pop("shares"), strict=True))
    losses = {f"train_{name}": value for name, value in fields.pop("losses").items()}
    laws = ("loss_forward", "loss_own", "loss_expert")
    by_step = {f"{name}_{k}": value for name in laws for k, value in enumerate(fields.pop(name))}
    return {**fields, **shares, **losses, **by_step}
