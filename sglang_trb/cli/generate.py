"""``trb generate``: a few rollouts of several behaviour policies, side by side, with no server to start first."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sglang_trb.cli import complain, launching
from sglang_trb.display.completions import TracedCompletion, by_label, token_pieces
from sglang_trb.errors import InvalidParameter
from sglang_trb.requests.field_types import INT32_MAX
from sglang_trb.requests.fields import ServerFacts, words
from sglang_trb.requests.generate import SamplingFields
from sglang_trb.wire.params import BlendParams
from sglang_trb.wire.rules import Parameter, Rule

DESCRIPTION = """Draw rollouts in this process: each prompt under each behaviour policy, seeds fixed, then what was
drawn, token by token, shaded by beta."""

EPILOG = """Example: trb generate --config server_configs/cpu-smollm2.yaml --prompt "What is 8 + 5?"
--epsilon 0 0.01 0.1 --rule teacher --html out/rollouts.html"""

PROMPT_KEYS = ("prompt", "question", "problem")


def run(argv: list[str]) -> int:
    """Run ``trb generate``."""
    arguments = _parser().parse_args(argv)
    try:
        policies = chosen_policies(arguments)
        prompts = [*arguments.prompt, *(read_prompts(arguments.prompts) if arguments.prompts else [])]
        if not prompts:
            raise InvalidParameter("--prompt", None, "at least one, here or in --prompts FILE")
        command = _command(arguments)
        _require_drawable(arguments)
        _require_folders(arguments.html, arguments.jsonl)
        with warnings.catch_warnings(action="ignore"):
            launching.parse(command)
    except InvalidParameter as error:
        complain("generate", error)
        return 2
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # SGLang's processes import kernels for devices that are not here
    completions = _draw(command, prompts, policies, arguments)
    _show(completions)
    _write(completions, arguments)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("trb generate", description=DESCRIPTION, epilog=EPILOG)
    models = parser.add_argument_group("models (a configuration, or the two checkpoints)")
    models.add_argument("--config", metavar="FILE", help="server configuration: SGLang options in YAML")
    models.add_argument("--student", metavar="PATH", help="checkpoint folder or Hugging Face id")
    models.add_argument("--teacher", metavar="PATH", help="the same, of the teacher")
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given several times")
    keys = ", ".join(PROMPT_KEYS)
    prompts.add_argument("--prompts", type=Path, metavar="FILE", help=f"a prompt a line; in .jsonl one of {keys}")
    form = prompts.add_mutually_exclusive_group()
    form.add_argument("--chat", dest="chat", action="store_true", default=None, help="through the chat template")
    form.add_argument("--raw", dest="chat", action="store_false", help="as they are (default: chat where there is one)")
    policies = parser.add_argument_group("behaviour policies and drawing")
    policies.add_argument(
        "--epsilon", nargs="+", type=float, metavar="E", help="KL budgets, nats a token (default: 0 0.01 0.1)"
    )
    others = [rule.value for rule in Rule if rule is not Rule.TRUST_REGION]
    policies.add_argument("--rule", nargs="+", choices=others, default=[], help="other policies beside the budgets")
    for option, parameter, rule in _rule_options():
        kind = parameter.type
        policies.add_argument(option, type=kind, metavar="N", help=f"{parameter.allowed}; with --rule {rule.value}")
    policies.add_argument("--n", type=int, default=1, help="rollouts per prompt and policy (default: %(default)s)")
    policies.add_argument("--max-tokens", type=int, default=128, metavar="N", help="default: %(default)s")
    policies.add_argument("--temperature", type=float, default=1.0, metavar="T", help="default: %(default)s")
    policies.add_argument("--seed", type=int, default=0, help="of the first rollout; the others count on (default: 0)")
    output = parser.add_argument_group("output (besides the terminal)")
    output.add_argument("--html", type=Path, metavar="FILE", help="a self-contained page")
    output.add_argument("--jsonl", type=Path, metavar="FILE", help="a JSON object per rollout")
    return parser


def chosen_policies(arguments: argparse.Namespace) -> dict[str, BlendParams]:
    """Label → parameters, in the order of the command line.

    Raises:
        InvalidParameter: a value is out of range, or an option of a rule is missing or of no use.
    """
    budgets = arguments.epsilon if arguments.epsilon is not None else [] if arguments.rule else [0, 0.01, 0.1]
    wires: dict[str, dict[str, Any]] = {f"ε = {epsilon:g}": {"trb_epsilon": epsilon} for epsilon in budgets}
    wires |= {rule: {"trb_rule": rule} for rule in arguments.rule}
    for option, parameter, rule in _rule_options():
        value = getattr(arguments, parameter.name)
        if value is not None and rule.value not in arguments.rule:
            raise InvalidParameter(option, value, f"only with --rule {rule.value}")
        if value is not None:
            wires[rule.value][parameter.key] = value
    return {label: BlendParams.from_wire(wire | {"trb_return": "tokens"}) for label, wire in wires.items()}


def _rule_options() -> list[tuple[str, Parameter, Rule]]:
    """The option of each parameter of a rule that is asked for by name."""
    others = [rule for rule in Rule if rule is not Rule.TRUST_REGION]
    return [("--" + x.name.replace("_", "-"), x, rule) for rule in others for x in rule.parameters]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file (a line each) or of a .jsonl file (the first of PROMPT_KEYS in each object).

    Raises:
        InvalidParameter: names the file and the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter("--prompts", str(path), f"a readable text file ({error})") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_prompt_of(line, f"{path}, line {number}") for number, line in numbered]


def _prompt_of(line: str, where: str) -> str:
    allowed = f"a JSON object with one of {', '.join(PROMPT_KEYS)} ({where})"
    try:
        record = json.loads(line)
    except ValueError:
        raise InvalidParameter("--prompts", line[:60], allowed) from None
    found = [record[key] for key in PROMPT_KEYS if key in record] if isinstance(record, dict) else []
    if not found or not isinstance(found[0], str):
        raise InvalidParameter("--prompts", line[:60], allowed)
    return found[0]


def _command(arguments: argparse.Namespace) -> list[str]:
    quiet = ["--log-level", "error"]
    if arguments.config and (arguments.student or arguments.teacher):
        raise InvalidParameter("--config", arguments.config, "either a configuration or --student and --teacher")
    if arguments.config:
        return launching.config_command(arguments.config, quiet)
    if not (arguments.student and arguments.teacher):
        given = [arguments.student, arguments.teacher]
        raise InvalidParameter("--student and --teacher", given, "both, or --config FILE instead")
    return [*launching.pair_command(arguments.student, arguments.teacher), *quiet]


def _require_drawable(arguments: argparse.Namespace) -> None:
    """Check the options of drawing as a server does; what depends on the models is left to it."""
    any_pair = ServerFacts(vocab_size=INT32_MAX, context_length=INT32_MAX)
    options = {"--n": ("n", arguments.n), "--max-tokens": ("max_new_tokens", arguments.max_tokens)}
    options |= {"--temperature": ("temperature", arguments.temperature), "--seed": ("sampling_seed", arguments.seed)}
    for option, (name, value) in options.items():
        try:
            SamplingFields.check({name: value}, any_pair)
        except InvalidParameter:
            raise InvalidParameter(option, value, words(SamplingFields, name)) from None


def _require_folders(*outputs: Path | None) -> None:
    """Find out before the models are loaded whether the results can be written."""
    for path in outputs:
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InvalidParameter("output", str(path), f"a file in a folder that can be made ({error})") from None
            if path.is_dir():
                raise InvalidParameter("output", str(path), "a file: this is a folder")


def _draw(
    command: list[str], prompts: list[str], policies: dict[str, BlendParams], arguments: argparse.Namespace
) -> list[TracedCompletion]:
    print("loading both models …", file=sys.stderr, flush=True)
    from sglang_trb.engine import launcher

    with launcher.engine(command) as engine:
        tokenizer = engine.tokenizer_manager.tokenizer
        chat = arguments.chat if arguments.chat is not None else bool(tokenizer.chat_template)
        jobs = list(_jobs(prompts, policies, arguments))
        print(f"drawing {len(jobs)} rollouts …", file=sys.stderr, flush=True)
        try:
            results = engine.generate(
                input_ids=[_encoded(tokenizer, prompt, chat) for prompt, _, _ in jobs],
                sampling_params=[sampling for _, _, sampling in jobs],
            )
        except ValueError as error:  # a prompt too long for this context, for one
            raise InvalidParameter("--prompt", prompts, f"prompts that the server takes: {error}") from None
        return [
            TracedCompletion.from_wire(
                result["meta_info"]["trb"],
                prompt=prompt,
                label=label,
                text=result["text"],
                pieces=token_pieces(tokenizer, result["output_ids"]),
            )
            for (prompt, label, _), result in zip(jobs, results, strict=True)
        ]


def _jobs(
    prompts: list[str], policies: dict[str, BlendParams], arguments: argparse.Namespace
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """One rollout each: prompt, label, sampling parameters. Policies share seeds and so differ in the policy only."""
    for prompt in prompts:
        for label, params in policies.items():
            for sample in range(arguments.n):
                yield (
                    prompt,
                    label,
                    {
                        "max_new_tokens": arguments.max_tokens,
                        "temperature": arguments.temperature,
                        "sampling_seed": arguments.seed + sample,
                        "custom_params": params.to_wire(),
                    },
                )


def _encoded(tokenizer: Any, prompt: str, chat: bool) -> list[int]:
    if not chat:
        return tokenizer.encode(prompt)
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def _show(completions: list[TracedCompletion]) -> None:
    from rich.console import Console

    from sglang_trb.cli.show import prompt_table, totals_table

    console = Console()
    prompts: dict[str, list[TracedCompletion]] = {}
    for completion in completions:
        prompts.setdefault(completion.prompt, []).append(completion)
    for prompt, group in prompts.items():
        console.print(prompt_table(prompt, group))
    if len(completions) > len(by_label(completions)):
        console.print(totals_table("All prompts", completions))


def _write(completions: list[TracedCompletion], arguments: argparse.Namespace) -> None:
    if arguments.html:
        from sglang_trb.display.page import page

        arguments.html.write_text(page(completions), encoding="utf-8")
        print(f"wrote {arguments.html}", file=sys.stderr)
    if arguments.jsonl:
        lines = (json.dumps(completion.to_json(), ensure_ascii=False) + "\n" for completion in completions)
        arguments.jsonl.write_text("".join(lines), encoding="utf-8")
        print(f"wrote {arguments.jsonl}", file=sys.stderr)
