"""Collection against servers that fail in every way a real one cannot be made to fail on demand."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
import types
from collections import Counter

import numpy as np
import pytest
from aiohttp import web

from sglang_trb.wire.packing import pack, unpack
from sglang_trb.wire.params import BlendParams, Return, Rule
from tests.rollout_answers import VERSION, make_answer, make_request
from trainer.rollouts import servers
from trainer.rollouts.client import Refused, TrbClient, session
from trainer.rollouts.collector import CollectionFailed, Collector
from trainer.rollouts.journal import StepJournal, step_path
from trainer.rollouts.rollout import OtherPolicy, RolloutKey
from trainer.rollouts.servers import ServerPool, ServersGone

KEYS = [RolloutKey(0, prompt, sample) for prompt in range(6) for sample in range(2)]
REQUESTS = [make_request(key) for key in KEYS]
OPTIONS = {"max_in_flight": 3, "request_timeout_s": 1.0, "max_attempts": 3}
BY_SEED = {request.seed: request for request in REQUESTS}


@pytest.fixture(autouse=True)
def fast_polls(monkeypatch):
    monkeypatch.setattr(servers, "POLL_SECONDS", 0.02)


class FakeServer:
    """Answers as a blended server would, after the misdeeds that are asked of it.

    Args:
        misdeeds: for the n-th generation request, a function (request, answer) → response; then it behaves.
    """

    def __init__(self, misdeeds=(), version=VERSION):
        self.misdeeds, self.version, self.asked = list(misdeeds), version, Counter()
        self.updates = 0
        self.answer = make_answer

    async def __aenter__(self):
        app = web.Application()
        app.router.add_post("/generate", self.generate)
        app.router.add_get("/trb/info", self.info)
        app.router.add_post("/update_weights_from_disk", self.update)
        app.router.add_post("/flush_cache", self.flush)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        await self.listen(0)
        return self

    async def flush(self, request):
        return web.Response()

    async def listen(self, port):
        self.site = web.TCPSite(self.runner, "127.0.0.1", port)
        await self.site.start()
        self.port = self.site._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def __aexit__(self, *_):
        await self.runner.cleanup()

    async def generate(self, request):
        request = BY_SEED[(await request.json())["sampling_params"]["sampling_seed"]]
        self.asked[request.key] += 1
        answer = self.answer(request)
        answer["meta_info"]["weight_version"] = self.version
        answer["meta_info"]["trb"]["student_weight_version"] = self.version
        if self.misdeeds:
            response = self.misdeeds.pop(0)(request, answer)
            return await response if asyncio.iscoroutine(response) else response
        return web.json_response(answer)

    async def info(self, request):
        return web.json_response({"student_weight_version": self.version, "refusing": None})

    async def update(self, request):
        self.version = (await request.json())["weight_version"]
        self.updates += 1
        return web.json_response({"success": True})


def text(status, body="words"):
    return lambda request, answer: web.Response(status=status, text=body)


def hang(request, answer):
    async def wait():
        await asyncio.sleep(60)

    return wait()


def without_statistics(request, answer):
    del answer["meta_info"]["trb"]
    return web.json_response(answer)


def cut_in_the_middle(request, answer):
    return web.Response(text=json.dumps(answer)[:100])


def other_version(request, answer):
    answer["meta_info"]["trb"]["student_weight_version"] = "run/step-999"
    return web.json_response(answer)


def aborted(request, answer):
    answer["meta_info"]["finish_reason"] = {"type": "abort"}
    return web.json_response(answer)


async def resync(client):
    await client.post("/update_weights_from_disk", {"weight_version": VERSION}, 5)


async def collect(fakes, tmp_path, *, unreachable_s=5.0, resync=resync, notes=None, share=0.1, **options):
    options = OPTIONS | options
    note = (lambda line: None) if notes is None else notes.append
    async with session() as http:
        pool = ServerPool([TrbClient(fake.url, http) for fake in fakes], unreachable_s, note)
        pool.publish(VERSION, resync)
        with StepJournal(step_path(tmp_path, 0)) as journal:
            await Collector(pool, **options, note=note).collect(REQUESTS, journal, share)
            return journal


def run(scenario):
    return asyncio.run(scenario())


def check_complete(journal, *fakes):
    assert [rollout.key for rollout in journal.rollouts()] == KEYS
    assert {key for fake in fakes for key in fake.asked} == set(KEYS)


@pytest.mark.parametrize(
    "misdeed",
    [text(503), text(429), text(500), text(200), cut_in_the_middle, hang, without_statistics, other_version, aborted],
    ids=lambda misdeed: getattr(misdeed, "__name__", "status"),
)
def test_every_rollout_is_collected_once_whatever_happens_to_two_requests(tmp_path, misdeed):
    async def scenario():
        async with FakeServer([misdeed] * 2) as fake:
            journal = await collect([fake], tmp_path)
            check_complete(journal, fake)
            assert fake.asked.total() == len(KEYS) + 2

    run(scenario)


@pytest.mark.parametrize("misdeed", [text(500), text(200), hang, without_statistics, other_version])
def test_a_rollout_that_keeps_failing_stops_the_step_and_loses_nothing(tmp_path, misdeed):
    async def scenario():
        async with FakeServer([misdeed] * 1000) as fake:
            with pytest.raises(CollectionFailed, match=r"RolloutKey.*: failed 3 times, the last time: "):
                await collect([fake], tmp_path, request_timeout_s=0.1)
            fake.misdeeds = []
            check_complete(await collect([fake], tmp_path), fake)

    run(scenario)


def test_finished_rollouts_are_not_drawn_again(tmp_path):
    async def scenario():
        async with FakeServer() as fake:
            await collect([fake], tmp_path)
            await collect([fake], tmp_path)
            assert set(fake.asked.values()) == {1}

    run(scenario)


def of_prompts(prompts, misdeed):
    """Misdo the requests of some prompts, answer the others."""
    return [
        lambda request, answer: misdeed(request, answer) if request.key.prompt in prompts else web.json_response(answer)
    ]


@pytest.mark.parametrize("misdeed", [text(400, "token 0 could not be drawn"), text(500), without_statistics, hang])
def test_one_problem_is_left_out_and_two_stop_the_step(tmp_path, misdeed):
    """Refused, or failing again and again: 2 of 12 rollouts are over the share, but a single prompt ends no run."""

    async def scenario():
        async with FakeServer(of_prompts({3}, misdeed) * 1000) as fake:
            journal = await collect([fake], tmp_path, request_timeout_s=0.1)
            assert [rollout.key for rollout in journal.rollouts()] == [key for key in KEYS if key.prompt != 3]
            assert [refusal.key for refusal in journal.refusals()] == [key for key in KEYS if key.prompt == 3]
            if misdeed is not hang:
                await collect([fake], tmp_path)
                assert fake.asked.total() == 10 + 2 * (1 if "could not" in journal.refusals()[0].reason else 3)
        async with FakeServer(of_prompts({3, 5}, misdeed) * 1000) as fake:
            with pytest.raises(CollectionFailed, match=r"max_refused_share: 0.1\); RolloutKey"):
                await collect([fake], tmp_path / "other", request_timeout_s=0.1)
            with StepJournal(step_path(tmp_path / "other", 0)) as journal:
                assert not journal.refusals(), "they are asked for again, also where the last one was too many"

    run(scenario)


def test_an_evaluation_puts_up_with_any_number(tmp_path):
    async def scenario():
        async with FakeServer([text(400)] * 1000) as fake:
            journal = await collect([fake], tmp_path, share=1.0)
            assert len(journal.refusals()) == len(KEYS) and not journal.rollouts()

    run(scenario)


def test_a_server_that_filters_stops_the_step_at_once(tmp_path):
    """Asked for the student's own law, it answers from a part of it; asking again would not help."""

    def halved(request, answer):
        trb = answer["meta_info"]["trb"]
        trb["behavior_logprob"] = pack(unpack(trb["student_logprob"]) + np.float32(np.log(2)))
        return web.json_response(answer)

    async def scenario():
        blend = BlendParams(Rule.STUDENT, returned=Return.SUPPORT)
        requests = [dataclasses.replace(request, blend=blend) for request in REQUESTS]
        async with FakeServer([halved] * 1000) as fake, session() as http:
            pool = ServerPool([TrbClient(fake.url, http)], 5.0, lambda line: None)
            pool.publish(VERSION, resync)
            fake.answer = lambda request: make_answer(dataclasses.replace(request, blend=blend))
            with StepJournal(step_path(tmp_path, 0)) as journal, pytest.raises(OtherPolicy, match="filtered sampling"):
                await Collector(pool, **OPTIONS).collect(requests, journal, 0.1)

    run(scenario)


def test_refused_rollouts_are_asked_for_again_once_the_step_is_tried_again(tmp_path):
    async def scenario():
        async with FakeServer([text(400, "prompt too long")] * 3) as fake:
            with pytest.raises(CollectionFailed, match="were refused"):
                await collect([fake], tmp_path)
            fake.misdeeds = []
            check_complete(await collect([fake], tmp_path), fake)

    run(scenario)


def test_more_in_the_journal_than_is_wanted_does_not_hinder(tmp_path):
    """An evaluation with fewer samples than the one before, which was stopped in the middle."""

    async def scenario():
        async with FakeServer() as fake, session() as http:
            pool = ServerPool([TrbClient(fake.url, http)], 5.0, lambda line: None)
            pool.publish(VERSION, resync)
            with StepJournal(step_path(tmp_path, 0)) as journal:
                await Collector(pool, **OPTIONS).collect(REQUESTS[2:], journal, 0.1)
                await asyncio.wait_for(Collector(pool, **OPTIONS).collect(REQUESTS[:3], journal, 0.1), 5)
                check_complete(journal, fake)

    run(scenario)


def test_a_server_with_other_weights_is_updated_before_its_first_rollout(tmp_path):
    async def scenario():
        async with FakeServer(version="run/step-7") as fake:
            check_complete(await collect([fake], tmp_path), fake)
            assert fake.updates == 1 and set(fake.asked.values()) == {1}

    run(scenario)


def test_a_server_that_does_not_take_the_update_gets_no_rollout(tmp_path):
    async def nothing(client):
        pass

    async def scenario():
        async with FakeServer(version="run/step-7") as fake:
            with pytest.raises(ServersGone, match="does not serve it"):
                await collect([fake], tmp_path, unreachable_s=0.1, resync=nothing)
            assert not fake.asked

    run(scenario)


def test_an_update_that_is_refused_stops_at_once(tmp_path):
    async def forbidden(client):
        raise Refused("403: admin key")

    async def scenario():
        async with FakeServer(version="run/step-7") as fake:
            with pytest.raises(Refused, match="admin key"):
                await collect([fake], tmp_path, resync=forbidden)

    run(scenario)


def test_a_server_that_dies_is_noticed_waited_for_and_updated(tmp_path):
    async def scenario():
        notes = []
        async with FakeServer() as fake:

            async def die(request, answer):
                await fake.site.stop()
                fake.version = "run/step-0-of-the-checkpoint"
                asyncio.get_running_loop().call_later(0.3, lambda: asyncio.ensure_future(fake.listen(fake.port)))
                return web.Response(status=503)

            fake.misdeeds = [die]
            journal = await collect([fake], tmp_path, notes=notes)
            check_complete(journal, fake)
            assert fake.updates == 1
            assert any("is back" in note for note in notes)

    run(scenario)


def test_one_server_does_the_work_of_a_dead_one(tmp_path):
    async def scenario():
        async with FakeServer() as alive, FakeServer() as dead:
            await dead.site.stop()
            check_complete(await collect([alive, dead], tmp_path, unreachable_s=0.05), alive)

    run(scenario)


def test_without_any_server_it_says_so(tmp_path):
    async def scenario():
        async with FakeServer() as dead:
            await dead.site.stop()
            with pytest.raises(ServersGone, match=r"127\.0\.0\.1"):
                await collect([dead, dead], tmp_path, unreachable_s=0.1)

    run(scenario)


def test_a_dead_server_does_not_hold_up_the_others(tmp_path):
    async def scenario():
        async with FakeServer() as fake, session() as http:
            clients = [TrbClient(url, http) for url in ("http://127.0.0.1:9", fake.url)]
            pool = ServerPool(clients, 60.0, lambda line: None)
            for version in ("run/step-1", VERSION):
                pool.publish(version, lambda client, v=version: client.post("/update_weights_from_disk", body(v), 5))
                started = time.monotonic()
                await pool.all_ready()
                assert time.monotonic() - started < 5
                assert [pool.is_ready(client) for client in clients] == [False, True]

    run(scenario)


def body(version):
    return {"weight_version": version}


def test_waiting_for_the_only_server_ends_when_it_should(tmp_path):
    """However many requests wait for it."""

    async def scenario():
        async with FakeServer() as fake:
            url = fake.url
        gone = types.SimpleNamespace(url=url)
        started = time.monotonic()
        with pytest.raises(ServersGone):
            await collect([gone], tmp_path, unreachable_s=0.5, max_in_flight=50)
        assert time.monotonic() - started < 5

    run(scenario)


def test_a_server_that_is_not_one_to_use_stops_at_once(tmp_path):
    def check(client, info):
        raise RuntimeError("another pair")

    async def scenario():
        async with FakeServer() as fake, session() as http:
            pool = ServerPool([TrbClient(fake.url, http)], 5.0, lambda line: None, check=check)
            pool.publish(VERSION, resync)
            with pytest.raises(RuntimeError, match="another pair"):
                await pool.all_ready()

    run(scenario)


def test_work_is_shared_and_its_amount_is_bounded(tmp_path):
    async def scenario():
        async with FakeServer() as first, FakeServer() as second:
            most = Counter()

            def slow(fake):
                async def answer(request, answer):
                    under_way[fake] += 1
                    most[fake] = max(most[fake], under_way[fake])
                    await asyncio.sleep(0.02)
                    under_way[fake] -= 1
                    return web.json_response(answer)

                return answer

            under_way = Counter()
            for fake in (first, second):
                fake.misdeeds = [slow(fake)] * len(KEYS)
            check_complete(await collect([first, second], tmp_path, max_in_flight=2), first, second)
            assert set(most.values()) == {2} and first.asked and second.asked

    run(scenario)


def test_a_full_disk_stops_the_step(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    async def scenario():
        async with FakeServer() as fake:
            with monkeypatch.context() as patch:
                patch.setattr(StepJournal, "append", lambda self, entry: full(None))
                with pytest.raises(OSError, match="No space"):
                    await collect([fake], tmp_path)
            check_complete(await collect([fake], tmp_path), fake)

    run(scenario)


def test_stopping_in_the_middle_keeps_what_was_finished(tmp_path):
    async def scenario():
        async with FakeServer([*[lambda request, answer: web.json_response(answer)] * 5, *[hang] * 50]) as fake:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await collect([fake], tmp_path, request_timeout_s=30)
            with StepJournal(step_path(tmp_path, 0)) as journal:
                assert len(journal.rollouts()) == 5

    run(scenario)
