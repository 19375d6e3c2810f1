"""Options and fixtures of tests that run the program. The conftest.py of each folder of such tests takes them all."""

import contextlib
import pathlib

import harness
import pytest
from certificates import Issuer
from credentials import ADMIN, TENANT, entry, write_tokens


PROGRAMS = {"--sluice": ("sluice", "program under test"),
            "--sluice-planted": ("sluice_planted", "the same program, in which --plant-bug and --failpoint work"),
            "--chat-render": ("chat_render", "program that renders chat templates")}


def pytest_addoption(parser):
    for option, (program, meaning) in PROGRAMS.items():
        # Folders may be run together: the first to come adds it.
        with contextlib.suppress(ValueError):
            parser.addoption(option, default=str(harness.ROOT / "build/release" / program), help=meaning)


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


@pytest.fixture
def files(tmp_path):
    """A file of credentials: the token of a tenant, that of an administrator, the certificate of a client."""
    return write_tokens(tmp_path / "auth.json", entry(TENANT), entry(ADMIN, "ops", "admin"),
                        certificates=[{"san": "spiffe://tests/acme", "tenant": "acme", "scopes": ["inference"]}])


@pytest.fixture
def issuer():
    return Issuer()


@pytest.fixture
def pair(tmp_path, issuer):
    """Paths of a certificate for localhost and its key."""
    paths = tmp_path / "server.pem", tmp_path / "server.key"
    for path, content in zip(paths, issuer.issue("localhost")):
        path.write_bytes(content)
    return paths
