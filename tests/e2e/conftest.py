import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import harness  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--sluice", default=str(harness.ROOT / "build/release/sluice"), help="program under test")
    parser.addoption("--sluice-planted", default=str(harness.ROOT / "build/release/sluice_planted"),
                     help="the same program, in which --plant-bug and --failpoint work")
    parser.addoption("--chat-render", default=str(harness.ROOT / "build/release/chat_render"),
                     help="program that renders chat templates")


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes minutes; run by scripts/test.sh --full")


@pytest.fixture(scope="session")
def sluice(request):
    path = pathlib.Path(request.config.getoption("--sluice"))
    assert path.exists(), f"{path} is not built"
    assert harness.MODEL.exists(), "run scripts/fetch_model.sh first"
    return path


@pytest.fixture(scope="session")
def sluice_planted(request):
    path = pathlib.Path(request.config.getoption("--sluice-planted"))
    assert path.exists(), f"{path} is not built"
    return path


@pytest.fixture(scope="session")
def shared(sluice):
    """A server that many tests call; none may stop it."""
    server = harness.Server(sluice)
    yield server
    alive = server.process.poll() is None
    log = server.stderr()
    server.stop()
    assert alive, f"the shared server died:\n{log}"


@pytest.fixture
def client(shared):
    return shared.client


@pytest.fixture
def serve(sluice):
    """Starts servers of a test's own."""
    servers = []

    def start(*flags, **options):
        servers.append(harness.Server(options.pop("binary", sluice), *flags, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
