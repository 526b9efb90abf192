"""Requests that have to be refused with HTTP 400, each with the field that the answer names."""

from __future__ import annotations

from typing import Any

Case = tuple[str, dict[str, Any], str]
"""Route, body, field."""

HUGE = 2**70
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]


def sampling(field: str, value: Any, **others: Any) -> Case:
    return "/generate", {"text": "x", "sampling_params": {"max_new_tokens": 4, **others, field: value}}, field


def generate(field: str, value: Any, **others: Any) -> Case:
    return "/generate", {"text": "x", "sampling_params": {"max_new_tokens": 4}, **others, field: value}, field


def completion(field: str, value: Any, **others: Any) -> Case:
    return "/v1/completions", {"model": "m", "prompt": "x", "max_tokens": 4, **others, field: value}, field


def chat(field: str, value: Any, **others: Any) -> Case:
    messages = [{"role": "user", "content": "x"}]
    return "/v1/chat/completions", {"model": "m", "messages": messages, "max_tokens": 4, **others, field: value}, field


def named(case: Case, field: str) -> Case:
    """The case, where the answer names another field."""
    return case[0], case[1], field


def blend(field: str, value: Any, **others: Any) -> Case:
    route, body, _ = sampling("custom_params", {**others, field: value})
    return route, body, field


CASES: list[Case] = [
    # These ended the server.
    sampling("top_k", 2**31),
    completion("top_k", 2**31),
    sampling("stop_token_ids", [1_000_000], min_new_tokens=1),
    sampling("stop_token_ids", [-1], min_new_tokens=1),
    sampling("max_new_tokens", 2.5),
    sampling("stop", [["a"]]),
    sampling("logit_bias", {"5": None}),
    sampling("logit_bias", {"5": "a"}),
    sampling("logit_bias", {"5": [1]}),
    generate("top_logprobs_num", 1_000_000, return_logprob=True),
    generate("top_logprobs_num", 5000, return_logprob=True, logprob_start_len=0),
    completion("logprobs", 1_000_000),
    chat("top_logprobs", 5000, logprobs=True),
    generate("logprob_start_len", -7, return_logprob=True),
    # These hung it, were never answered, or were answered 500.
    sampling("skip_special_tokens", "x"),
    generate("rid", "HEALTH_CHECK_x"),
    completion("rid", "HEALTH_CHECK_x"),
    generate("sampling_params", [{}, {}]),
    generate("sampling_params", [{}]),
    generate("sampling_params", []),
    generate("sampling_params", "x"),
    sampling("stop_regex", "("),
    sampling("stop_regex", "(a{0,99}){0,99}"),
    sampling("stop_token_ids", 5),
    sampling("temperature", "0.5"),
    sampling("temprature", 0.5),
    sampling("is_normalized", True),
    sampling("n", None),
    named(generate("text", ["x", "y"], rid=["a"]), "rid"),
    generate("return_logprob", [True], text=["x", "y"]),
    generate("token_ids_logprob", [[1]], text=["x", "y"], return_logprob=True),
    named(generate("sampling_params", [{"n": 2}, {"n": 1}], text=["x", "y"]), "n"),
    generate("input_ids", [[1], []], text=None),
    generate("input_ids", [1], text="x"),
    generate("text", []),
    generate("custom_labels", {"nobody": "knows"}),
    generate("session_params", {"id": "x"}),
    generate("return_routed_experts", True),
    completion("response_format", {"type": "json_schema", "schema": []}),
    chat("response_format", {"type": "json_schema", "schema": {"properties": None}}),
    chat("chat_template_kwargs", {"tokenize": True}),
    chat("chat_template_kwargs", {"conversation": []}),
    # These were taken somehow.
    sampling("ignore_eos", "yes"),
    sampling("temperature", True),
    sampling("max_new_tokens", True),
    sampling("logit_bias", {"5": True}),
    sampling("logit_bias", {"5_0": 1.0}),
    sampling("logit_bias", {" 5": 1.0}),
    sampling("logit_bias", {"5": 1e39}),
    sampling("stop_token_ids", ["5"]),
    sampling("stop_token_ids", [1.5]),
    sampling("stop_token_ids", [HUGE]),
    sampling("top_k", 5.0),
    sampling("stream_interval", "a"),
    sampling("stream_interval", 0),
    sampling("sampling_seed", HUGE),
    generate("top_logprobs_num", -1, return_logprob=True),
    generate("stream", "yes"),
    generate("return_logprob", 1),
    generate("input_ids", [True], text=None),
    generate("input_ids", ["5"], text=None),
    sampling("stop", ""),
    sampling("stop", ["a", ""]),
    sampling("stop", ["a"] * 33),
    sampling("min_new_tokens", 5),
    sampling("temperature", 1e-5),
    sampling("temperature", 1e4),
    sampling("repetition_penalty", 1e-50),
    sampling("json_schema", '{"type": "object"}'),
    named(sampling("custom_params", {"other": [[1]]}), "custom_params.other"),
    completion("max_tokens", True),
    completion("max_tokens", "4"),
    completion("temperature", "0.5"),
    completion("stop", ""),
    completion("best_of", 2),
    completion("logit_bias", {"5": "1"}),
    completion("seed", 1.0),
    completion("stream", "true"),
    completion("stream_options", {"include_usage": "yes"}),
    completion("prompt", [1.0]),
    completion("prompt", []),
    completion("guided_json", {}),
    chat("max_completion_tokens", 4.0),
    chat("temperature", True),
    chat("logprobs", 1),
    chat("messages", [{"role": "user", "content": 5}]),
    chat("messages", []),
    chat("messages", {}),
    chat("tools", [{"function": {"name": 5}}]),
    # Each rule has one place, and its numbers are representable.
    blend("trb_mixture_alpha", 1.5, trb_rule="mixture"),
    blend("trb_mixture_alpha", -0.1, trb_rule="mixture"),
    blend("trb_skd_temperature", 1e-50, trb_rule="skd", trb_skd_top_k=5),
    blend("trb_skd_temperature", 1e-40, trb_rule="skd", trb_skd_top_k=5),
    blend("trb_skd_temperature", 1e39, trb_rule="skd", trb_skd_top_k=5),
    generate("trb_epsilon", 0.1),
    sampling("trb_epsilon", 0.1),
    completion("trb_epsilon", 0.1),
    chat("trb_epsilon", 0.1),
    generate("extra_body", {"custom_params": {}}),
    completion("extra_body", {"custom_params": {}}),
    chat("extra_body", {"custom_params": {"trb_epsilon": 0.1}}),
    generate("custom_params", {"trb_epsilon": 0.1}),
    sampling("custom_param", {"trb_epsilon": 0.1}),
    chat("custom_param", {"trb_epsilon": 0.1}),
    blend("trb_epsilom", 0.1),
    # Nothing but the pair's texts.
    chat("messages", IMAGE),
    completion("lora_path", "adapter"),
    generate("positional_embed_overrides", [], text=["x", "y"]),
    generate("lora_id", False, text=["x", "y"]),
    generate("token_indices_to_pool", False, text=["x", "y"]),
    ("/vertex_generate", {"instances": [{"text": "x"}], "parameters": {"text": "y"}}, "text"),
    ("/v1/detokenize", {"tokens": [-5]}, "tokens"),
    ("/v1/tokenize", {"prompt": "x", "messages": []}, "messages"),
    chat("custom_logit_processor", "x"),
    chat("use_audio_in_video", True),
]

PLACES = {
    "inside sampling_params.custom_params only": [generate("trb_epsilon", 0.1)],
    "inside custom_params only": [
        completion("trb_epsilon", 0.1),
        chat("trb_epsilon", 0.1),
        sampling("trb_epsilon", 0.1),
    ],
    "inside sampling_params only": [generate("custom_params", {}), generate("temperature", 1.0)],
    "did you mean sampling_params.custom_params?": [generate("custom_param", {})],
    "did you mean custom_params?": [chat("custom_param", {}), sampling("custom_param", {})],
    "did you mean trb_epsilon?": [blend("trb_epsilom", 0.1)],
    "did you mean max_tokens?": [completion("max_new_tokens", 4)],
    "the pair is text-only": [
        chat("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])
    ],
    "did you mean temperature?": [sampling("temprature", 0.5)],
}
"""Where the answer says that a field belongs, or why it has no place."""
