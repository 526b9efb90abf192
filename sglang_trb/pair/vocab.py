"""Are student and teacher logits indexed by the same tokens?

Compared: the bytes behind every id, the merges (or Unigram scores), the pre-tokeniser and the normaliser. Not compared:
what neither changes the meaning of a text token nor the way text is cut, i.e. the roles of special tokens (eos, pad,
bos), which added tokens exist, how ids that are added tokens on both sides are named, and chat templates. So a base
model and a post-trained one of the same family pass: the files of Qwen3-*-Base and Qwen3-* both define ids 0..151668,
`<think>` included, and differ in the eos role and the template alone.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sglang_trb.checkpoints.folder import checkpoint_file, read_json, text_config
from sglang_trb.errors import InvalidParameter, PairMismatch

VOCABULARY_FILES = ("vocab.json", "tokenizer.model", "vocab.txt", "spiece.model")  # besides tokenizer.json
SHOWN = 3  # differences that a message spells out; it always gives the number of all
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclasses.dataclass(frozen=True, slots=True)
class SharedVocabulary:
    """The ids on which the two models can be blended.

    Attributes:
        size: ids 0..size-1 are valid: those that the *student's* tokenizer defines, because it serves the pair. Ids
            from ``size`` on (padding of the embedding matrices, tokens only the teacher has) are masked in both.
        student_only: valid added ids without a token in the teacher's tokenizer; its logits there are untrained.
        teacher_only: added ids of the teacher without a token in the student's tokenizer.
        renamed: ids that are added tokens on both sides under different names.
    """

    size: int
    student_only: tuple[int, ...] = ()
    teacher_only: tuple[int, ...] = ()
    renamed: tuple[int, ...] = ()


def check_same_vocabulary(student: str | Path, teacher: str | Path) -> SharedVocabulary:
    """Compare two checkpoints' tokenizers; see the module's docstring for what counts.

    Args:
        student, teacher: checkpoint folders or Hugging Face ids.

    Returns:
        The valid ids, with what differs in the added tokens (allowed, worth a line in the log).

    Raises:
        PairMismatch: the tokenizers differ, or the teacher's output has no row for an id of the student; the message
            lists every difference.
        InvalidParameter: a checkpoint cannot be found, or has no tokenizer that can be compared.
    """
    ours, theirs = _Tokenizer.load(student), _Tokenizer.load(teacher)
    shared = _shared(ours, theirs)
    rows_student, rows_teacher = _output_rows(student), _output_rows(teacher)
    size = shared.size if rows_student is None else min(shared.size, rows_student)
    problems = list(_differences(ours, theirs))
    if rows_teacher is not None and rows_teacher < size:
        problems.append(
            f"the teacher's output has {rows_teacher} rows, the student's tokenizer defines ids to {size - 1}"
        )
    if problems:
        raise PairMismatch(
            f"student {str(student)!r} and teacher {str(teacher)!r} do not share a vocabulary: " + "; ".join(problems)
        )
    return dataclasses.replace(shared, size=size)


@dataclasses.dataclass(frozen=True, slots=True)
class _Tokenizer:
    """What is compared of one tokenizer. ``added`` holds the added tokens, ``ordinary`` all others."""

    ordinary: dict[int, bytes]
    added: dict[int, bytes]
    model: str
    merges: list[tuple[str, ...]]
    scores: list[float]
    pre_tokenizer: Any
    normalizer: Any

    @classmethod
    def load(cls, checkpoint: str | Path) -> _Tokenizer:
        spec = _tokenizer_json(checkpoint)
        model, parts = spec["model"], _canonical_parts(spec)
        added = {token["id"]: token["content"] for token in spec.get("added_tokens") or ()}
        config = read_json(checkpoint, "tokenizer_config.json") or {}
        added |= {int(i): token["content"] for i, token in (config.get("added_tokens_decoder") or {}).items()}
        unigram = isinstance(model["vocab"], list)
        pieces = enumerate(p for p, _ in model["vocab"]) if unigram else ((i, p) for p, i in model["vocab"].items())
        to_bytes = _byte_level if '"ByteLevel"' in json.dumps([parts["pre_tokenizer"], spec.get("decoder")]) else _plain
        return cls(
            # llama.cpp calls the padding rows of a GGUF file "[PAD<id>]"; they are no tokens.
            ordinary={i: to_bytes(p) for i, p in pieces if i not in added and p != f"[PAD{i}]"},
            added={i: content.encode() for i, content in added.items()},
            model=model.get("type") or "BPE",
            merges=[tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model.get("merges") or ()],
            scores=[score for _, score in model["vocab"]] if unigram else [],
            pre_tokenizer=parts["pre_tokenizer"],
            normalizer=parts["normalizer"],
        )

    def defined(self) -> set[int]:
        return self.ordinary.keys() | self.added.keys()


def _tokenizer_json(checkpoint: str | Path) -> dict[str, Any]:
    path = checkpoint_file(checkpoint, "tokenizer.json")
    if path is not None:
        return json.loads(path.read_text(encoding="utf-8"))
    # Without one of these transformers invents an empty tokenizer, and two of those would be equal.
    if not any(checkpoint_file(checkpoint, name) for name in VOCABULARY_FILES):
        raise InvalidParameter("checkpoint", str(checkpoint), "one with a tokenizer.json or another vocabulary file")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(checkpoint))
        return json.loads(tokenizer.backend_tokenizer.to_str())
    except (AttributeError, OSError, ValueError) as error:  # AttributeError: a tokenizer in Python has no backend
        allowed = f"one with a tokenizer.json, or files that transformers can turn into one ({error})"
        raise InvalidParameter("checkpoint", str(checkpoint), allowed) from error


def _output_rows(checkpoint: str | Path) -> int | None:
    config = read_json(checkpoint, "config.json")
    return None if config is None else text_config(config).get("vocab_size")


def _byte_level_alphabet() -> dict[int, int]:
    """GPT-2's printable stand-ins: code point in a token → byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {256 + n: byte for n, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


def _byte_level(piece: str) -> bytes:
    try:
        return piece.translate(_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:  # a piece outside the alphabet stands for itself
        return piece.encode()


def _plain(piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


def _canonical_parts(spec: dict[str, Any]) -> dict[str, Any]:
    """Pre-tokeniser and normaliser with defaults filled in, so that files of different versions compare equal."""
    from tokenizers import Tokenizer

    empty = {"type": "BPE", "vocab": {}, "merges": []}
    small: dict[str, Any] = {"version": "1.0", "added_tokens": [], "model": empty, "post_processor": None}
    small |= {"decoder": None, "truncation": None, "padding": None}
    small |= {part: spec.get(part) for part in ("pre_tokenizer", "normalizer")}
    filled = json.loads(Tokenizer.from_str(json.dumps(small)).to_str())
    return {part: _simplified(filled[part]) for part in ("pre_tokenizer", "normalizer")}


def _simplified(part: dict[str, Any] | None) -> Any:
    """Sequences of none or one unpacked; offsets dropped, they do not change how text is cut."""
    if part is None:
        return None
    inner = part.get("pretokenizers", part.get("normalizers"))
    if part["type"] != "Sequence" or inner is None:
        return {key: value for key, value in part.items() if key != "trim_offsets"}
    steps = [step for step in map(_simplified, inner) if step is not None]
    return steps if len(steps) > 1 else steps[0] if steps else None


def _shared(ours: _Tokenizer, theirs: _Tokenizer) -> SharedVocabulary:
    mine, other = ours.defined(), theirs.defined()
    both_added = ours.added.keys() & theirs.added.keys()
    return SharedVocabulary(
        size=max(mine) + 1,
        student_only=tuple(sorted(ours.added.keys() - other)),
        teacher_only=tuple(sorted(theirs.added.keys() - mine)),
        renamed=tuple(sorted(i for i in both_added if ours.added[i] != theirs.added[i])),
    )


def _differences(ours: _Tokenizer, theirs: _Tokenizer) -> Iterator[str]:
    if ours.model != theirs.model:
        yield f"tokenizer models: {ours.model} (student), {theirs.model} (teacher)"
    yield from _id_differences(ours, theirs)
    yield from _list_difference("merges", ours.merges, theirs.merges)
    yield from _list_difference("piece scores", ours.scores, theirs.scores)
    for part, name in (("pre_tokenizer", "pre-tokenisers"), ("normalizer", "normalisers")):
        mine, other = getattr(ours, part), getattr(theirs, part)
        if mine != other:
            yield f"{name} differ: {json.dumps(mine)} (student), {json.dumps(other)} (teacher)"


def _id_differences(ours: _Tokenizer, theirs: _Tokenizer) -> Iterator[str]:
    """An id that is ordinary on one side at least must stand for the same bytes on both."""
    if ours.ordinary == theirs.ordinary:
        return
    mine, other = ours.ordinary | ours.added, theirs.ordinary | theirs.added
    differing = sorted(i for i in ours.ordinary.keys() | theirs.ordinary.keys() if mine.get(i) != other.get(i))
    if not differing:
        return
    shown = ", ".join(f"id {i}: {mine.get(i)!r} (student), {other.get(i)!r} (teacher)" for i in differing[:SHOWN])
    yield f"{len(differing)} ids stand for different bytes (None: no such token): {shown}{_more(len(differing))}"


def _list_difference(name: str, mine: list, other: list) -> Iterator[str]:
    if mine == other:
        return
    if len(mine) != len(other):
        yield f"number of {name}: {len(mine)} (student), {len(other)} (teacher)"
    differing = [n for n, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b]
    if differing:
        shown = ", ".join(f"#{n}: {mine[n]} (student), {other[n]} (teacher)" for n in differing[:SHOWN])
        yield f"{len(differing)} {name} differ: {shown}{_more(len(differing))}"


def _more(count: int) -> str:
    return ", …" if count > SHOWN else ""
