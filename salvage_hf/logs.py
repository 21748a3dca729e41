"""What a run tells its user through the library's log."""

import logging


def show_log(is_main_process: bool = True) -> None:
    """Shows the library's log on standard error: the main process' from INFO on, of the others errors alone.

    Handlers that the program has set up already stay as they are.
    """
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("salvage_hf").setLevel(logging.INFO if is_main_process else logging.ERROR)
