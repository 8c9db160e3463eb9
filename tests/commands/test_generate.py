"""`afmoe-mlx generate`: the answer on stdout, everything else on stderr, one line an error."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from afmoe_mlx import generate, load, stream_generate
from afmoe_mlx.cache import load_cache
from afmoe_mlx.messages.reasoning import split_thinking
from helpers.chat_templates import CHATML, LFM25
from helpers.command_line import run
from helpers.conversations import OPENING
from helpers.scripted import scripted_folder
from helpers.tiny import tiny_folder


def test_the_answer_alone_is_on_stdout(model: str) -> None:
    result = run("generate", "--model", model, "--prompt", "hello", "-m", "12")
    loaded = load(model)
    ids = loaded[1].apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True)
    assert result.code == 0
    assert result.out == generate(*loaded, ids, max_tokens=12) + "\n"
    assert "tokens/s" in result.err


def test_verbose_false_prints_the_answer_alone(model: str) -> None:
    options = ("generate", "--model", model, "--prompt", "hello", "--verbose", "False")
    stop = run(*options, "-m", "3").out[1]
    assert run(*options, "-m", "3", "--stop", stop).err == ""
    assert run(*options, "-m", "3").err == "The answer is cut off after 3 tokens: --max-tokens allows more.\n"


def test_json_holds_text_and_statistics(model: str) -> None:
    result = run("generate", "--model", model, "-p", "hello", "-m", "5", "--json")
    value = json.loads(result.out)
    assert (value["finish_reason"], value["generation_tokens"]) == ("length", 5)
    assert value.keys() == {
        "text",
        "reasoning",
        "tool_calls",
        "finish_reason",
        "prompt_tokens",
        "generation_tokens",
        "prompt_tps",
        "generation_tps",
        "peak_memory_gb",
    }


def test_reasoning_is_on_stderr_or_a_field_and_the_answer_alone_on_stdout(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path / "thinker", template=OPENING))
    options = ("--model", folder, "-p", "hello", "-m", "30", "--reasoning-budget", "6")
    loaded = load(folder)
    ids = loaded[1].apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True)
    thought, answer = split_thinking("<think>\n" + generate(*loaded, ids, max_tokens=30, reasoning_budget=6))
    assert thought.strip()
    assert answer
    result = run("generate", *options, "--verbose", "False")
    assert result.out == answer + "\n"
    assert thought.strip() in result.err
    told = json.loads(run("generate", *options, "--json").out)
    assert (told["text"], told["reasoning"], told["finish_reason"]) == (answer, thought.strip(), "length")


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"properties": {"days": {}}}}}]


@pytest.fixture
def tools(tmp_path: Path) -> str:
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    return str(tmp_path / "tools.json")


@pytest.mark.parametrize(
    ("template", "call"),
    [
        (CHATML, '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'),
        (LFM25, "<|tool_call_start|>[weather(city='Zürich')]<|tool_call_end|>"),
    ],
    ids=["hermes", "pythonic"],
)
def test_tool_calls_are_printed_apart_and_a_field(template: str, call: str, tmp_path: Path, tools: str) -> None:
    folder = str(scripted_folder(tmp_path / "m", [f"<think>\nhm</think>\nLet me see. {call} So."], template=template))
    options = ("generate", "--model", folder, "-p", "Sun?")
    result = run(*options, "--tools", tools)
    assert result.out == 'Let me see. \nweather({"city": "Zürich"})\n So.\n'
    assert result.err.startswith("hm\n")
    told = json.loads(run(*options, "--tools", tools, "--json").out)
    assert (told["text"], told["reasoning"], told["finish_reason"]) == ("Let me see.  So.", "hm", "stop")
    assert told["tool_calls"] == [{"name": "weather", "arguments": '{"city": "Zürich"}', "error": None}]
    assert told["prompt_tokens"] > json.loads(run(*options, "--json").out)["prompt_tokens"]
    assert run(*options).out == f"Let me see. {call} So.\n"
    cut = run(*options, "--tools", tools, "-m", "18").out
    assert cut.startswith("Let me see. \nweather(")
    assert cut.endswith(")  # malformed: the answer ends inside the call\n")


def test_calls_without_an_end_are_cut_off_by_the_limit(tmp_path: Path, tools: str) -> None:
    call = '<tool_call>{"name": "weather", "arguments": {"days": 3}}</tool_call>'  # 17 tokens
    folder = str(scripted_folder(tmp_path / "m", [call], endless=True))
    told = json.loads(run("generate", "--model", folder, "-p", "x", "--tools", tools, "-m", "46", "--json").out)
    whole = {"name": "weather", "arguments": '{"days": 3}', "error": None}
    cut = {"name": "weather", "arguments": '{"da', "error": "the answer ends inside the call"}
    assert (told["text"], told["finish_reason"], told["tool_calls"]) == ("", "length", [whole, whole, cut])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("{", "not valid JSON"),
        ("[" * 99999, "not valid JSON"),
        ("\xff", "not UTF-8 (byte 0)"),
        ("{}", "tools are of type dict"),
        ('[{"type": "function"}]', "tools[0] has no function with a name"),
        ("[]", "this model's chat template knows no tools"),
    ],
)
def test_a_file_without_tools_is_refused_in_a_line(content: str | None, words: str, model: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    result = run("generate", "--model", model, "-p", "hello", "--tools", str(path))
    assert (result.code, result.out) == (1, "")
    assert words in result.err
    assert result.err.count("\n") == 1
    assert run("generate", "--model", model, "-p", "hello", "--tools", str(path), "--ignore-chat-template").code == 2


@pytest.mark.parametrize("prefill", ["<think>\nhello", "<think>\nhello</think>", "hello"])
def test_an_answer_that_is_begun_for_the_model_is_parted_where_it_goes_on(prefill: str, model: str) -> None:
    options = ("--model", model, "-p", "hello", "-m", "9", "--prefill-response", prefill)
    told = json.loads(run("generate", *options, "--json").out)
    is_thought = prefill == "<think>\nhello"
    assert bool(told["reasoning"]) is is_thought
    assert bool(told["text"]) is not is_thought


def test_a_saved_conversation_has_the_reasoning_whole_and_hands_it_back_closed(tmp_path: Path) -> None:
    folder, path = str(tiny_folder(tmp_path / "thinker", template=OPENING)), str(tmp_path / "saved")
    options = ("--model", folder, "-m", "8", "--prompt-cache-file", path, "--json")
    first = json.loads(run("generate", *options, "-p", "hello").out)
    model, tokenizer = load(folder)
    (question, answer) = json.loads(load_cache(path, model).note)
    assert answer["content"].startswith("<think>\n")
    assert first["reasoning"] in answer["content"]
    second = json.loads(run("generate", *options, "-p", "the").out)
    closed = {"role": "assistant", "content": answer["content"] + "\n</think>\n\n"}
    ids = tokenizer.apply_chat_template(
        [question, closed, {"role": "user", "content": "the"}], add_generation_prompt=True
    )
    assert second["prompt_tokens"] == len(ids)
    assert second["reasoning"] == generate(model, tokenizer, ids, max_tokens=8).strip()
    assert second["cached_tokens"] > 0


def test_a_dash_reads_the_prompt_from_stdin(model: str) -> None:
    options = ("generate", "--model", model, "-m", "6", "--prompt")
    assert run(*options, "-", stdin="hello").out == run(*options, "hello").out


def test_system_prompt_prefill_and_raw_prompts_reach_the_template(model: str) -> None:
    def prompt_tokens(*more: str) -> int:
        return json.loads(run("generate", "--model", model, "-p", "hello", "-m", "1", "--json", *more).out)[
            "prompt_tokens"
        ]

    plain = prompt_tokens()
    assert prompt_tokens("--ignore-chat-template") < plain
    assert prompt_tokens("--system-prompt", "the world") > plain
    assert prompt_tokens("--prefill-response", "hello, hello") > plain


def test_stop_seed_and_extra_eos_are_honoured(model: str) -> None:
    options = ("generate", "--model", model, "-p", "hello", "-m", "30", "--temp", "2", "--seed", "3")
    text = run(*options).out
    assert run(*options).out == text
    assert run(*options, "--stop", text[5:7]).out == text[: text.index(text[5:7])] + "\n"
    assert (
        run("chat", "hello", *options[1:3], *options[5:], "--stop", text[5:7]).out
        == run(*options, "--stop", text[5:7]).out
    )
    forced = ("--extra-eos-token", "9", "--logit-bias", "9=1000")
    assert run(*options, *forced).out == run("chat", "hello", *options[1:3], *forced).out == "\n"


def test_a_biased_token_is_all_that_is_written(model: str) -> None:
    tokenizer = load(model)[1]
    token = tokenizer.token_to_id("<|im_start|>")
    result = run("generate", "--model", model, "-p", "hello", "-m", "3", "--logit-bias", f"{token}=1000")
    assert result.out == "<|im_start|>" * 3 + "\n"


def test_a_chat_template_from_a_file_takes_the_place_of_the_models(model: str, tmp_path: Path) -> None:
    template = tmp_path / "plain.jinja"
    template.write_text("{{ messages[-1].content }}{{ more }}")
    options = ("--model", model, "-m", "6")
    own = ("--chat-template", str(template), "--chat-template-config", '{"more": " world"}')
    expected = run("generate", *options, "-p", "hello world", "--ignore-chat-template").out
    assert run("generate", *options, "-p", "hello", *own).out == expected
    assert run("chat", *options, "hello", *own).out == expected
    assert run("generate", *options, "-p", "hello", "--ignore-chat-template", *own).code == 2


def test_what_generation_config_does_is_said_and_what_it_does_not(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    config = {"do_sample": True, "temperature": 0.15, "num_beams": 4, "max_time": 3, "use_cache": True}
    (folder / "generation_config.json").write_text(json.dumps(config))
    options = ("--model", str(folder), "-m", "3")
    result = run("generate", *options, "-p", "hello")
    assert result.err.splitlines()[0] == "generation_config.json: not used: max_time, num_beams"
    assert "Sampling: temperature 0.15, by the model's generation_config.json\n" in result.err
    assert "Sampling: temperature 0.7\n" in run("generate", *options, "-p", "hello", "--temp", "0.7").err
    assert "Sampling: temperature 0," in run("generate", *options, "-p", "hello", "--temp", "0").err
    told = run("chat", *options, "hello").err.splitlines()
    assert told[0] == "generation_config.json: not used: max_time, num_beams"
    assert "Sampling" not in "".join(told)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temp", "-1"], "temperature"),
        (["--logit-bias", "5"], "logit_bias is '5', expected ID=VALUE"),
        (["--logit-bias", "5=inf"], "ID=VALUE"),
        (["--logit-bias", "a=1"], "ID=VALUE"),
        (["--logit-bias", "9999=1"], "logit_bias has token 9999: expected ids from 0 to"),
        (["--no-repeat-ngram-size", "-1"], "no_repeat_ngram_size"),
        (["--chat-template", "/no/such/file"], "--chat-template /no/such/file: cannot be read (No such file"),
        (["--chat-template", "/"], "--chat-template /: cannot be read"),
        (["--top-p", "1.5"], "top_p"),
        (["--max-tokens", "0"], "max_tokens"),
        (["--chat-template-config", "{"], "--chat-template-config"),
        (["--chat-template-config", "[1]"], "JSON object"),
        (["--chat-template-config", '{"messages": []}'], "messages"),
        (["--extra-eos-token", "no such token"], "no such token"),
        (["--ignore-chat-template", "--system-prompt", "x"], "--system-prompt"),
        (["--stop", ""], "stop"),
        (["--revision", "main"], "revision"),
    ],
)
def test_errors_are_one_line_and_exit_with_1(arguments: list[str], words: str, model: str) -> None:
    result = run("generate", "--model", model, "--prompt", "hello", *arguments)
    assert result.code == 1
    assert words in result.err
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert result.out == ""


def test_an_unknown_config_key_is_a_warning_of_one_line(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m", some_new_key=3)
    result = run("generate", "--model", str(folder), "-p", "hello", "-m", "1", "--verbose", "F")
    assert result.code == 0
    assert result.err.startswith("warning: config: unknown keys ignored: some_new_key\n")
    assert result.err.count("warning") == 1


def test_convert_writes_a_model_that_answers(model: str, tmp_path: Path) -> None:
    target = str(tmp_path / "converted")
    result = run("convert", "--hf-path", model, "--mlx-path", target, "-q", "--q-bits", "8", "--q-group-size", "32")
    assert result.code == 0
    assert result.out == ""
    assert target in result.err
    assert run("generate", "--model", target, "-p", "hello", "-m", "3").code == 0
    again = run("convert", "--hf-path", model, "--mlx-path", target, "-q")
    assert again.code == 1
    assert "exists" in again.err


def test_interrupting_an_answer_prints_what_there_is_and_exits_with_130(model: str) -> None:
    command = [
        sys.executable,
        "-m",
        "afmoe_mlx",
        "generate",
        "--model",
        model,
        "-p",
        "hello",
        "-m",
        "480",
        "--temp",
        "0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    first = process.stdout.read(1)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert (first + rest).endswith(b"\n")
    assert b"Traceback" not in errors


def test_a_reader_that_leaves_is_no_traceback(model: str) -> None:
    command = f"{sys.executable} -m afmoe_mlx generate --model {model} -p hello -m 200 | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_quantized_keys_are_said_and_used(model: str) -> None:
    options = ("--model", model, "-p", "hello", "-m", "4", "--kv-group-size", "32")
    result = run("generate", *options, "--kv-bits", "8")
    assert result.code == 1  # the tiny model's heads are narrower than any group
    assert "heads have 8 dimensions" in result.err
    result = run("generate", "-p", "hello", "-m", "4", "--kv-bits", "8", "--kv-group-size", "32")
    assert result.code == 0
    assert "2 full-attention layers in 8 bits; the 6 others are bounded" in result.err


def test_bits_that_keys_cannot_have_are_refused() -> None:
    result = run("generate", "-p", "hello", "--kv-bits", "7")
    assert (result.code, result.err.splitlines()[-1]) == (1, "error: kv_bits is 7: expected one of 2, 3, 4, 5, 6, 8")


def test_statistics_say_that_an_answer_was_interrupted(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from afmoe_mlx.commands import generate as command

    def interrupted(*arguments: object, **options: object) -> Iterator[object]:
        yield next(stream_generate(*arguments, **options))  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "stream_generate", interrupted)
    result = run("generate", "--model", model, "-p", "hello", "-m", "9")
    assert result.code == 130
    assert "(interrupted)" in result.err


def test_groups_of_keys_are_as_large_as_fits() -> None:
    assert run("generate", "-p", "hello", "-m", "2", "--kv-bits", "8").code == 0


def test_a_file_of_one_machines_cache_is_refused_with_several(tmp_path: Path) -> None:
    result = run("generate", "-p", "x", "--hosts", "hosts.json", "--prompt-cache-file", str(tmp_path / "x.safetensors"))
    assert (result.code, result.out) == (2, "")
    assert "use --disk-cache" in result.err
