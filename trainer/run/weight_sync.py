"""The servers' student: the one that is trained, after so many updates."""

from __future__ import annotations

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

    def publish(self, step: int) -> None:
        """Make the servers hold the student after ``step`` updates, which is the learner's now.

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
                    self._leader.servers.publish(weights, self._leader.weight_version(step))
        self._published = step
