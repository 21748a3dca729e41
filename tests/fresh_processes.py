"""Python code in a new process, as somebody could start it, which does not load torch and transformers once more.

    printed = run_fresh("import salvage_hf; print(salvage_hf.__version__)", tmp_path, HF_HUB_OFFLINE="1")

Loading these two takes several seconds. A server loads them once per process of tests, and each new process is its
fork. The server has loaded neither this library nor evaluate or datasets, so that a test sees what their import does.
Processes that share nothing are started by `make package` (tests/check_installation.py) and by `accelerate launch`
in tests/training/test_launching.py.
"""

import functools
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

#: What reads the environment when it is imported: the Hub's address, and the folders of the caches.
READ_THE_ENVIRONMENT = ("huggingface_hub.constants", "transformers.utils.hub")
SECONDS = 300


def run_fresh(code: str, folder: str | Path, **environment: str) -> str:
    """What Python code prints in a new process, which works in a folder and has more environment variables.

    Raises:
        AssertionError: where the process fails or takes five minutes, with the end of what it wrote to stderr.
    """
    with tempfile.TemporaryDirectory() as outputs:
        printed, errors = Path(outputs, "stdout"), Path(outputs, "stderr")
        errors.touch()  # is read, too, where the server has ended
        request = {
            "code": textwrap.dedent(code),
            "folder": str(folder),
            "environment": {**os.environ, "OMP_NUM_THREADS": "1", **environment},
            "outputs": [str(printed), str(errors)],
        }
        server = _server()
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = server.stdout.readline()
        assert status == "0\n", f"exit status {status}{errors.read_text()[-4000:]}"
        return printed.read_text()


@functools.cache
def _server() -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _serve() -> dict | None:
    """Forks per line of stdin. In such a fork it returns what is asked, and in the server, at the end, None."""
    import torch
    import transformers.modeling_utils
    import transformers.models.auto
    import transformers.pipelines  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()  # collections would copy the memory that the forks share
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


def _work(request: dict) -> None:
    signal.alarm(SECONDS)
    for number, file in enumerate([os.devnull, *request["outputs"]]):
        descriptor = os.open(file, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _read_the_environment_again()
    sys.argv, sys.path[0] = ["-c"], ""  # as those of `python -c`
    exec(compile(request["code"], "<fresh>", "exec"), {"__name__": "__main__"})  # noqa: S102 -- code of tests


def _read_the_environment_again() -> None:
    """Gives constants the values of the new environment, also in modules that have imported them by name."""
    changed = {}
    for name in READ_THE_ENVIRONMENT:
        module = sys.modules[name]
        before = {key: value for key, value in vars(module).items() if key.isupper()}
        importlib.reload(module)
        changed |= {key: (value, vars(module)[key]) for key, value in before.items() if vars(module)[key] != value}
    for module in list(sys.modules.values()):
        for key, (before, after) in changed.items():
            if vars(module).get(key) == before:
                setattr(module, key, after)


if __name__ == "__main__" and (asked := _serve()):
    _work(asked)
