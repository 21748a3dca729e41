"""What holds for every process of tests: it reaches this machine only. What tests share is in shared_fixtures.py."""

import os
import runpy
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach the real Hub; local_hub switches this off again
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

NO_NETWORK = Path(__file__).parent / "no_network"
runpy.run_path(str(NO_NETWORK / "sitecustomize.py"))  # for this process; the next line is for those that tests start
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(NO_NETWORK), os.environ.get("PYTHONPATH")]))


def pytest_addoption(parser):
    parser.addoption("--write-table", action="store_true", help="write the tables of the pages in docs/ anew")


def pytest_configure(config):
    """Loads shared_fixtures.py, but not in a process that only hands out tests to others, because it takes seconds."""
    hands_out = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    if not hands_out:
        config.pluginmanager.import_plugin("shared_fixtures")


@pytest.fixture(scope="session", autouse=True)
def network_log(tmp_path_factory):
    """The file in which no_network/sitecustomize.py writes down what it refused."""
    log = tmp_path_factory.mktemp("network") / "refused.txt"
    os.environ["SALVAGE_NETWORK_LOG"] = str(log)
    return log


@pytest.fixture(autouse=True)
def no_network(network_log):
    """Fails a test that asked for the network, also where a library or another process swallowed the refusal."""
    yield
    if network_log.exists():
        refused = network_log.read_text()
        network_log.unlink()
        pytest.fail(refused)
