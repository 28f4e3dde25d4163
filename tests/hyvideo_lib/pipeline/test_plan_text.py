"""Plans in words, of stages that are planned from sizes alone."""

from dataclasses import replace

import pytest

from hyvideo_lib.memory import BlockSwap
from hyvideo_lib.memory.machine import Machine
from hyvideo_lib.memory.plan import StagePlan, Way, Weights, plan_stage
from hyvideo_lib.memory.simulate import StreamCost
from hyvideo_lib.pipeline.plan import Plan
from hyvideo_lib.pipeline.plan_steps import RunCost, StepCost
from hyvideo_lib.pipeline.plan_terms import NODES
from hyvideo_lib.pipeline.plan_text import describe_plan

GIB = 2**30
WEIGHTS = Weights(GIB, (GIB,) * 8, 2, away=2 * GIB)


def stage(machine: Machine, *ways: Way, weights: Weights = WEIGHTS) -> StagePlan:
    return plan_stage("sample", weights, ways, machine.gpu_free, machine.ram_free, BlockSwap())


def told(machine: Machine, *ways: Way, weights: Weights = WEIGHTS) -> str:
    return describe_plan(Plan(machine, (stage(machine, *ways, weights=weights),), RunCost((StepCost(1e15, 0),))))


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (
            Machine(7 * GIB, gpu_total=8 * GIB),
            "8.00 GiB of GPU memory, 1.00 GiB of it the driver's and other programs'",
        ),
        (Machine(7 * GIB), "7.00 GiB of the GPU's memory left for the run; RAM not given, not checked."),
        (Machine(None, 9 * GIB), "computes in RAM; 9.00 GiB of RAM free."),
    ],
)
def test_the_first_line_is_the_machine(machine, words):
    assert words in told(machine, Way("", GIB)).splitlines()[0]


def test_the_summands_of_ram_are_named():
    assert "(11.00 GiB of files, 1.00 GiB work, 1.00 GiB the program itself): fits" in told(
        Machine(None, 64 * GIB), Way("", GIB)
    )
    text = told(Machine(8 * GIB, 64 * GIB), Way("", GIB))
    assert "RAM: 11.00 GiB of files, 5.00 GiB of pinned blocks, 1.00 GiB the program itself" in text


def test_a_stage_says_whether_it_fits_as_asked_slowly_with_a_setting_or_not():
    asked, other = Way("", 6 * GIB), Way("tiles of 1 (--tiles 1)", GIB, is_asked=False)
    assert ": fits\n" in told(Machine(20 * GIB), asked)
    assert ": fits with: tiles of 1 (--tiles 1)\n" in told(Machine(6 * GIB), asked, other)
    slow = told(Machine(6 * GIB, 6 * GIB), other)
    assert ": fits, slowly with: tiles of 1 (--tiles 1)\n" in slow
    assert "GiB of RAM for the" in slow
    hopeless = told(Machine(2 * GIB), asked, other)
    assert ": does not fit\n" in hopeless
    assert "even with tiles of 1 (--tiles 1)" in hopeless
    assert "short by 2.31 GiB on the GPU: it needs 4.31 GiB, the 0.31 GiB that are kept free included" in hopeless


def test_what_happens_by_itself_is_as_asked():
    text = told(Machine(20 * GIB), Way("heads in 2 groups, which happens by itself", GIB))
    assert ": fits\n" in text
    assert "with heads in 2 groups, which happens by itself" in text


def test_nothing_happens_by_itself_where_a_stage_does_not_fit():
    text = told(Machine(2 * GIB), Way("heads in 24 groups, which happens by itself", 6 * GIB))
    assert "even with heads in 24 groups\n" in text
    assert "even with 8 of 8 blocks in RAM\n" in text
    assert "by itself" not in text


def test_settings_are_called_what_they_are_where_the_plan_is_shown():
    machine = Machine(6 * GIB)
    plan = Plan(machine, (stage(machine, Way("", GIB)),), RunCost((StepCost(1e15, 0),)))
    assert "(the same as --swap-double 2 --swap-single 5)" in describe_plan(plan)
    assert "(the same as double_blocks 2 and single_blocks 5 on Block Swap)" in describe_plan(plan, NODES)


def test_ram_that_must_be_there_does_not_fit_when_it_is_short():
    converted = Weights(GIB, (GIB,) * 8, 2, away=2 * GIB, is_mapped=False)
    text = told(Machine(40 * GIB, 10 * GIB), Way("", GIB), weights=converted)
    assert "does not fit" in text
    assert "short by 2.00 GiB of RAM that must be there: it needs 12.00 GiB beside files" in text


def test_what_moves_in_a_step_is_told_without_any_speed():
    machine = Machine(8 * GIB, link=10e9)
    plan = Plan(machine, (stage(machine, Way("", GIB)),), RunCost((StepCost(1e15, 5 * 10**9),)))
    text = describe_plan(plan)
    assert "5.0 GB move to the GPU, which takes 0.50 s on a link of 10 GB/s" in text
    assert "name the card for one (--card)" in text
    step = plan.to_dict()["step"]
    assert (step["moved_bytes"], step["copy_seconds"], step["seconds_at_least"]) == (5 * 10**9, 0.5, None)
    assert "move" not in told(Machine(None), Way("", GIB))
    step = StepCost(1e15, 5 * 10**9, StreamCost(7.0, 0.25, 5 * 10**9))
    fast = replace(plan, machine=replace(machine, speed=1e12, name="mine"), cost=RunCost((step,)))
    assert "At least 7.0 s a step, computed" in describe_plan(fast)
    assert "--card" not in describe_plan(fast)
    half = StepCost(5e14, 2 * 10**9, StreamCost(3.0, 0.25, 2 * 10**9))
    mixed = describe_plan(replace(fast, cost=RunCost((step, half), is_cached=True)))
    assert "One computed step is 750.0 TFLOP on average over all steps and 1,000.0 at most" in mixed
    assert "In a computed step 3.5 GB on average over all steps and 5.0 at most move" in mixed
    assert "0.35 s on average over all steps and 0.50 at most on a link" in mixed
    assert "At least 3.0 s a computed step, 5.0 s on average, computed" in mixed


def test_nothing_is_said_to_fit_where_nothing_is_known():
    text = told(Machine(None), Way("", GIB))
    assert ": not checked\n" in text
    assert "fits" not in text
    unknown = Plan(Machine(None), (stage(Machine(None), Way("", GIB)),), RunCost((StepCost(1e15, 0),))).to_dict()
    assert unknown["fits"] is unknown["stages"]["sample"]["fits"] is None
