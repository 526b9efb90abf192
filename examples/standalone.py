"""Blend in this process, without HTTP: SGLang's Engine, one prompt, three policies, every token's numbers.

    python examples/standalone.py --student .cache/smollm2/student --teacher .cache/smollm2/teacher

The teacher is named by `speculative_draft_model_path`, with no speculative algorithm: it runs in lockstep with the
student, and each token is drawn from the blend of both. `trb generate` does the same from the command line.
"""

from __future__ import annotations

import argparse
import os
import sys

import torch
from sglang import Engine

from sglang_trb.wire.trace import tokens_of

POLICIES = {
    "student": {"trb_epsilon": 0.0},
    "blend, at most 0.1 nats a token": {"trb_epsilon": 0.1},
    "teacher": {"trb_rule": "teacher"},
}


def engine_options(student: str, teacher: str) -> dict:
    options = {
        "model_path": student,
        "speculative_draft_model_path": teacher,
        "sampling_backend": "trb",
        "sampling_defaults": "openai",  # no filters taken from generation_config
    }
    if torch.cuda.is_available():
        return options
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads must not spin: see docs on CPU serving
    return options | {
        "device": "cpu",
        "dtype": "float32",
        "grammar_backend": "none",
        "context_length": 512,
        "max_total_tokens": 4096,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Draw one prompt's continuation under three policies, in this process."
    )
    parser.add_argument("--student", required=True, help="checkpoint folder or Hugging Face id")
    parser.add_argument("--teacher", required=True, help="the same, of the teacher")
    parser.add_argument("--prompt", default="The capital of France is", help="default: %(default)s")
    parser.add_argument("--max-tokens", type=int, default=12, help="default: %(default)s")
    arguments = parser.parse_args(argv)

    with Engine(**engine_options(arguments.student, arguments.teacher)) as engine:
        results = engine.generate(
            prompt=[arguments.prompt] * len(POLICIES),
            sampling_params=[
                {
                    "max_new_tokens": arguments.max_tokens,
                    "sampling_seed": 0,
                    "custom_params": policy | {"trb_return": "tokens"},
                }
                for policy in POLICIES.values()
            ],
        )
        tokenizer = engine.tokenizer_manager.tokenizer
    for name, result in zip(POLICIES, results, strict=True):
        show(name, result, tokenizer)
    return 0


def show(name: str, result: dict, tokenizer) -> None:
    trb = result["meta_info"]["trb"]
    print(f"\n{name}: mean β {trb['mean_beta']:.2f}, ΣKL {trb['sum_kl']:.3f} nats\n{result['text']!r}")
    tokens = tokens_of(trb)
    columns = tokens.beta, tokens.kl, tokens.student_logprob, tokens.teacher_logprob
    print(f"{'token':>16}     β       KL   log p   log q")
    for token, beta, kl, student, teacher in zip(result["output_ids"], *columns, strict=True):
        print(f"{tokenizer.decode([token])!r:>16} {beta:5.2f} {kl:8.4f} {student:7.2f} {teacher:7.2f}")


if __name__ == "__main__":
    sys.exit(main())
