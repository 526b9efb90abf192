"""Which prompts a run has, in which order: settled before its first step, the same whenever it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from trainer.config.run import RunConfig
from trainer.data.limits import Limits
from trainer.data.problems import Problem
from trainer.data.prompts import PromptStream, Renderer
from trainer.data.record import DataRecord, digest, read_data_record, write_data_record
from trainer.evaluation.benchmarks import RenderedBenchmark
from trainer.run.folder import is_begun


def lay_out_prompts(
    config: RunConfig,
    problems: Sequence[Problem],
    render: Renderer,
    benchmarks: Mapping[str, RenderedBenchmark],
    ask_limits: Callable[[], Limits],
    note: Callable[[str], None],
) -> PromptStream:
    """Leave out what does not fit, compare the rest with the run's record of its data, and keep that record.

    Args:
        config: of the run.
        problems: for training.
        render: question to token ids.
        benchmarks: by name.
        ask_limits: asks the servers; for a new run only, the others have it in their record.
        note: called with a line for people for all that is left out.

    Raises:
        OtherData: a run that goes on has other data than it was started with.
        UnusablePrompts, TooLong: nothing is left that the servers' context has room for.
    """
    folder, begun = config.run_folder, is_begun(config.run_folder)
    before = read_data_record(folder) if begun else None
    if begun and before is None:
        note(f"{folder} does not say which data the run was started with: what is there now is taken for it")
    limits = ask_limits() if not begun else before.limits if before is not None else None
    stream = PromptStream(
        problems,
        render,
        max_prompt_tokens=config.data.max_prompt_tokens,
        per_step=config.rollouts.prompts_per_step,
        first=config.data.first_prompt,
        seed=config.seed if config.data.shuffle else None,
        room=None if limits is None else limits.room(config.rollouts.max_new_tokens),
    )
    for reason, count in stream.left_out.items():
        note(f"data: {count} of {len(problems)} prompts are left out: {reason}")
    if limits is not None and not begun:
        for benchmark in benchmarks.values():
            benchmark.say_too_long(limits.room(config.evaluation.max_new_tokens), note)
    prompts = tuple(digest(problems[i].question, problems[i].answer, token_ids) for i, token_ids in stream.usable)
    now = DataRecord(limits, prompts, {name: benchmark.data() for name, benchmark in benchmarks.items()})
    write_data_record(folder, now if before is None else before.continued_by(now))
    return stream
