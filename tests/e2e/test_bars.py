"""The bars of bars.py with short counts, a test each: what must hold on any machine, no figure of time or memory."""

import bars
import chaos
import pytest


@pytest.fixture(scope="module")
def world(sluice, sluice_planted):
    world = bars.World(sluice, sluice_planted)
    world.judged = False
    yield world
    world.stop()


# B07 and B27 load the server for so many seconds that they are of the long runs.
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long) if long or name in ("B07", "B27") else name
                                  for name, (_, _, long) in bars.CASES.items()])
def test_bar(world, name):
    print(chaos.run(world, name, bars.CASES))


def test_the_classifiers_measure():
    from neighbours import area
    assert area([1, 2, 3], [4, 5]) == 1 and area([4, 5], [1, 2, 3]) == 0
    assert area([1, 2], [1, 2]) == area([3, 3, 3], [3, 3]) == 0.5
