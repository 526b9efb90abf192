"""Faults in the scheduler's handling of one request, below sglang-trb's own hooks."""

import functools
from collections.abc import Callable


def install() -> None:
    from sglang.srt.constrained.grammar_manager import GrammarManager
    from sglang.srt.managers import schedule_policy
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.schedule_policy import PrefillAdder
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.managers.scheduler_components.batch_result_processor import SchedulerBatchResultProcessor
    from sglang.srt.managers.scheduler_components.logprob_result_processor import SchedulerLogprobResultProcessor
    from sglang.srt.sampling.penaltylib.orchestrator import BatchedPenalizerOrchestrator

    later = lambda req: req.output_ids and len(req.output_ids) > 2  # noqa: E731
    second_chunk = lambda req: req.extend_batch_idx > 0  # noqa: E731

    _raise_in(Req, "__init__", "made", rid=lambda req, rid, *args, **kwargs: rid)
    _raise_in(Scheduler, "init_req_max_new_tokens", "limited", of=lambda scheduler, req: req)
    _raise_in(GrammarManager, "process_req_with_grammar", "grammar", of=lambda manager, req: req)
    _raise_in(schedule_policy, "match_prefix_for_req", "ordered", of=lambda tree, req, *args, **kwargs: req)
    _raise_in(Req, "init_next_round_input", "matched", "matched-chunk", when={"matched-chunk": second_chunk})
    _raise_in(PrefillAdder, "_account_prefill_cache_admission", "admitted", of=lambda adder, req, length: req)
    _raise_in(Req, "get_fill_ids", "tokens", "tokens-chunk", when={"tokens-chunk": second_chunk})
    _raise_in_batch(BatchedPenalizerOrchestrator, "__init__", "parameters", lambda batch: True)
    _raise_in_batch(BatchedPenalizerOrchestrator, "__init__", "built", lambda batch: isinstance(batch, ScheduleBatch))
    _raise_in(Req, "_check_str_based_finish", "stopped", "stopped-later", when={"stopped-later": later})
    _raise_in(
        SchedulerLogprobResultProcessor, "add_logprob_return_values", "logprobs", of=lambda self, i, req, *args: req
    )
    _raise_in(
        SchedulerBatchResultProcessor, "_apply_decode_logprobs", "logprobs-later", of=lambda self, *, req, **k: req
    )
    _raise_in(Req, "init_incremental_detokenize", "streamed", "streamed-later", when={"streamed-later": later})
    _raise_in_trace()


def _raise_in(
    owner: object,
    name: str,
    *places: str,
    of: Callable = lambda req, *args, **kwargs: req,
    rid: Callable | None = None,
    when: dict[str, Callable] | None = None,
) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def faulty(*args, **kwargs):
        own = rid(*args, **kwargs) if rid else of(*args, **kwargs).rid
        for place in places:
            if own == f"fault-{place}" and (not when or place not in when or when[place](of(*args, **kwargs))):
                if name == "_account_prefill_cache_admission":
                    original(*args, **kwargs)
                raise ValueError(f"fault at {place}")
        return original(*args, **kwargs)

    setattr(owner, name, faulty)


def _raise_in_batch(owner: type, name: str, place: str, concerns: Callable) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def faulty(self, vocab_size, batch, *args, **kwargs):
        if concerns(batch) and any(req.rid == f"fault-{place}" for req in batch.reqs):
            raise ValueError(f"fault at {place}")
        return original(self, vocab_size, batch, *args, **kwargs)

    setattr(owner, name, faulty)


def _raise_in_trace() -> None:
    """A statistics row that cannot be kept, and statistics that cannot be closed."""
    import sglang_trb.engine.worker.batch as batch_module
    import sglang_trb.wire.trace as trace_module

    original_trace_of = batch_module.trace_of

    class FaultyTrace(trace_module.Trace):
        place = ""

        def append(self, row_C):
            if self.place == "row" and len(self._rows) == 1:
                raise ValueError("fault at row")
            super().append(row_C)

        def finish(self, *args):
            if self.place == "closed":
                raise ValueError("fault at closed")
            return super().finish(*args)

    def trace_of(req):
        trace = original_trace_of(req)
        if req.rid in ("fault-row", "fault-closed") and not isinstance(trace, FaultyTrace):
            trace.__class__ = FaultyTrace
            trace.place = req.rid.removeprefix("fault-")
        return trace

    batch_module.trace_of = trace_of
