"""The registry of faults agrees with the trainers, the tasks, the tables and the plan of runs."""

from __future__ import annotations

from collections import Counter

import pytest
from faults.fault_class import CHAIN, FAULTS, MIDWAY, START, TRAINERS, FaultClass, fault, shown
from faults.healthy import HEALTHY
from faults.plan import PlannedRun, planned_runs, runs_of, tasks_of
from faults.proving import columns_of
from faults.registry import HEALTHY_SEEDS, SEEDS
from faults.seams import RecurrentSeams, Seams
from faults.tasks import TASKS

PLANNED = {run.key: run for run in planned_runs()}
every_fault = pytest.mark.parametrize("entry", FAULTS.values(), ids=list(FAULTS))


def test_there_are_at_least_fifty_fault_classes():
    assert len(FAULTS) >= 50


@every_fault
class TestAFaultClass:
    def test_its_labels_exist(self, entry: FaultClass):
        assert entry.chain in CHAIN
        assert entry.onset in (START, MIDWAY)
        assert set(entry.trainers) <= set(TRAINERS) and set(entry.tasks or ()) <= set(TASKS)
        assert entry.cause.isidentifier() and entry.cause != "healthy"
        assert entry.description.endswith(".")

    def test_it_changes_a_step_of_the_training(self, entry: FaultClass):
        steps = {name for name in vars(RecurrentSeams) | vars(Seams) if not name.startswith("_")}
        bases = entry.seams.__mro__[: entry.seams.__mro__.index(Seams)]
        assert any(steps & vars(base).keys() for base in bases if base is not RecurrentSeams)

    def test_its_proof_reads_columns_that_exist(self, entry: FaultClass):
        read, there = columns_of(entry.proof)
        assert read and read <= there

    def test_its_tasks_have_one_of_its_trainers(self, entry: FaultClass):
        pairs = list(tasks_of(entry.trainers, entry.tasks))
        assert pairs and all(trainer in TASKS[task].trainers for trainer, task in pairs)
        assert {task for _, task in pairs} >= set(entry.tasks or ())

    def test_each_of_its_runs_has_a_control_that_is_planned(self, entry: FaultClass):
        runs = list(runs_of(entry))
        assert {run.half for run in runs} == {"training", "held-out"}
        for run in runs:
            control = PLANNED[run.control or ""]
            assert not control.faulty and control.half == run.half
            assert (control.trainer, control.task, control.seed) == (run.trainer, run.task, run.seed)


class TestThePlan:
    def test_no_two_runs_share_a_key(self):
        assert len(PLANNED) == len(planned_runs())

    def test_forty_healthy_runs_are_among_them_in_each_half_the_hard_ones_too(self):
        healthy = [run for run in PLANNED.values() if not run.faulty]
        halves = Counter(run.half for run in healthy)
        assert halves["training"] >= 40 and halves["held-out"] >= 40
        assert {run.name for run in healthy} == set(HEALTHY)

    def test_all_trainers_and_at_least_three_tasks_are_used(self):
        runs = PLANNED.values()
        assert {run.trainer for run in runs} == set(TRAINERS)
        assert len({run.task for run in runs}) >= 3

    def test_the_halves_share_no_seed_and_held_out_tasks_are_in_one_half_only(self):
        for seeds in (SEEDS, HEALTHY_SEEDS):
            assert not set(seeds["training"]) & set(seeds["held-out"])
        held_out = {name for name, task in TASKS.items() if task.held_out}
        assert held_out and not any(run.half == "training" for run in PLANNED.values() if run.task in held_out)

    def test_a_run_made_from_something_else_has_another_fingerprint(self):
        run = PlannedRun("plain", False, "script", "CartPole-v1", 1, "training", 1, "healthy", None)
        longer = PlannedRun("plain", False, "script", "CartPole-v1", 1, "training", 1, "healthy", None, updates=5)
        assert run.fingerprint() != longer.fingerprint()


def test_a_name_is_entered_once():
    with pytest.raises(ValueError, match=r"two fault classes named reward_sign\."):
        fault("reward_sign", cause="reward_sign", chain="reward", proof=shown("n", ">", 0))(Seams)
