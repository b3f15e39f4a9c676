"""What a run will cost, before it is run: its network evaluations, predicted from its configuration.

Let B be chains, K steps, k the expert's sub-steps, beta the part of the roll-in steps that the expert drives, M the
rows of a batch and f the part of them that is forward-diffused. A round costs

* if it rolls in the student: K B evaluations of the student (none where beta = 1) and K B beta k of the expert;
* if it rolls in the expert: K B k of the expert;
* for either, the labels of its K B records; and once in a run, as the collector tries its policy, B of the student;

and an update draws one batch, or for an objective with a critic one more each update of the critic. A batch costs the
labels of its f M forward states and M evaluations of the student; distribution matching also asks the expert about the
M answers of the last batch. A label costs k evaluations for progressive distillation, one for consistency, none for
distribution matching. With guidance on a labelled task the expert is asked twice each time.
"""

from typing import Any, NamedTuple

from dagdiff.checks import Refusal
from dagdiff.mixture import Shares
from dagdiff.objectives import Consistency, DistributionMatching, Progressive
from dagdiff.round import updates_by_round
from dagdiff.runs.config import Config
from dagdiff.runs.parts import resolve


class Nfe(NamedTuple):
    """Network evaluations, in rows."""

    student: float
    expert: float

    @property
    def total(self) -> float:
        """Of both."""
        return self.student + self.expert


class _Rates(NamedTuple):
    """What an objective asks of the expert: for a label, for each row of an update; and the batches of an update."""

    label: int
    row: int
    batches: int


def predict_nfe(config: Config) -> Nfe:
    """Return what training by a configuration costs, exactly where shares cut the batch exactly, else on average.

    Raises:
        Refusal: for what can't be known beforehand: an objective, driver or curriculum of one's own, or stages.
    """
    rates = _rates(config)
    twice = 2 if config["task"].endswith("-labelled") and config["guidance"] != 1.0 else 1
    records, rows, substeps = config["chains"] * config["steps"], config["batch_size"], config["substeps"]
    mixture = Shares(*config["shares"])
    expert, student = 0.0, 0.0 if mixture.forward == 1.0 else float(config["chains"])
    for number, updates in enumerate(updates_by_round(config["updates"], config["rounds"])):
        progress = number / config["rounds"]
        driven = round(_ramp(config, "beta", progress) * config["chains"]) * config["steps"]
        shares = mixture.ramped(_ramp(config, "shares_ramp", progress))
        if shares.student > 0.0:
            student += records if driven < records else 0
            expert += driven * substeps + records * rates.label
        if shares.expert > 0.0:
            expert += records * (substeps + rates.label)
        student += updates * rates.batches * rows
        expert += updates * rows * (rates.batches * shares.forward * rates.label + rates.row)
    return Nfe(student, expert * twice)


def updates_for(config: Config, total: float) -> int:
    """Return the updates, whole in each round, with which a configuration costs as near ``total`` as can be.

    Raises:
        Refusal: if its roll-ins alone cost more.
    """
    rounds = config["rounds"]
    one, two = (predict_nfe({**config, "updates": n * rounds}).total for n in (1, 2))
    each = round(1 + (total - one) / (two - one))
    if each < 1:
        raise Refusal(f"one update a round costs {one:,.0f} evaluations, more than {total:,.0f}. Take fewer rounds.")
    return each * int(rounds)


def _rates(config: Config) -> _Rates:
    chosen = config["objective"]
    known = {
        Progressive: _Rates(label=config["substeps"], row=0, batches=1),
        Consistency: _Rates(label=1, row=0, batches=1),
        DistributionMatching: _Rates(label=0, row=1, batches=1 + chosen.get("critic_updates", 0)),
    }
    kind: Any = resolve("objective", chosen["class"])
    if kind not in known:
        raise Refusal(f"what objective {chosen['class']!r} will ask of the expert is not known. Run it and read nfe_*.")
    if config["stages"]:
        raise Refusal(f"stages {config['stages']} change the expert on the way. Run them and read nfe_*.")
    for part, usual in {"driver": "mixture", "curriculum": "plain"}.items():
        if config[part]["class"] != usual:
            raise Refusal(f"what {part} {config[part]['class']!r} will ask is not known. Run it and read nfe_*.")
    return known[kind]


def _ramp(config: Config, part: str, progress: float) -> float:
    arguments = {name: value for name, value in config[part].items() if name != "class"}
    return float(resolve(part, config[part]["class"])(**arguments)(progress))
