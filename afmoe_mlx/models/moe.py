"""Sparse mixture of experts: which experts a token goes to, and the product with their weights.

B batch, L length, D hidden size, E experts, k experts a token, m an expert's intermediate size.
"""

from collections import Counter

import mlx.core as mx
import mlx.nn as nn

from ..device import compute_dtype, dequantizes, dequantizes_experts, is_cpu
from .layers import gated
from .linear import NVFP4_LARGEST, Adapted, dropped, quantized_product

# Rows are sorted by expert, so that each expert's weights are read once, from so many of them on, and from so many for
# each expert there is: Metal has no faster kernel for fewer, and a batch's step no use for the sorting.
SORT_FROM, SORT_FROM_PER_EXPERT = 64, 4

# Tokens up to which the row numbers of their products are kept: those of a batch's step.
NUMBERED = 32


def route(
    logits: mx.array,
    bias: mx.array | None,
    *,
    k: int,
    shared: int = 0,
    score_func: str = "sigmoid",
    normalize: bool,
    eps: float,
    scale: float,
) -> tuple[mx.array, mx.array]:
    """Choose `k` experts for each token: logits (..., E) -> weights (..., k) float32 and experts (..., k).

    The bias (E,) moves the choice alone; the weights are the unbiased scores. With `shared` experts the logits are
    (..., E + shared), the bias of the last of them is infinite, and the results have `shared` columns more, anywhere:
    those experts with a weight of 1.
    """
    logits = logits.astype(mx.float32)
    if shared:
        assert bias is not None
        logits = mx.where(bias < mx.inf, logits, -mx.inf)  # a score of 0, in no sum
    scores = mx.sigmoid(logits) if score_func == "sigmoid" else mx.softmax(logits, axis=-1)
    ranked = scores if bias is None else scores + bias
    chosen = k + shared
    experts = mx.stop_gradient(mx.argpartition(ranked, kth=-chosen, axis=-1)[..., -chosen:])
    weights = mx.take_along_axis(scores, experts, axis=-1)
    if normalize:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + eps)
    weights = weights * scale
    return mx.where(experts < logits.shape[-1] - shared, weights, 1) if shared else weights, experts


def sorts(rows: int, num_experts: int) -> bool:
    """Whether so many rows, each of one expert, are sorted by expert."""
    return rows >= max(SORT_FROM, SORT_FROM_PER_EXPERT * num_experts)


class ExpertLinear(Adapted, nn.Module):
    """One linear map an expert, stacked: weight (E, out, in)."""

    def __init__(self, num_experts: int, input_dims: int, output_dims: int) -> None:
        super().__init__()
        self.weight = mx.zeros((num_experts, output_dims, input_dims))

    def __call__(self, x: mx.array, experts: mx.array, rows: mx.array | None = None, *, ordered: bool) -> mx.array:
        """x (..., 1, in), or its rows `rows` (...), times the weight of `experts` (...), which may be in order."""
        dtype = compute_dtype(x.dtype)
        weight = self.weight.swapaxes(-1, -2).astype(dtype)
        y = mx.gather_mm(x.astype(dtype), weight, lhs_indices=rows, rhs_indices=experts, sorted_indices=ordered)
        return adapted_experts(y.astype(x.dtype), x, self, experts, rows, ordered=ordered)

    def to_quantized(
        self, group_size: int = 64, bits: int = 4, mode: str = "affine", global_scale: bool = False
    ) -> "QuantizedExpertLinear":
        return QuantizedExpertLinear(self.weight, group_size, bits, mode, global_scale=global_scale)


class QuantizedExpertLinear(Adapted, nn.Module):
    """ExpertLinear with weights quantized by `mx.quantize`; nvfp4 may have one more scale for each expert."""

    def __init__(
        self, weight: mx.array, group_size: int, bits: int, mode: str = "affine", *, global_scale: bool = False
    ) -> None:
        super().__init__()
        self.group_size, self.bits, self.mode = group_size, bits, mode
        if global_scale:
            self.global_scale = mx.abs(weight).max(axis=(-2, -1)).astype(mx.float32)
            parts = [
                mx.quantize(w, group_size, bits, mode=mode, global_scale=scale)
                for w, scale in zip(weight, self.global_scale, strict=True)
            ]
            self.weight, self.scales = (mx.stack(list(part)) for part in zip(*parts, strict=True))
        else:
            self.weight, self.scales, *biases = mx.quantize(weight, group_size, bits, mode=mode)
            if biases:
                self.biases = biases[0]
        self.freeze()

    def __call__(self, x: mx.array, experts: mx.array, rows: mx.array | None = None, *, ordered: bool) -> mx.array:
        """As ExpertLinear."""
        return adapted_experts(self._base(x, experts, rows, ordered), x, self, experts, rows, ordered=ordered)

    def _base(self, x: mx.array, experts: mx.array, rows: mx.array | None, ordered: bool) -> mx.array:
        if ordered and not self.training and "global_scale" not in self:
            if dequantizes(max(experts.size, SORT_FROM)):  # so many were sorted, of which these may be a part
                return self._by_expert(x, experts)
            if dequantizes_experts(experts.size):
                return self._all_dequantized(x, experts)
        if "global_scale" in self and is_cpu():  # the kernel there takes none: it scales the outputs as well
            scale = self.global_scale[experts][..., None, None] / NVFP4_LARGEST
            return (self._product(x.astype(mx.float32), experts, rows, ordered) * scale).astype(x.dtype)
        return self._product(x, experts, rows, ordered, self.get("global_scale"))

    def _by_expert(self, x: mx.array, experts: mx.array) -> mx.array:
        """Rows (N, 1, in) of experts (N,) in order, an expert at a time: for the CPU, where to wait costs nothing."""
        chosen: list[int] = experts.tolist()  # type: ignore[assignment]
        parts, start = [], 0
        for expert, count in Counter(chosen).items():
            parts.append(quantized_product(x[start : start + count], self, expert))
            start += count
        return mx.concatenate(parts)

    def _all_dequantized(self, x: mx.array, experts: mx.array) -> mx.array:
        """Rows (N, 1, in) of experts (N,) in order, times the weights of all experts in x's dtype."""
        arrays = self.weight, self.scales, self.get("biases")
        weight = mx.dequantize(*arrays, self.group_size, self.bits, self.mode, dtype=x.dtype)
        return mx.gather_mm(x, weight.swapaxes(-1, -2), rhs_indices=experts, sorted_indices=True)

    def _product(
        self,
        x: mx.array,
        experts: mx.array,
        rows: mx.array | None,
        ordered: bool,
        global_scale: mx.array | None = None,
    ) -> mx.array:
        return mx.gather_qmm(
            x,
            self.weight,
            self.scales,
            self.get("biases"),
            lhs_indices=rows,
            rhs_indices=experts,
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
            global_scale=global_scale,
            sorted_indices=ordered,
        ).astype(x.dtype)


def adapted_experts(
    y: mx.array, x: mx.array, module: nn.Module, experts: mx.array, rows: mx.array | None, *, ordered: bool
) -> mx.array:
    """What the adapter of all experts' maps, if there is one, makes of y, which they made of x or its rows.

    lora_a (E, in, r), lora_b (E, r, out): a change of low rank of each, whose scale is in lora_b, or in `lora_scale`.
    """
    if "lora_a" not in module:
        return y
    dtype = compute_dtype(x.dtype)
    a, b = module.lora_a.astype(dtype), module.lora_b.astype(dtype)
    x = dropped(x, module).astype(dtype)
    z = mx.gather_mm(x, a, lhs_indices=rows, rhs_indices=experts, sorted_indices=ordered)
    if module.lora_scale != 1:
        z = z * module.lora_scale
    return y + mx.gather_mm(z, b, rhs_indices=experts, sorted_indices=ordered).astype(y.dtype)


class RowNumbers:
    """The rows that the products of few tokens take, which each step would make again, by a kernel a product."""

    def __init__(self, chosen: int) -> None:
        self._chosen = chosen
        self._made: dict[int, tuple[mx.array, mx.array]] = {}

    def of(self, tokens: int) -> tuple[mx.array, mx.array]:
        """(tokens, k) each: a token's row for each of its experts, and the rows one by one."""
        if tokens not in self._made:
            k = self._chosen
            # from lists, so that they are evaluated: another thread could not do it
            first = mx.array([[token] * k for token in range(tokens)], mx.uint32)
            rows = mx.array([[*range(token * k, token * k + k)] for token in range(tokens)], mx.uint32)
            self._made[tokens] = first, rows
        return self._made[tokens]


class Experts(nn.Module):
    """All experts of a layer, each a gated MLP. Fused, `gate_up_proj` stands for gate and up."""

    def __init__(
        self, num_experts: int, hidden_size: int, intermediate_size: int, *, chosen: int, hidden_act: str = "silu"
    ) -> None:
        super().__init__()
        self.gate_proj = ExpertLinear(num_experts, hidden_size, intermediate_size)
        self.up_proj = ExpertLinear(num_experts, hidden_size, intermediate_size)
        self.down_proj = ExpertLinear(num_experts, intermediate_size, hidden_size)
        self.hidden_act = hidden_act
        self.num_experts = num_experts
        self._gated = gated(hidden_act)
        self.number_rows(chosen)

    def number_rows(self, chosen: int) -> None:
        """Keep the row numbers of the products of few tokens, each with so many experts."""
        self._numbers = RowNumbers(chosen)

    def __call__(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        """x (..., D), experts and weights (..., k) -> their outputs weighted and summed in float32, (..., D)."""
        if sorts(experts.size, self.num_experts):
            flat = experts.flatten()
            order = mx.argsort(flat)
            tokens = x.reshape(-1, x.shape[-1])[order // experts.shape[-1]]
            y = self.outputs(tokens[:, None], flat[order], ordered=True)[:, 0]
            y = y[mx.argsort(order)].reshape(*experts.shape, -1)
        elif experts.size <= NUMBERED * experts.shape[-1]:
            count = experts.size // experts.shape[-1]
            flat = experts if count == 1 else experts.reshape(count, -1)
            x = x if count == 1 else x.reshape(count, 1, -1)
            y = self.outputs(x, flat, *self._numbers.of(count)).reshape(*experts.shape, -1)
        else:
            y = self.outputs(mx.expand_dims(x, (-2, -3)), experts).squeeze(-2)
        return (y * weights[..., None]).sum(axis=-2)

    def outputs(
        self,
        x: mx.array,
        experts: mx.array,
        first: mx.array | None = None,
        rows: mx.array | None = None,
        *,
        ordered: bool = False,
    ) -> mx.array:
        """The MLPs of experts (..., n), of inputs (..., 1, D) or their rows `first`: (..., n, 1, D).

        first and rows: which of its inputs' rows each product takes, by default one each.
        """
        if "gate_up_proj" in self:
            gate, up = mx.split(self.gate_up_proj(x, experts, first, ordered=ordered), 2, axis=-1)
        else:
            gate = self.gate_proj(x, experts, first, ordered=ordered)
            up = self.up_proj(x, experts, first, ordered=ordered)
        return self.down_proj(self._gated(gate, up), experts, rows, ordered=ordered)
