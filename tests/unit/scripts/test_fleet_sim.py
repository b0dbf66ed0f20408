"""The simulation of a fleet against arithmetic that is done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scripts.fleet_sim import Answers, Fleet, Found, Servers, Simulation, simulate

FREE = Servers(step_s=0.01, row_s=0, read_s=0, request_s=0)
"""Steps of 10 ms, and nothing else that costs."""

QUIET = Fleet(
    streams=1, rtt_s=0, turn_s=0, token_s=0, base=FREE, aligned=replace(FREE, step_s=0.001)
)
ANSWERS = Answers(tokens=200, nudged=0.2, words=2)


def found(fleet: Fleet, answers: Answers = ANSWERS) -> Found:
    """For longer where there are few streams, whose spans are drawn."""
    return simulate(fleet, answers, max(2, 60 / fleet.streams))


def test_one_model_alone_writes_a_token_a_step():
    assert found(QUIET).alone == pytest.approx(100, rel=0.01)
    sixteen = replace(QUIET, streams=16)
    assert found(sixteen).alone == pytest.approx(1600, rel=0.01)
    slower = replace(sixteen, base=replace(FREE, row_s=0.01 / 15))
    assert found(slower).alone == pytest.approx(800, rel=0.01)


def test_one_stream_costs_its_steps_and_its_turns():
    """A round of 2 + 8 tokens: 3 steps of the aligned model, 9 of the base model."""
    assert found(QUIET).ratio == pytest.approx(10 / (9 + 0.3), rel=0.06)
    far = replace(QUIET, rtt_s=0.02)  # two turns a round
    assert found(far).nudging == pytest.approx(10 / (0.09 + 0.003 + 0.04), rel=0.06)
    busy = replace(QUIET, turn_s=0.003, token_s=0.0005)
    assert found(busy).nudging == pytest.approx(10 / (0.093 + 0.006 + 2 * 0.0005), rel=0.06)


def test_the_share_of_nudged_tokens_comes_out():
    fleet = replace(QUIET, base=replace(FREE, replicas=1))
    simulation = Simulation(fleet, ANSWERS)
    simulation.run(80, nudging=True)
    base, aligned = simulation.base[0], simulation.aligned[0]
    rounds = simulation.written / 10
    assert aligned.rows == pytest.approx(3 * rounds, rel=0.05)
    assert base.rows == pytest.approx(9 * rounds, rel=0.05)


def test_without_the_plugin_a_turn_waits_for_a_connection_and_steps_are_computed_in_vain():
    far = replace(QUIET, rtt_s=0.02)
    closed = replace(far, plugin=False)
    assert found(closed).nudging == pytest.approx(10 / (0.093 + 0.08), rel=0.06)
    assert found(closed).alone == pytest.approx(found(far).alone, rel=0.01)
    wasted, needed = Simulation(closed, ANSWERS), Simulation(far, ANSWERS)
    for each in (wasted, needed):
        each.run(50, nudging=True)
    assert wasted.base[0].rows / wasted.written > 1.1 * needed.base[0].rows / needed.written


def test_a_turn_waits_for_the_step_that_runs():
    """With many streams a request comes in the midst of a step, and waits half of one."""
    many = replace(QUIET, streams=64)
    assert found(many).ratio < 0.95 * found(QUIET).ratio


def test_a_fleet_grows_by_what_saturates():
    busy = replace(QUIET, streams=64, token_s=0.0005)
    one, two = found(busy), found(replace(busy, orchestrators=2))
    assert one.orchestrators == pytest.approx(1, abs=0.01)
    assert one.nudging < 2000
    assert two.nudging > 1.8 * one.nudging
    wide = replace(QUIET, streams=64, base=replace(FREE, row_s=0.001))
    more = replace(wide, base=replace(wide.base, replicas=4))
    assert found(wide).base > 0.99
    assert found(more).nudging > 2 * found(wide).nudging


def test_the_same_seed_gives_the_same_figures():
    fleet = replace(QUIET, streams=8)
    assert simulate(fleet, ANSWERS, 2) == simulate(fleet, ANSWERS, 2)
    assert simulate(fleet, ANSWERS, 2) != simulate(fleet, ANSWERS, 2, seed=1)
