"""Which ids end an answer, for each model, and the alignment built from them: App. D; docs/methods.md, "Stop-id
alignment".

E_M, the stop ids of model M, comes from the first of: an explicit override; ``eos_token_id`` of
``generation_config.json``; ``eos_token_id`` of ``config.json`` (its ``text_config`` before the top level); the
tokenizer's ``eos_token``. The primary one is ``config.json``'s eos where that is a single id of the set, since
``generation_config.json`` may list further stop ids in any order; else the first in the order given.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sglang_trb.checkpoints.folder import checkpoint_file, read_json, text_config
from sglang_trb.errors import InvalidParameter
from sglang_trb.pair.alignment import StopAlignment


def stop_ids(checkpoint: str | Path, override: Sequence[int] | None = None) -> tuple[int, ...]:
    """E_M, primary id first, without duplicates.

    Args:
        checkpoint: a checkpoint folder or a Hugging Face id.
        override: stop ids to use instead of the checkpoint's; the first one is the primary id.

    Raises:
        InvalidParameter: no stop id at all, or one that is not an integer >= 0.
    """
    if override is not None:
        return _checked("override of the stop ids", override)
    config = read_json(checkpoint, "config.json") or {}
    config_eos = _as_list(text_config(config).get("eos_token_id"))
    generation_eos = _as_list((read_json(checkpoint, "generation_config.json") or {}).get("eos_token_id"))
    ids = generation_eos or config_eos or _tokenizer_eos(checkpoint)
    if len(config_eos) == 1 and config_eos[0] in ids:
        ids = [config_eos[0], *ids]
    return _checked(f"stop ids of {str(checkpoint)!r}", ids)


def stop_alignment(
    student: str | Path,
    teacher: str | Path,
    vocabulary_size: int,
    *,
    student_override: Sequence[int] | None = None,
    teacher_override: Sequence[int] | None = None,
) -> StopAlignment:
    """The pair's stop-id alignment: both sets of stop ids, and the student's primary id, where e_* lives.

    Args:
        student, teacher: checkpoint folders or Hugging Face ids.
        vocabulary_size: `SharedVocabulary.size`; ids from there on are masked, so none of them may be a stop id.
        student_override, teacher_override: as in `stop_ids`.

    Raises:
        InvalidParameter: a model without a stop id, or with one outside the shared vocabulary.
    """
    ours, theirs = stop_ids(student, student_override), stop_ids(teacher, teacher_override)
    for side, ids in (("student", ours), ("teacher", theirs)):
        outside = [i for i in ids if i >= vocabulary_size]
        if outside:
            raise InvalidParameter(
                f"stop ids of the {side}", outside, f"ids of the shared vocabulary, 0..{vocabulary_size - 1}"
            )
    return StopAlignment(student_ids=ours, teacher_ids=theirs, canonical_id=ours[0])


def _as_list(value: int | Sequence[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _checked(field: str, ids: Sequence[int]) -> tuple[int, ...]:
    valid = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)
    if not ids or not valid:
        raise InvalidParameter(field, list(ids), "at least one id, each an integer >= 0")
    return tuple(dict.fromkeys(ids))


def _tokenizer_eos(checkpoint: str | Path) -> list[int]:
    """The id of the tokenizer's ``eos_token``, an added token; empty when there is none."""
    token = (read_json(checkpoint, "tokenizer_config.json") or {}).get("eos_token")
    content = token["content"] if isinstance(token, dict) else token
    path = checkpoint_file(checkpoint, "tokenizer.json")
    if content is None or path is None:
        return []
    spec = json.loads(path.read_text(encoding="utf-8"))
    return [added["id"] for added in spec.get("added_tokens") or () if added["content"] == content]
