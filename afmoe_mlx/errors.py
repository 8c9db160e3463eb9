"""The errors a user may see: one line each, saying what was found, what was expected and what to do."""

# How MLX begins its messages when the device or its memory gives out.
_DEVICE_TROUBLE = ("[METAL]", "[metal", "[malloc", "[cuda", "[CUDA", "Unable to allocate")

# How it begins them when another host is gone.
_LINK_TROUBLE = ("[ring]", "[jaccl]")


class AfmoeError(Exception):
    """Base of every error that afmoe_mlx raises on purpose."""


class ConfigError(AfmoeError):
    """A model's config asks for something contradictory, unknown or not implemented."""


class CheckpointError(AfmoeError):
    """A checkpoint's files are missing, damaged or do not fit the config."""


class HubError(AfmoeError):
    """A model could not be found on, or fetched from, the Hugging Face Hub."""


class TokenizerError(AfmoeError):
    """A tokenizer or chat template is missing, damaged or refuses its input."""


class CacheError(AfmoeError):
    """A cache cannot do what was asked of it, such as stepping back too far."""


class FitError(AfmoeError):
    """A model and its cache need more memory than this machine has for them."""


class InputError(AfmoeError):
    """An argument of a call makes no sense: a shape, a range, a combination."""


class OptionError(InputError, TypeError):
    """A call is given an option that it does not have."""


class ContextFullError(InputError):
    """A conversation has more tokens than its context takes."""


class HostError(AfmoeError):
    """A machine that holds a part of a model cannot be reached, does not fit the others, or is lost."""


class AdapterError(AfmoeError):
    """An adapter's files are missing or damaged, or it was not made for the model."""


class TrainingError(AfmoeError):
    """A training cannot go on: it has come to what is no number, or its processes do not meet."""


class SessionError(AfmoeError):
    """A saved chat cannot be found, read or written."""


class ConversionError(AfmoeError):
    """A model cannot be converted as asked."""


class SelfTestError(AfmoeError):
    """The self-test could not be run to its end."""


def is_link_trouble(error: RuntimeError) -> bool:
    """Whether MLX says that another host is gone."""
    return str(error).startswith(_LINK_TROUBLE)


def is_device_trouble(error: RuntimeError) -> bool:
    """Whether it is the device or its memory that gave out, rather than the program."""
    return str(error).startswith(_DEVICE_TROUBLE)
