"""Chat templates that show functions, calls and results in the ways of the models that have them."""

# Qwen2.5 and Qwen2.5-VL (Hermes): tokenizer_config.json of Qwen/Qwen2.5-7B-Instruct, its words shortened.
QWEN = """\
{%- if tools -%}
    {{- '<|im_start|>system\\n' -}}
    {%- if messages[0].role == 'system' -%}{{- messages[0].content + '\\n\\n' -}}{%- endif -%}
    {{- '<tools>' -}}
    {%- for tool in tools -%}{{- '\\n' -}}{{- tool | tojson -}}{%- endfor -%}
    {{- '\\n</tools><|im_end|>\\n' -}}
{%- elif messages[0].role == 'system' -%}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
    {%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) -%}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
    {%- elif m.role == 'assistant' -%}
        {{- '<|im_start|>assistant' -}}{%- if m.content -%}{{- '\\n' + m.content -}}{%- endif -%}
        {%- for call in m.tool_calls -%}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
            {{- call.function.arguments | tojson -}}{{- '}\\n</tool_call>' -}}
        {%- endfor -%}
        {{- '<|im_end|>\\n' -}}
    {%- elif m.role == 'tool' -%}
        {{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# Llama 3.1 and 3.2: tokenizer_config.json of meta-llama/Llama-3.1-8B-Instruct, its words shortened.
LLAMA = """\
{%- macro head(role) -%}{{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' -}}{%- endmacro -%}
{%- for m in messages -%}
    {%- if m.tool_calls -%}
        {%- if m.tool_calls | length != 1 -%}{{- raise_exception('one call at a time') -}}{%- endif -%}
        {%- set call = m.tool_calls[0].function -%}
        {{- head('assistant') + '{"name": "' + call.name + '", "parameters": ' -}}
        {{- call.arguments | tojson -}}{{- '}<|eot_id|>' -}}
    {%- elif m.role == 'tool' -%}{{- head('ipython') + m.content | tojson + '<|eot_id|>' -}}
    {%- else -%}
        {{- head(m.role) -}}
        {%- if loop.first and tools -%}
            {%- for tool in tools -%}{{- tool | tojson(indent=4) -}}{{- '\\n\\n' -}}{%- endfor -%}
        {%- endif -%}
        {{- m.content | trim + '<|eot_id|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- head('assistant') -}}{%- endif -%}
"""

# Mistral Small 3.1 (version 13 of mistral-common): its words shortened.
MISTRAL = """\
{{- bos_token -}}
{%- if tools -%}{{- '[AVAILABLE_TOOLS]' -}}{{- tools | tojson -}}{{- '[/AVAILABLE_TOOLS]' -}}{%- endif -%}
{%- for m in messages -%}
    {%- if m.role == 'user' -%}{{- '[INST]' + m.content + '[/INST]' -}}
    {%- elif m.role == 'system' -%}{{- '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' -}}
    {%- elif m.role == 'tool' -%}
        {{- '[TOOL_RESULTS]' + m.tool_call_id + '[TOOL_CONTENT]' + m.content + '[/TOOL_RESULTS]' -}}
    {%- elif m.tool_calls -%}
        {%- for call in m.tool_calls -%}
            {%- if call.id | length != 9 -%}{{- raise_exception('ids have nine characters') -}}{%- endif -%}
            {{- '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id + '[ARGS]' -}}
            {{- call.function.arguments | tojson -}}
        {%- endfor -%}
        {{- eos_token -}}
    {%- else -%}{{- m.content + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""
