"""`--kv-bits`: keys and values of a loaded model's caches in few bits."""

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

    def apply(self, model: CausalLM) -> None:
        """Have a model's caches quantized as asked, and say which layers that is; InputError if they cannot be."""
        if self.bits is None:
            return
        fitting = 64 if model.config.head_dim % 64 == 0 else 32
        model.kv_quantization = KVQuantization(self.bits, self.group_size or fitting, self.start)
        model.make_cache()
        types = model.config.layer_types
        full = types.count("full_attention")
        bounded = f"; the {len(types) - full} others are bounded and stay as they are" if full < len(types) else ""
        note(f"Keys and values of {full} full-attention layers in {self.bits} bits{bounded}", dim=True)
