"""Is a server one that this run can use? By its account of itself, whenever it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sglang_trb.pair.pair import STOP_ID_VARIABLES, Pair
from trainer.config.run import RunConfig
from trainer.data.limits import Limits
from trainer.errors import TrainerError
from trainer.rollouts.client import TrbClient
from trainer.rollouts.teacher import ExpectedTeacher
from trainer.rollouts.teacher_check import check_server


class OtherPair(TrainerError, ValueError):
    """A server hosts another pair than the one that is trained."""


class ContextTooShort(TrainerError, ValueError):
    """A server has no room for the run's prompts and responses."""


class ServerCheck:
    """The check of a run's `servers.ServerPool`.

    Args:
        config: the run.
        pair: as this process read it from the checkpoints.
        note: called with a line for people.

    Attributes:
        accounts: the last account of each server that can be used, by address.
        longest_prompt: tokens of the longest prompt of the run, once that is known; 0 before.
    """

    def __init__(self, config: RunConfig, pair: Pair, note: Callable[[str], None]) -> None:
        self._config, self._pair = config, pair
        self._teacher = ExpectedTeacher(config.models.teacher, note)
        self._limits: dict[str, Limits] = {}
        self.accounts: dict[str, Mapping[str, Any]] = {}
        self.longest_prompt = 0

    def __call__(self, client: TrbClient, info: Mapping[str, Any]) -> None:
        """Look at a server's ``/trb/info``.

        Raises:
            OtherPair, OtherTeacher, BrokenTeacher, ContextTooShort: it is none to use.
            KeyError, TypeError: no account of a blended server.
        """
        self._check_pair(client.url, info)
        self._teacher.check(client.url, info)
        check_server(client.url, info, self._config.server.allow_broken_teacher)
        self._limits[client.url] = limits = Limits.of_info(info)
        self.accounts[client.url] = info
        room = limits.room(self._config.rollouts.max_new_tokens)
        if room < self.longest_prompt:
            raise ContextTooShort(
                f"{client.url}: got room for prompts of {room} tokens beside a response; allowed: at least "
                f"{self.longest_prompt}, of the longest prompt that the run was started with"
            )

    def limits(self) -> Limits:
        """What every server that was looked at takes; of at least one."""
        return Limits.least(self._limits.values())

    def _check_pair(self, url: str, info: Mapping[str, Any]) -> None:
        alignment = self._pair.alignment
        ours = {"student": [*alignment.student_ids], "teacher": [*alignment.teacher_ids]}
        theirs = {side: info["stop_ids"][side] for side in ours}
        if theirs != ours or info["vocab_size"] != self._pair.vocab_size:
            raise OtherPair(
                f"{url}: got stop ids {theirs} and {info['vocab_size']} ids; "
                f"allowed: {ours} and {self._pair.vocab_size}, as models.student and models.teacher have them "
                f"(or as the environment says for both: {', '.join(STOP_ID_VARIABLES)})"
            )
