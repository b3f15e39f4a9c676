"""What a run will cost, before it is run: its network evaluations, predicted from its configuration.

Let B be chains, K steps, k the expert's sub-steps, beta the part of the rollout steps that the expert drives, and M the
rows of a batch. A round costs

* for each batch of chains of the student: K B evaluations of the student (none where beta = 1) and B beta w of the
  expert, w its walk: K k, or where predictions must be right at data the sum of k t over the K times t, each rounded
  up;
* for each batch of the expert's chains: B w of the expert;
* the labels of its fresh records, of the three sources; and once in a run, as the collector tries its policy, B of the
  student;

how many fresh records there are, and so how many batches of chains, is told by :mod:`dagdiff.gathering`. An update
draws one batch, or for an objective with a critic one more each update of the critic. A batch costs M evaluations of
the student; distribution matching also asks the expert about the M answers of the last batch. A label costs k
evaluations for progressive distillation, one for consistency, none for distribution matching; one that ends elsewhere
costs what its length takes of k, on average over the times. With guidance on a labelled task the expert is asked twice
each time, and by Heun's method twice in each sub-step.
"""

import math
from bisect import bisect
from typing import Any, NamedTuple

import torch

from dagdiff.checks import Refusal
from dagdiff.gathering import fresh_records, rolls
from dagdiff.mixture import Shares
from dagdiff.objectives import Consistency, DistributionMatching, Progressive
from dagdiff.objectives.label_end import as_label_end
from dagdiff.round import updates_by_round
from dagdiff.runs.config import Config
from dagdiff.runs.parts import resolve


class Nfe(NamedTuple):
    """Network evaluations, in rows; those of the expert that label forward states are told apart."""

    student: float
    expert: float
    forward_labels: float = 0.0

    @property
    def total(self) -> float:
        """Of both."""
        return self.at(1.0)

    def at(self, price: float) -> float:
        """What all cost, in evaluations of the student, where one of the expert costs ``price`` of these."""
        return self.student + price * self.expert


class _Rates(NamedTuple):
    """What an objective asks of the expert: for a label, for each row of an update; and the batches of an update.

    ``at_data`` says whether its predictions must be right at data.
    """

    label: float
    row: int
    batches: int
    at_data: bool


def predict_nfe(config: Config) -> Nfe:
    """Return what training by a configuration costs, exactly where shares cut the batch exactly, else on average.

    Raises:
        Refusal: for what can't be known beforehand: an objective, driver or curriculum of one's own, or stages.
    """
    rates = _rates(config)
    twice = 2 if config["task"].endswith("-labelled") and config["guidance"] != 1.0 else 1
    records, rows, walk = config["chains"] * config["steps"], config["batch_size"], _walk(config, rates.at_data)
    mixture = Shares(*config["shares"])
    expert, student = 0.0, 0.0 if mixture.forward == 1.0 else float(config["chains"])
    labelled, owed = 0.0, [0.0, 0.0]
    for number, updates in enumerate(updates_by_round(config["updates"], config["rounds"])):
        progress = number / config["rounds"]
        driven = round(_ramp(config, "beta", progress) * config["chains"])
        shares = mixture.ramped(_ramp(config, "shares_ramp", progress))
        drawn = updates * rates.batches * rows
        forward, *chains = (fresh_records(share, drawn, rows, config["reuse"]) for share in shares)
        (own, owed[0]), (led, owed[1]) = (rolls(*each, records) for each in zip(chains, owed, strict=True))
        student += own * records if driven < config["chains"] else 0
        expert += own * (driven * walk + records * rates.label)
        expert += led * (config["chains"] * walk + records * rates.label)
        student += drawn
        expert += updates * rows * rates.row
        labelled += forward * rates.label
    return Nfe(student, (expert + labelled) * twice, labelled * twice)


def updates_for(config: Config, total: float, price: float = 1.0) -> int:
    """Return the updates, whole in each round, with which a configuration costs as near ``total`` as can be.

    Args:
        config: of a run.
        total: the cost, in evaluations of the student.
        price: what an evaluation of the expert costs, in those of the student.

    Raises:
        Refusal: if its rollouts alone cost more.
    """
    rounds = config["rounds"]

    def cost(each: int) -> float:
        return predict_nfe({**config, "updates": each * rounds}).at(price)

    if cost(1) > total:
        raise Refusal(
            f"one update a round costs {cost(1):,.0f} evaluations, more than {total:,.0f}. Take fewer rounds."
        )
    most = int(total / (rounds * config["batch_size"])) + 2  # the student's evaluations alone cost more
    each = bisect(range(most), total, lo=1, key=cost)
    return min(each - 1, each, key=lambda each: abs(cost(each) - total)) * int(rounds)


def _rates(config: Config) -> _Rates:
    chosen = config["objective"]
    critics = chosen.get("critic_updates", 0)
    known = {
        Progressive: _Rates(_label(config), row=0, batches=1, at_data=chosen.get("label_end") == "data"),
        Consistency: _Rates(_label(config), row=0, batches=1, at_data=True),
        DistributionMatching: _Rates(_label(config), row=1, batches=1 + critics, at_data=True),
    }
    kind: Any = resolve("objective", chosen["class"])
    if kind not in known:
        raise Refusal(f"what objective {chosen['class']!r} will ask of the expert is not known. Run it and read nfe_*.")
    if config["stages"]:
        raise Refusal(f"stages {config['stages']} change the expert on the way. Run them and read nfe_*.")
    if config.get("gathered"):
        raise Refusal(f"how many records {config['gathered']} has is not looked at. Run it and read nfe_*.")
    for part, usual in {"driver": "mixture", "curriculum": "plain"}.items():
        if config[part]["class"] != usual:
            raise Refusal(f"what {part} {config[part]['class']!r} will ask is not known. Run it and read nfe_*.")
    return known[kind]


def _walk(config: Config, at_data: bool) -> int:
    """The expert's evaluations in a chain that it drives."""
    steps, substeps = config["steps"], config["substeps"]
    each = [math.ceil(substeps * i / steps - 1e-3) for i in range(1, steps + 1)] if at_data else [substeps] * steps
    evaluations: int = sum(each) * _questions(config)
    return evaluations


def _label(config: Config) -> float:
    """The expert's evaluations for a label, on average over the times at which the objective trains."""
    chosen, substeps = config["objective"], config["substeps"]
    end = chosen.get("label_end", "data" if chosen.get("label_weight") else None)
    if end is None:
        return 0.0
    if end == "step":
        return substeps * _questions(config) if "weight" in chosen else 1.0
    places = chosen.get("solver_steps", config["steps"])
    law, t = as_label_end(end, places), torch.arange(1, places + 1) / places
    draws = torch.Generator().manual_seed(0)
    lengths = torch.stack([t - law(t, draws) for _ in range(200 if end == "uniform" else 1)])
    return float((lengths * substeps - 1e-3).ceil().clamp(min=1.0).mean()) * _questions(config)


def _questions(config: Config) -> int:
    """How often the expert is asked in a sub-step."""
    return 2 if config["solver"]["class"] == "heun" else 1


def _ramp(config: Config, part: str, progress: float) -> float:
    arguments = {name: value for name, value in config[part].items() if name != "class"}
    return float(resolve(part, config[part]["class"])(**arguments)(progress))
