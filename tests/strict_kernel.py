"""Run in the kernel of every tested notebook: wait a little for the cell's threads, so that their errors are seen."""

import threading

from IPython import get_ipython

known = set(threading.enumerate())


def wait_for_new_threads(result):
    """Let the threads that this cell started end, or fail, while its output is still collected."""
    for thread in set(threading.enumerate()) - known:
        if not thread.is_alive():  # another thread is about to start it, so it is not the cell's: the next one waits
            continue
        thread.join(timeout=0.2 if thread.daemon else 5)
        known.add(thread)


get_ipython().events.register("post_run_cell", wait_for_new_threads)
