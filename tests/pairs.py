"""Tiny student-teacher pairs with Qwen3's architecture, for tests on a CPU.

``build_pair("plain")`` returns two checkpoint folders that transformers and SGLang load like any other. Weights are
random but not featureless: both models start from the same embedding-to-output signal and their layers disturb it
differently, so next-token laws are peaked and KL(student‖teacher) is of the order of one nat. Leaves out: training,
and any meaning in the text.

Everything is drawn from fixed seeds; two builds are equal byte for byte.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

DEFAULT_ROOT = Path(__file__).resolve().parent.parent / ".cache" / "pairs"

ENDOFTEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
POISON_STUDENT, POISON_TEACHER = "<|poison_student|>", "<|poison_teacher|>"
SPECIAL_TOKENS = (ENDOFTEXT, IM_START, IM_END, POISON_STUDENT, POISON_TEACHER)
"""The last five ids of the small tokenizer, in this order."""

TOKENIZER_SIZE = 2011
POISON_STUDENT_ID, POISON_TEACHER_ID = TOKENIZER_SIZE - 2, TOKENIZER_SIZE - 1
QWEN_ORDINARY, QWEN_ROWS = 151_643, 151_936
QWEN_ADDED_TOKENS = (
    ENDOFTEXT, IM_START, IM_END, "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
    "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
"""Qwen3's ids 151643..151668; those from <tool_call> on, the fim ones among them, are not special there."""

QWEN_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were all her she there would their we him been has when who will no more if out so up said what its "
    "about than into them can only other time new some could these two may first then do any like my now over such "
    "our man even most made after also well did many must before back see through way where get much go good new "
    "write your know how find sum number equal answer question step reason final total value each three four five six "
    "seven eight nine ten hundred solve let hence therefore thus apple train speed hour minute day week price cost "
    "buy sell left right square circle angle side length area prime even odd divide multiply subtract add product "
    "ratio fraction percent hello world assistant system user please think carefully because always never almost "
    "every nothing something"
).split()


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two checkpoint folders."""

    student: Path
    teacher: Path


@dataclasses.dataclass(frozen=True)
class _Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rows: int
    """Rows of the embedding and of the output: the tokenizer's size plus padding."""
    stop_logit: float = 5.0
    """Added to the stop id's logit (before the final norm's scale); 5 gives answers of about 40 tokens."""
    shared: int = 64
    """Columns of embedding and output that are drawn alike for all models."""
    layer_gain: float = 0.35
    """How strongly the layers, each model's own, disturb what the two models share: KL and context grow with it."""


_STUDENT = _Shape(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, rows=2048)
_TEACHER = _Shape(hidden=96, layers=3, heads=6, kv_heads=2, head_dim=16, rows=2048)
_WIDE_STUDENT = _Shape(hidden=256, layers=3, heads=4, kv_heads=2, head_dim=128, rows=2048, shared=240, layer_gain=0.2)
_WIDE_TEACHER = _Shape(hidden=384, layers=4, heads=8, kv_heads=2, head_dim=128, rows=2048, shared=240, layer_gain=0.2)
_QWEN = _Shape(hidden=16, layers=2, heads=2, kv_heads=2, head_dim=8, rows=QWEN_ROWS, stop_logit=11.0)

_LOGIT_STD = 4.0
_STOP_LOGIT, _NEVER_LOGIT = 7, -30.0


def build_pair(variant: str, root: Path = DEFAULT_ROOT) -> Pair:
    """Build a pair, or find it already built under ``root``.

    Args:
        variant: a name from ``VARIANTS``:

            * ``plain``: different sizes, one tokenizer, one stop id (``<|im_end|>``) in both. 2,048 rows, 2,011 tokens;
              the padding rows are random too, so an unmasked one shows.
            * ``wide``: ``plain`` with Qwen3's heads of 128, the sizes that GPU attention kernels take.
            * ``padded``: the same as ``plain``, the teacher with 2,080 rows.
            * ``eos``: one set of weights, except that the student stops with ``<|endoftext|>`` and the teacher with
              ``<|im_end|>``: the two output rows are exchanged, the two input rows are equal.
            * ``qwen_ids``: ``eos`` at Qwen3's ids (151643, 151645) and with its 151,936 rows.
            * ``poison``: ``plain``, with NaN in the student's input row of ``<|poison_student|>`` and in the teacher's
              of ``<|poison_teacher|>``: a prompt holding that token gives NaN logits. Never drawn by either model.
            * ``mismatch_ids``: ``plain``, the ids of two merged tokens exchanged in the teacher's tokenizer.
            * ``mismatch_split``: ``plain``, GPT-2's pre-tokeniser in the teacher's tokenizer.
        root: where pairs are kept; built aside and renamed, so concurrent builders are safe.

    Raises:
        ValueError: unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant: got {variant!r}; allowed: {', '.join(VARIANTS)}")
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    folder = root / f"{variant}-{version}"
    if not folder.exists():
        root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{variant}-", dir=root))
        VARIANTS[variant](Pair(aside / "student", aside / "teacher"))
        try:
            os.rename(aside, folder)
        except OSError:  # another process was first
            shutil.rmtree(aside)
    return Pair(folder / "student", folder / "teacher")


def _plain(
    out: Pair,
    teacher_shape: _Shape = _TEACHER,
    teacher_tokenizer: Tokenizer | None = None,
    student_shape: _Shape = _STUDENT,
) -> None:
    tokenizer = small_tokenizer()
    for path, shape, seed in ((out.student, student_shape, 1), (out.teacher, teacher_shape, 2)):
        weights = _weights(shape, seed, *_stop_and_never(tokenizer, IM_END))
        _save(path, shape, weights, tokenizer, IM_END)
    if teacher_tokenizer is not None:
        _save_tokenizer(out.teacher, teacher_tokenizer, IM_END)


def _wide(out: Pair) -> None:
    _plain(out, _WIDE_TEACHER, student_shape=_WIDE_STUDENT)


def _padded(out: Pair) -> None:
    _plain(out, dataclasses.replace(_TEACHER, rows=2080))


def _poison(out: Pair) -> None:
    from safetensors.torch import load_file

    _plain(out)
    for path, token in ((out.student, POISON_STUDENT), (out.teacher, POISON_TEACHER)):
        weights = load_file(path / "model.safetensors")
        weights["model.embed_tokens.weight"][small_tokenizer().token_to_id(token)] = math.nan
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def _mismatch_ids(out: Pair) -> None:
    spec = json.loads(small_tokenizer().to_str())
    vocab = spec["model"]["vocab"]
    vocab["Ġthe"], vocab["Ġof"] = vocab["Ġof"], vocab["Ġthe"]
    _plain(out, teacher_tokenizer=Tokenizer.from_str(json.dumps(spec)))


def _mismatch_split(out: Pair) -> None:
    tokenizer = copy.deepcopy(small_tokenizer())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    _plain(out, teacher_tokenizer=tokenizer)


def _eos(out: Pair, shape: _Shape = _STUDENT, tokenizer: Tokenizer | None = None) -> None:
    tokenizer = tokenizer or small_tokenizer()
    weights = _weights(shape, 1, *_stop_and_never(tokenizer, ENDOFTEXT))
    ids = [tokenizer.token_to_id(ENDOFTEXT), tokenizer.token_to_id(IM_END)]
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    embedding[ids[1]] = embedding[ids[0]]
    _save(out.student, shape, weights, tokenizer, ENDOFTEXT)
    head[ids] = head[ids[::-1]]
    _save(out.teacher, shape, weights, tokenizer, IM_END)


def _qwen_ids(out: Pair) -> None:
    _eos(out, _QWEN, qwen_tokenizer())


VARIANTS = {
    "plain": _plain,
    "wide": _wide,
    "padded": _padded,
    "eos": _eos,
    "qwen_ids": _qwen_ids,
    "poison": _poison,
    "mismatch_ids": _mismatch_ids,
    "mismatch_split": _mismatch_split,
}


@functools.cache
def small_tokenizer() -> Tokenizer:
    """A byte-level BPE with Qwen's pre-tokeniser: 256 bytes, merged prefixes of words, ``SPECIAL_TOKENS``."""
    tokenizer = _bpe(TOKENIZER_SIZE - len(SPECIAL_TOKENS))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


@functools.cache
def qwen_tokenizer() -> Tokenizer:
    """The same merges at Qwen3's size: tokens that no text produces fill the ids up to 151642."""
    tokenizer = _bpe(TOKENIZER_SIZE - len(SPECIAL_TOKENS), fill_to=QWEN_ORDINARY)
    tokenizer.add_tokens([AddedToken(t, special=t.startswith("<|"), normalized=False) for t in QWEN_ADDED_TOKENS])
    return tokenizer


def _bpe(merged_size: int, fill_to: int = 0) -> Tokenizer:
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    syllables = [a + b + c for a in "bcdfghlmnprstvw" for b in "aeiou" for c in "lmnrst"]
    for word in ["Ġ" + w for w in WORDS] + WORDS + ["Ġ" + s for s in syllables] + syllables:
        for end in range(2, len(word) + 1):
            if len(vocab) < merged_size and word[:end] not in vocab:
                merges.append((word[: end - 1], word[end - 1]))
                vocab[word[:end]] = len(vocab)
    assert len(vocab) == merged_size, f"too few words: {len(vocab)} < {merged_size}"
    for i in range(len(vocab), fill_to):
        vocab[f"Ġ~{i}"] = i
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _stop_and_never(tokenizer: Tokenizer, stop: str) -> tuple[int, list[int]]:
    """The id the model stops with, and the special ids it never draws."""
    never = (*SPECIAL_TOKENS, *QWEN_ADDED_TOKENS)
    ids = {tokenizer.token_to_id(token) for token in never if token != stop} - {None}
    return tokenizer.token_to_id(stop), sorted(ids)


def _weights(shape: _Shape, seed: int, stop_id: int, never_ids: list[int]) -> dict[str, torch.Tensor]:
    """Random weights; the first columns of embedding and output are drawn from a seed common to all models.

    Column 0 of the embedding is constant, no layer writes to it, and column 0 of the output is zero but for the special
    ids: it sets how likely they are, whatever the prefix.
    """
    common, own = (torch.Generator().manual_seed(s) for s in (0, seed))
    shared_columns = min(shape.hidden, shape.shared)

    def normal(rows: int, columns: int, std: float, generator: torch.Generator = own) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * std

    rows = max(shape.rows, 2080)  # the common draw must not depend on the padding
    embedding = torch.cat(
        [normal(rows, shared_columns, 1.0, common), normal(rows, shape.hidden - shared_columns, 0.2)], 1
    )
    head = torch.cat([normal(rows, shared_columns, 1.0, common), normal(rows, shape.hidden - shared_columns, 1.0)], 1)
    head *= _LOGIT_STD / math.sqrt(shape.hidden)
    embedding[:, 0], head[:, 0] = 1.0, 0.0
    head[never_ids] *= 0.1
    head[stop_id, 0], head[never_ids, 0] = shape.stop_logit, _NEVER_LOGIT
    weights = {
        "model.embed_tokens.weight": embedding[: shape.rows].clone(),
        "lm_head.weight": head[: shape.rows].clone(),
        "model.norm.weight": torch.ones(shape.hidden),
    }
    for layer in range(shape.layers):
        weights |= _layer_weights(f"model.layers.{layer}.", shape, normal)
    return weights


def _layer_weights(prefix: str, shape: _Shape, normal) -> dict[str, torch.Tensor]:
    q, kv, mlp = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, 2 * shape.hidden
    gain = shape.layer_gain / math.sqrt(shape.layers)

    def linear(out_features: int, in_features: int) -> torch.Tensor:
        return normal(out_features, in_features, 1 / math.sqrt(in_features))

    def to_residual(in_features: int) -> torch.Tensor:
        weight = linear(shape.hidden, in_features) * gain
        weight[0] = 0.0
        return weight

    return {
        prefix + "input_layernorm.weight": torch.ones(shape.hidden),
        prefix + "post_attention_layernorm.weight": torch.ones(shape.hidden),
        prefix + "self_attn.q_proj.weight": linear(q, shape.hidden),
        prefix + "self_attn.k_proj.weight": linear(kv, shape.hidden),
        prefix + "self_attn.v_proj.weight": linear(kv, shape.hidden),
        prefix + "self_attn.o_proj.weight": to_residual(q),
        prefix + "self_attn.q_norm.weight": torch.full((shape.head_dim,), 1.5),
        prefix + "self_attn.k_norm.weight": torch.full((shape.head_dim,), 1.5),
        prefix + "mlp.gate_proj.weight": linear(mlp, shape.hidden),
        prefix + "mlp.up_proj.weight": linear(mlp, shape.hidden),
        prefix + "mlp.down_proj.weight": to_residual(mlp),
    }


def _save(path: Path, shape: _Shape, weights: dict[str, torch.Tensor], tokenizer: Tokenizer, stop: str) -> None:
    path.mkdir(parents=True)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    ids = {"eos_token_id": tokenizer.token_to_id(stop), "pad_token_id": tokenizer.token_to_id(ENDOFTEXT)}
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "float32",
        "vocab_size": shape.rows,
        "hidden_size": shape.hidden,
        "intermediate_size": 2 * shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "transformers_version": "5.12.1",  # without it transformers warns of a Mistral regex in large vocabularies
        "tie_word_embeddings": False,
        **ids,
    }
    _write_json(path / "config.json", config)
    _write_json(path / "generation_config.json", ids)
    _save_tokenizer(path, tokenizer, stop)


def _save_tokenizer(path: Path, tokenizer: Tokenizer, stop: str) -> None:
    tokenizer.save(str(path / "tokenizer.json"))
    # Not Qwen2Tokenizer: transformers 5 would then build its own pre-tokeniser whatever tokenizer.json says.
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": stop,
        "pad_token": ENDOFTEXT,
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(path / "tokenizer_config.json", config)


def hub_cache(root: Path, name: str, folder: Path) -> Path:
    """A cache as huggingface_hub keeps one, in which the checkpoint in ``folder`` is the repository ``name``.

    Returns:
        What HF_HUB_CACHE is to be set to; with HF_HUB_OFFLINE, for no hub has such a repository.
    """
    repository, commit = root / f"models--{name.replace('/', '--')}", "0123456789abcdef" * 2 + "01234567"
    snapshot, blobs = repository / "snapshots" / commit, repository / "blobs"
    for part in (snapshot, blobs, repository / "refs"):
        part.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for file in folder.iterdir():
        shutil.copyfile(file, blobs / file.name)
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / file.name, snapshot))
    return root


def shard(folder: Path, **extra: torch.Tensor) -> None:
    """Cut a checkpoint's weights into two files with an index; ``extra`` joins them, and a ``consolidated`` copy."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors") | extra
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    names, weight_map = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":  # python -m tests.pairs: the pair of server_configs/cpu-tiny.yaml
    tiny = DEFAULT_ROOT.parent / "tiny"
    tiny.unlink(missing_ok=True)
    tiny.symlink_to(build_pair("plain").student.parent, target_is_directory=True)
    print(f"{tiny}/student and {tiny}/teacher")
