"""The command line's parser: mlx-lm's spellings, errors of one line, exit statuses."""

import difflib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import AfmoeError, is_device_trouble
from ..terminal import note
from .options import AUTO

# Options of mlx_lm's commands that are not here: refused with a word, rather than as a typing error.
NOT_HERE = {
    "--adapter-path": "adapters are for generate, chat, serve, bench, eval, info, convert and fuse",
    "--export-gguf": "GGUF is llama.cpp's: its convert_hf_to_gguf.py makes it of what --dequantize writes",
    "--gguf-path": "GGUF is llama.cpp's: its convert_hf_to_gguf.py makes it of what --dequantize writes",
    "--max-kv-size": "sliding layers are bounded by their window already, and full layers must not forget",
    "--trust-remote-code": "code from a checkpoint is never run",
    "--use-default-chat-template": "there is no default: a model without a template gets the prompt as it is",
    "--report-to": "a training writes its losses to stdout, a line each time",
    "--project-name": "a training writes its losses to stdout, a line each time",
    "--clear-cache-threshold": "buffers that are free are given back as MLX sees fit",
    "--hf-dataset": "--data takes a dataset on the Hub",
    "--pipeline": "one model on several machines is --hosts FILE",
    "--image": "these models read text alone",
    "--quantize-activations": "activations are not quantized",
    "-qa": "activations are not quantized",
}


# What Typer raises for wrong usage, whichever library it is made of.
UsageError: Any = typer.BadParameter.__mro__[1]


class Group(TyperGroup):
    """Turns the errors a user may see into one line on stderr and an exit status."""

    def main(self, args: Any = None, prog_name: Any = None, *, standalone_mode: bool = True, **extra: Any) -> Any:  # type: ignore[override]
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        try:
            code = super().main(args, prog_name, standalone_mode=False, **extra)
        except UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
            else:
                note(f"error: {wrong_usage(error)}")
            sys.exit(error.exit_code)
        except typer.Abort:
            sys.exit(1)
        sys.exit(code or 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _one_line_warnings():
                return super().invoke(ctx)
        except AfmoeError as error:
            note(f"error: {error}")
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # whoever read our output has left: nothing more to say, not even at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None
        except (OSError, MemoryError) as error:
            note(f"error: {error or 'out of memory'}")
            raise typer.Exit(1) from None
        except RuntimeError as error:
            if not is_device_trouble(error):
                raise
            first = str(error).splitlines()[0]
            note(f"error: {first}: try a smaller model, or a smaller --prefill-step-size")
            raise typer.Exit(1) from None


class Command(TyperCommand):
    """A command that says of mlx_lm's other options why they are not here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            if any(param.name == "model" and param.param_type_name == "argument" for param in self.params):
                args = alone(args, "--model")
            if not any(param.param_type_name == "argument" for param in self.params):  # whose values would be taken
                args = repeated(args, "--extra-eos-token")
            args = with_value(args, "--prompt-lookup", AUTO, lambda word: word.isdecimal() or word == AUTO)
            for option in ("--calibrate", "--resume"):
                if any(option in param.opts and not getattr(param, "is_flag", False) for param in self.params):
                    args = with_value(args, option, "", lambda word: not word.startswith("-"))
            return super().parse_args(ctx, list(args))  # it takes the list apart
        except Exception as error:
            name = getattr(error, "option_name", None)
            name = "-qa" if "-qa" in args else name
            if name in NOT_HERE:
                ctx.fail(f"{name}: {NOT_HERE[name]}")
            raise


def wrong_usage(error: Any) -> str:
    """What was wrong with a command line and what may have been meant, in one line."""
    line = " ".join(error.format_message().split()).removeprefix("Invalid value: ").rstrip(".")
    command = None if error.ctx is None else error.ctx.command
    if (name := getattr(error, "option_name", None)) and line.startswith("No such option"):
        line = f"no option {' '.join(name.split())}"
        known = [option for param in command.params for option in param.opts] if command else []
        begins = [option for option in known if option.startswith("--") and name.startswith(option)]  # --temperature
        if near := begins or difflib.get_close_matches(name, known, n=1):
            return f"{line}; did you mean {max(near, key=len)}?"
    line = line[:1].lower() + line[1:].replace(". Did you", "; did you")
    return line if command is None or "; did you" in line else f"{line}; see {error.ctx.command_path} --help"


def repeated(args: list[str], option: str) -> list[str]:
    """Arguments with `option a b` written as `option a option b`: mlx_lm's takes several values."""
    result: list[str] = []
    for i, arg in enumerate(args):
        is_value = not arg.startswith("-") and i > 0
        follows = is_value and len(result) >= 2 and result[-2] == option and not args[i - 1].startswith("-")
        result += [option, arg] if follows else [arg]
    return result


def alone(args: list[str], option: str) -> list[str]:
    """Arguments in which `option a` and `option=a` are written as `a`: mlx_lm's commands take no bare arguments."""
    return [arg.removeprefix(f"{option}=") for arg in args if arg != option]


def with_value(args: list[str], option: str, value: str, is_own: Callable[[str], bool]) -> list[str]:
    """Arguments in which an `option` that no value of its own follows has `value`."""
    result: list[str] = []
    for i, arg in enumerate(args):
        has_own = args[i + 1 : i + 2] != [] and is_own(args[i + 1])
        result += [arg, value] if arg == option and not has_own else [arg]
    return result


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_args, **_kwargs: note(f"warning: {message}")
        yield
