"""Launches a server from a child process, as training frameworks do; takes SGLang's options."""

from __future__ import annotations

import multiprocessing
import sys


def launch(arguments: list[str]) -> None:
    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    load_plugins()
    run_server(prepare_server_args(arguments))


if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=launch, args=(sys.argv[1:],))
    process.start()
    process.join()
    sys.exit(process.exitcode)
