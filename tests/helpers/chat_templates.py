"""Chat templates of many makers, conversations, and what the one makes of the other."""

from typing import Any

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content is defined and message.reasoning_content %}
            {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- message.content or '' }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- set call = tool_call.function or tool_call %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' ~ (call.arguments | tojson) }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%Y") %}
    {%- else %}
        {%- set date_string = "2024" %}
    {%- endif %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "\\n<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ (message['content'] or '') | trim }}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """\
{{ bos_token }}{% set loop_messages = messages %}
{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% endif %}
{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate\\nuser/assistant!') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}
{{ ' ' + message['content'] + eos_token }}{% endif %}
{% endfor %}
"""

LFM2 = """\
{{- bos_token -}}
{%- set ns = namespace(system_prompt="") -%}
{%- if messages[0]["role"] == "system" -%}
    {%- set ns.system_prompt = messages[0]["content"] -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
    {%- set ns.system_prompt = ns.system_prompt + ("\\n" if ns.system_prompt else "") -%}
    {%- set ns.system_prompt = ns.system_prompt + "List of tools: <|tool_list_start|>[" -%}
    {%- for tool in tools -%}
        {%- if tool is not string -%}{%- set tool = tool | tojson -%}{%- endif -%}
        {%- set ns.system_prompt = ns.system_prompt + tool -%}
        {%- if not loop.last -%}{%- set ns.system_prompt = ns.system_prompt + ", " -%}{%- endif -%}
    {%- endfor -%}
    {%- set ns.system_prompt = ns.system_prompt + "]<|tool_list_end|>" -%}
{%- endif -%}
{%- if ns.system_prompt -%}
    {{- "<|im_start|>system\\n" + ns.system_prompt + "<|im_end|>\\n" -}}
{%- endif -%}
{%- for message in messages -%}
    {{- "<|im_start|>" + message["role"] + "\\n" -}}
    {%- set content = message["content"] -%}
    {%- if content is defined and content is not string -%}{%- set content = content | tojson -%}{%- endif -%}
    {%- if message["role"] == "tool" -%}
        {%- set content = "<|tool_response_start|>" + content + "<|tool_response_end|>" -%}
    {%- endif -%}
    {{- (content or "") + "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}
"""

# In the manner of LFM2.5's: reasoning of the last turn in a field, calls as Python's.
LFM25 = """\
{{- bos_token -}}
{%- macro literal(value) -%}
    {%- if value is string -%}{{- "'" ~ value ~ "'" -}}
    {%- elif value is mapping -%}{{- value | tojson -}}
    {%- else -%}{{- value | string -}}{%- endif -%}
{%- endmacro -%}
{%- set last = namespace(user=-1) -%}
{%- for message in messages if message.role == "user" -%}{%- set last.user = messages.index(message) -%}{%- endfor -%}
{%- set system = messages[0].content if messages[0].role == "system" else "" -%}
{%- if tools -%}
    {%- set system = system ~ ("\\n\\n" if system else "") ~ "List of tools: " ~ (tools | tojson) -%}
{%- endif -%}
{%- if system -%}{{- "<|im_start|>system\\n" ~ system ~ "<|im_end|>\\n" -}}{%- endif -%}
{%- for message in messages if message.role != "system" -%}
    {{- "<|im_start|>" ~ message.role ~ "\\n" -}}
    {%- if message.thinking is defined and messages.index(message) > last.user -%}
        {{- "<think>" ~ message.thinking ~ "</think>" -}}
    {%- endif -%}
    {{- message.content -}}
    {%- if message.tool_calls is defined -%}
        {{- "<|tool_call_start|>[" -}}
        {%- for call in message.tool_calls -%}
            {{- call["function"]["name"] ~ "(" -}}
            {%- for name, value in call["function"]["arguments"].items() -%}
                {{- name ~ "=" ~ literal(value) ~ ("" if loop.last else ", ") -}}
            {%- endfor -%}
            {{- ")" ~ ("" if loop.last else ", ") -}}
        {%- endfor -%}
        {{- "]<|tool_call_end|>" -}}
    {%- endif -%}
    {{- "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}
"""

# In the manner of Qwen3-Coder's and of Trinity-Large-Thinking's.
XML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + ('user' if message.role == 'tool' else message.role) + '\\n' }}
    {%- if loop.first and tools %}
        {{- '<tools>' + (tools | tojson) + '</tools> <tool_call><function=name>…</function></tool_call>\\n' }}
    {%- endif %}
    {%- if message.reasoning_content %}{{- '<think>' + message.reasoning_content + '</think>' }}{%- endif %}
    {{- '<tool_response>' + message.content + '</tool_response>' if message.role == 'tool' else message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n<function=' + call.function.name + '>\\n' }}
        {%- for name, value in call.function.arguments | items %}
            {{- '<parameter=' + name + '>\\n' + (value if value is string else value | tojson) + '\\n</parameter>\\n' }}
        {%- endfor %}
        {{- '</function>\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}
"""

GENERATION = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- generation %}
        {{- message.content + eos_token }}
        {%- endgeneration %}
    {%- else %}
        {{- '<' + message.role + '>' + (message.content or '') }}
    {%- endif %}
{%- endfor %}
"""

MACROS = """\
{%- macro show(value, depth=0) -%}
    {%- if value is mapping -%}
        {%- for key, item in value | dictsort -%}{{ '  ' * depth ~ key }}:
{{ show(item, depth + 1) }}{%- endfor -%}
    {%- else -%}{{ '  ' * depth ~ value }}
{% endif -%}
{%- endmacro -%}
{%- set state = namespace(users=0, last=none) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- if message.role == 'user' %}{% set state.users = state.users + 1 %}{% endif %}
    {%- if state.users > 1 %}{% break %}{% endif %}
    {{- show(message) }}
{%- endfor %}
{{ state.users }} {{ dict(a=1, b="é<&>'") | tojson(indent=2) }}
{{ (tools or []) | tojson(indent=4, sort_keys=true) }}
{{ messages | map(attribute='role') | join(',') }} {{ messages | length }} {{ documents is none }}
"""

TEMPLATES = {
    "chatml": CHATML,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "lfm2": LFM2,
    "generation": GENERATION,
    "macros": MACROS,
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "Où ? <b>", "parameters": {"type": "object", "properties": {}}},
    },
    {"type": "function", "function": {"name": "clock", "parameters": {}}},
]
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "  Hello, 世界 👋\n"}
ASSISTANT = {"role": "assistant", "content": "Hi there. "}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "n": 1.5}}}],
}
CHATS: dict[str, list[dict[str, Any]]] = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ASSISTANT, USER],
    "answered": [USER, ASSISTANT],
    "tools": [SYSTEM, USER, CALL, {"role": "tool", "content": '{"sun": true}'}, ASSISTANT, USER],
    "reasoning": [USER, {"role": "assistant", "thinking": "hm\n", "content": "Yes."}, USER],
    "users": [USER, USER],
    "blocks": [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}],
}
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

GOLDENS = {
    ("chatml", "tools"): (
        "<|im_start|>system\nBe brief.\n\n# Tools\n<tools>\n"
        '{"type": "function", "function": {"name": "weather", "description": "Où ? <b>", '
        '"parameters": {"type": "object", "properties": {}}}}\n'
        '{"type": "function", "function": {"name": "clock", "parameters": {}}}\n'
        "</tools><|im_end|>\n"
        "<|im_start|>user\n  Hello, 世界 👋\n<|im_end|>\n"
        '<|im_start|>assistant\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich", "n": 1.5}}\n'
        "</tool_call><|im_end|>\n"
        '<|im_start|>user\n<tool_response>\n{"sun": true}\n</tool_response><|im_end|>\n'
        "<|im_start|>assistant\nHi there. <|im_end|>\n"
        "<|im_start|>user\n  Hello, 世界 👋\n<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    ("lfm2", "system"): (
        "<s><|im_start|>system\nBe brief.\nList of tools: <|tool_list_start|>["
        '{"type": "function", "function": {"name": "weather", "description": "Où ? <b>", '
        '"parameters": {"type": "object", "properties": {}}}}, '
        '{"type": "function", "function": {"name": "clock", "parameters": {}}}'
        "]<|tool_list_end|><|im_end|>\n"
        "<|im_start|>user\n  Hello, 世界 👋\n<|im_end|>\n<|im_start|>assistant\n"
    ),
    ("macros", "turns"): (
        "content:\n    Hello, 世界 👋\n\nrole:\n  user\ncontent:\n  Hi there. \nrole:\n  assistant\n"
        '2 {\n  "a": 1,\n  "b": "é<&>\'"\n}\n[]\nsystem,user,assistant,user 4 True'
    ),
}
