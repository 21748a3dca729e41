"""Functions that run in forked processes, which do not import again."""

import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable

from tqdm import tqdm


class Forked:
    """A function that runs in a forked process without output, with more variables in its environment."""

    def __init__(self, run: Callable[[], object], **environment: str):
        self.receive, self.send = multiprocessing.Pipe(duplex=False)
        self.run, self.environment = run, environment
        self.process = multiprocessing.get_context("fork").Process(target=self._work)
        self.process.start()

    def _work(self):
        # pytest's are files, for which a disk may be full.
        sys.stdout = sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        for number in (1, 2):  # what libraries in C++ print
            os.dup2(sys.stdout.fileno(), number)
        os.environ.update(self.environment)
        # tqdm's lock is shared with forks: one that is killed while it holds it would stop all others for ever.
        tqdm.set_lock(threading.RLock())
        try:
            self.send.send(self.run())
        except Exception as error:
            self.send.send(f"{type(error).__name__}: {error}")
            sys.exit(1)

    def result(self, timeout: float = 300) -> tuple[int | None, object]:
        """Exit status (negative for a signal, None where it still runs), and what it returned or which error it had."""
        self.process.join(timeout)
        return self.process.exitcode, self.receive.recv() if self.receive.poll() else None

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def fill_disk() -> None:
    """From now on, a file that this process writes ends after 50 bytes with an error, as on a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
