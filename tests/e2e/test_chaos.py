"""The faults of chaos.py, a test a case."""

import chaos
import pytest


@pytest.fixture(scope="module")
def world(sluice, sluice_planted):
    world = chaos.World(sluice, sluice_planted)
    yield world
    world.stop()


def marked(name):
    return pytest.param(name, marks=pytest.mark.long) if chaos.CASES[name][2] else name


def run(world, name):
    try:
        print(chaos.run(world, name))
    except chaos.LeftOut as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", [marked(name) for name in chaos.CASES])
def test_case(world, name):
    run(world, name)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, (_, counts, _) in chaos.CASES.items() if counts])
def test_full_counts(sluice, sluice_planted, name):
    world = chaos.World(sluice, sluice_planted, long=True)
    try:
        run(world, name)
    finally:
        world.stop()


def test_every_fault_of_the_matrix_has_a_place():
    numbers = {f"C{number:02}" for number in range(1, 27)}
    mine = {name.split()[0] for name in chaos.CASES if name.startswith("C")}
    assert mine | chaos.ELSEWHERE.keys() == numbers and not mine & chaos.ELSEWHERE.keys()
