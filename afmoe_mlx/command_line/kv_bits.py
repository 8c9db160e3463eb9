"""`--kv-bits`: the options of a quantized KV cache."""

from dataclasses import dataclass

from ..cache import KVQuantization
from ..models import CausalLM
from ..terminal import note


@dataclass(frozen=True)
class KVOptions:
    """--kv-bits, None to keep keys as they are, --kv-group-size, None for what fits, and --quantized-kv-start."""

    bits: int | None = None
    group_size: int | None = None
    start: int = 0

    @property
    def quantization(self) -> KVQuantization | None:
        """What `load` is asked for; InputError for what there is no kernel for."""
        return None if self.bits is None else KVQuantization(self.bits, self.group_size, self.start)


def tell_kv_bits(model: CausalLM) -> None:
    """Say which layers of a loaded model keep their keys and values in few bits, if any do."""
    if model.kv_quantization is None:
        return
    types = model.config.layer_types
    full = types.count("full_attention")
    bounded = f"; the {len(types) - full} others are bounded and stay as they are" if full < len(types) else ""
    note(f"Keys and values of {full} full-attention layers in {model.kv_quantization.bits} bits{bounded}", dim=True)
