"""What is done beside the training: in order, one at a time, and ended when the training ends."""

import threading
import time

import pytest

from trainer.run.beside import Beside


def test_one_at_a_time_in_order():
    done, running = [], threading.Semaphore(1)

    def work(number):
        assert running.acquire(blocking=False), "another was under way"
        time.sleep(0.01 * (3 - number))
        done.append(number)
        running.release()
        return number

    with Beside(lambda: None) as beside:
        futures = [beside.submit(lambda number=number: work(number)) for number in range(3)]
        beside.finish()
        assert done == [0, 1, 2] == [future.result() for future in futures]


def test_nothing_is_done_after_a_failure():
    def fail():
        raise OSError("the disk is full")

    with Beside(lambda: None) as beside:
        failed = beside.submit(fail)
        after = beside.submit(lambda: pytest.fail("done all the same"))
        for wait in (failed.result, after.result, beside.finish):
            with pytest.raises(OSError, match="the disk is full"):
                wait()


def test_leaving_ends_what_is_under_way_and_drops_the_rest():
    ended, cancelled, begun = threading.Event(), threading.Event(), []

    def until_cancelled():
        begun.append("first")
        assert cancelled.wait(10)
        ended.set()

    with Beside(cancelled.set) as beside:
        beside.submit(until_cancelled)
        dropped = beside.submit(lambda: begun.append("second"))
        while not begun:
            time.sleep(0.001)
    assert ended.is_set() and dropped.cancelled() and begun == ["first"]


def test_a_cancellation_that_comes_too_early_is_repeated():
    """Between two things there is nothing to cancel yet."""
    calls, cancelled = [], threading.Event()

    def cancel():
        calls.append(time.monotonic())
        if len(calls) > 2:
            cancelled.set()

    beside = Beside(cancel)
    beside.submit(lambda: cancelled.wait(10))
    time.sleep(0.05)
    beside.stop()
    assert len(calls) == 3
