"""The catalogue of bad requests and hostile transports (catalogue.py), a test a case."""

import catalogue
import pytest


@pytest.fixture(scope="module")
def world(sluice):
    world = catalogue.World(sluice)
    yield world
    world.stop()


@pytest.mark.parametrize("name", sorted(catalogue.CASES))
def test_case(world, name):
    catalogue.run(world, name)


def test_every_case_of_the_catalogue_has_a_place():
    numbers = [f"R{number:02}" for number in range(1, 91)] + [f"H{number:02}" for number in range(1, 19)]
    assert sorted(catalogue.CASES.keys() | catalogue.ELSEWHERE.keys()) == sorted(numbers)
    assert not catalogue.CASES.keys() & catalogue.ELSEWHERE.keys()


@pytest.mark.long
def test_full_counts(sluice):
    world = catalogue.World(sluice, long=True)
    try:
        for name in sorted(name for name, (_, counts) in catalogue.CASES.items() if counts):
            catalogue.run(world, name)
    finally:
        world.stop()
