"""The servers' student: the one that is trained, after so many updates."""

from __future__ import annotations

from functools import partial

from trainer.learner.learner import Learner
from trainer.learner.processes import Processes
from trainer.run.leader import Leader
from trainer.run.phases import Phases


class WeightSync:
    """Publishes the learner's weights to the servers; every process calls every method.

    Args:
        learner: whose weights they are.
        processes: of the run.
        leader: on the process that leads, None elsewhere.
        phases: of the run.
    """

    def __init__(self, learner: Learner, processes: Processes, leader: Leader | None, phases: Phases) -> None:
        self._learner, self._processes, self._leader, self._phases = learner, processes, leader, phases
        self._published: int | None = None

    def publish(self, step: int, *, beside: bool = False) -> None:
        """Make the servers hold the student after ``step`` updates, which is the learner's now.

        Args:
            beside: do so in `Leader.beside`, after what is under way there; else wait for that, and do it now.

        Raises:
            ServersGone, Refused, OtherPair, ...: no server takes it, or one says that it is none of this run's.
        """
        if self._published == step:
            return
        with self._phases("push"):
            weights = self._learner.weights()
            with self._processes.together():
                if self._leader is not None:
                    assert weights is not None
                    push = partial(self._leader.servers.publish, weights, self._leader.weight_version(step))
                    if beside:
                        self._leader.beside.submit(push)
                    else:
                        self._leader.beside.finish()
                        push()
        self._published = step
