"""Ask a blending server a question through the OpenAI client, and read what the blend did.

    python examples/serve_and_call.py --base-url http://127.0.0.1:30000     # a server that runs: trb serve --config …
    python examples/serve_and_call.py --config server_configs/cpu-smollm2.yaml     # starts one, and stops it again

The policy goes into `extra_body`, as flat `trb_*` keys of `custom_params`; what it did comes back as `choices[i].trb`.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from openai import OpenAI

from sglang_trb.errors import TrbError
from sglang_trb.launch.local_server import serving


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        with server(arguments) as address:
            ask(address, arguments)
    except TrbError as error:
        print(f"serve_and_call: {error}", file=sys.stderr)
        return 1
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ask a blending server one question under several KL budgets.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--base-url", metavar="URL", help="a server that is running, without /v1")
    where.add_argument("--config", metavar="FILE", help="start a server with this configuration and stop it at the end")
    parser.add_argument("--prompt", default="What is the capital of France?", help="default: %(default)s")
    parser.add_argument("--epsilon", nargs="+", type=float, default=[0.0, 0.1], help="default: 0 0.1")
    parser.add_argument("--max-tokens", type=int, default=48, help="default: %(default)s")
    return parser.parse_args(argv)


def server(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[str]:
    if arguments.base_url:
        return contextlib.nullcontext(arguments.base_url)
    return serving(arguments.config, log=Path("out/server.log"))


def ask(address: str, arguments: argparse.Namespace) -> None:
    client = OpenAI(base_url=f"{address}/v1", api_key="none")
    for epsilon in arguments.epsilon:
        response = client.chat.completions.create(
            model="student",
            messages=[{"role": "user", "content": arguments.prompt}],
            max_tokens=arguments.max_tokens,
            temperature=0.7,
            seed=0,
            extra_body={"custom_params": {"trb_epsilon": epsilon}},
        )
        choice = response.choices[0]
        print(f"\nε = {epsilon:g}\n{choice.message.content}")
        print({name: value for name, value in choice.trb.items() if value is not None})  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
