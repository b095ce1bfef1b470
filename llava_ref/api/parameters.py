"""Tables of parameters that other servers support and this one does not; `undeclared` checks requests against them.

`schema` declares the parameters that have an effect. The others are in three tables, by name:
- `SILENT`: accepted without a warning, because nothing in an answer depends on them.
- `WARNED`: they ask for something that is not done, so the response gets a warning. The values in the table give none,
  because they ask for what is done anyway.
- `REFUSED`: they would change the meaning of the answer. Only the values in the table are accepted.
null is always accepted. A name in no table is treated like one in `WARNED` without values.

The names are those that clients of OpenAI's API, llama.cpp's server, vLLM, Ollama, LM Studio, MLC LLM, mlx-lm,
llama-cpp-python, text-generation-inference and LiteLLM are known to send. OpenAI's were read from openai-python 3.3;
the others were collected from common use and not checked release by release.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

Defaults = Mapping[str, tuple[Any, ...]]

SILENT = frozenset(
    # OpenAI
    "user metadata safety_identifier prompt_cache_key prompt_cache_retention prompt_cache_options prediction "
    "parallel_tool_calls response_format.json_schema.name response_format.json_schema.description "
    "response_format.json_schema.strict response_format.strict "
    # llama.cpp: where and how fast it runs
    "cache_prompt id_slot n_cache_reuse timings_per_token reasoning_format backend_sampling "
    "speculative.n_max speculative.n_min speculative.p_min speculative.type "
    # vLLM
    "priority request_id cache_salt include_reasoning separate_reasoning "
    # Ollama, LM Studio, mlx-lm
    "keep_alive ttl draft_model num_draft_tokens num_gpu num_thread "
    # LiteLLM
    "drop_params additional_drop_params allowed_openai_params api_base api_key api_version base_url caching "
    "custom_llm_provider deployment_id litellm_call_id litellm_session_id litellm_trace_id max_retries num_retries "
    "request_timeout tags timeout "
    # whether reasoning is shown: these models produce none
    "reasoning_split merge_reasoning_content_in_choices".split()
)

WARNED: Defaults = {
    # OpenAI
    "store": (False,),
    "service_tier": ("auto", "default"),
    "verbosity": ("medium",),
    "reasoning_effort": ("none",),
    "reasoning": ({}, {"effort": "none"}, {"enabled": False}),
    "moderation": (),
    "stream_options.include_obfuscation": (False,),
    "stream_options.continuous_usage_stats": (False,),
    "max_completion_tokens": (),  # chats only; /v1/completions has max_tokens
    "top_logprobs": (0,),  # chats only; /v1/completions has logprobs
    "prompt_logprobs": (),  # chats only; /v1/completions has echo with logprobs
    # llama.cpp
    "n_predict": (),
    "n_probs": (0,),
    "n_keep": (0,),
    "n_discard": (0,),
    "n_indent": (0,),
    "n_cmpl": (1,),
    "t_max_predict_ms": (0, -1),
    "repeat_last_n": (64,),
    "min_keep": (0,),
    "typical_p": (1,),
    "top_n_sigma": (-1,),
    "dynatemp_range": (0,),
    "dynatemp_exponent": (1,),
    "dry_multiplier": (0,),
    "dry_base": (1.75,),
    "dry_allowed_length": (2,),
    "dry_penalty_last_n": (-1,),
    "dry_sequence_breakers": (["\n", ":", '"', "*"],),
    "xtc_probability": (0,),
    "xtc_threshold": (0.1,),
    "adaptive_target": (-1,),
    "adaptive_decay": (0.9,),
    "mirostat": (0,),
    "mirostat_tau": (5,),
    "mirostat_eta": (0.1,),
    "samplers": ([],),
    "ignore_eos": (False,),
    "return_tokens": (False,),
    "return_progress": (False,),
    "post_sampling_probs": (False,),
    "response_fields": ([],),
    "thinking_forced_open": (False,),
    "thinking_budget_tokens": (-1, 0),
    "reasoning_budget": (-1, 0),
    "parse_tool_calls": (False, True),
    # vLLM
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "truncate_prompt_tokens": (),
    "thinking_token_budget": (),
    "echo": (False,),  # in chats
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "kv_transfer_params": ({},),
    "media_io_kwargs": ({},),
    "vllm_xargs": ({},),
    # Ollama, LM Studio
    "options": ({},),
    "think": (False,),
    "raw": (False,),
    "num_ctx": (),
    "num_predict": (),
    "context_length": (),
    "preset": (),
    # MLC LLM, mlx-lm
    "debug_config": ({},),
    "repetition_context_size": (64,),
    # llama-cpp-python
    "tfs_z": (1,),
    "mirostat_mode": (0,),
    # text-generation-inference
    "details": (False,),
    "do_sample": (),
    "max_new_tokens": (),
    "return_full_text": (False,),
    "watermark": (False,),
    # LiteLLM
    "thinking": ({"type": "disabled"},),
    "fallbacks": ([],),
    "guardrails": ([],),
    "mock_response": (),
    "extra_body": ({},),
    "extra_headers": ({},),
}

REFUSED: Defaults = {
    # parameters of another route: a conversation, a prompt
    "messages": (),
    "prompt": ("",),
    "input": (),
    # OpenAI
    "best_of": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "suffix": ("",),
    "response_format": ({"type": "text"},),  # chats only
    # llama.cpp
    "grammar": ("",),
    "grammar_lazy": (False,),
    "grammar_triggers": ([],),
    "json_schema": ({},),
    "lora": ([],),
    "image_data": ([],),
    "chat_template_kwargs": ({}, {"enable_thinking": False}),
    # vLLM
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "use_beam_search": (False,),
    "structured_outputs": ({},),
    "structural_tag": (),
    "guided_json": (),
    "guided_regex": ("",),
    "guided_choice": ([],),
    "guided_grammar": ("",),
    "documents": ([],),
    "chat_template": (),
    "mm_processor_kwargs": ({},),
    "logits_processors": ([],),
    "prompt_embeds": (),
    # Ollama
    "format": ("",),
    "images": ([],),
    "system": ("",),
    "template": ("",),
    "context": ([],),
    # mlx-lm, llama-cpp-python
    "adapters": (),
    "role_mapping": ({},),
    "logit_bias_type": ("input_ids",),
    "logits_processor": ([],),
    # LiteLLM
    "mcp_servers": ([],),
}

INSTEAD = {  # what error messages and warnings suggest
    "functions": "tools",
    "function_call": "tool_choice",
    "messages": "/v1/chat/completions",
    "prompt": "messages",
    "input": "messages",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "repetition_penalty": "repeat_penalty",
    "n_probs": "logprobs",
    "top_logprobs": "logprobs",
    "prompt_logprobs": "logprobs with echo",
    "n_cmpl": "n",
    "do_sample": "temperature",
    "options": "each option as a parameter of its own",
    "num_ctx": "`serve --ctx-size`",
    "format": "response_format",
    "json_schema": "response_format",
    "guided_json": "response_format",
    "structured_outputs": "response_format",
    "system": "a message with the role system",
    "images": "image_url in a message",
    "image_data": "image_url in a message",
}


class ParameterTable(NamedTuple):
    """The undeclared parameters of one kind of request, by what is done with each."""

    silent: frozenset[str]
    warned: Defaults
    refused: Defaults


REQUESTS = ParameterTable(SILENT, WARNED, REFUSED)
RESPONSES = ParameterTable(
    frozenset(
        "store user safety_identifier prompt_cache_key prompt_cache_retention prompt_cache_options max_tool_calls "
        "background_options text.format.strict text.format.description".split()
    ),
    {
        "include": ([], ["reasoning.encrypted_content"]),
        "reasoning": ({}, {"effort": "none"}),
        "service_tier": ("auto", "default"),
        "stream_options": ({}, {"include_obfuscation": False}),
        "text.verbosity": ("medium",),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
        "moderation": (),
        "max_tokens": (),
        "personality": (),
    },
    {
        "previous_response_id": (),
        "conversation": (),
        "prompt": (),
        "background": (False,),
        "context_management": ([],),
        "messages": (),
        "response_format": ({"type": "text"},),
    },
)
TEXTS = ParameterTable(frozenset(["model"]), {}, {})  # /tokenize and /detokenize
LOADS = ParameterTable(  # Nitro's and Cortex's loadmodel; the options of `serve` decide where and how a model runs
    frozenset(
        "ngl n_gpu_layers main_gpu embedding cont_batching n_parallel n_batch n_ubatch cpu_threads caching_enabled "
        "clean_cache_threshold mlock use_mmap flash_attn model engine".split()
    ),
    {
        "repeat_last_n": (64,),
        "grp_attn_n": (1,),
        "grp_attn_w": (512,),
        "cache_type": ("f32",),
        "llama_log_folder": (),
        "model_alias": (),
    },
    {"model_type": ("llm",), "grammar_file": ("",), "prompt_template": (), "lora": ([],), "lora_adapters": ([],)},
)
