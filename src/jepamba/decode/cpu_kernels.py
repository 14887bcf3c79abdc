# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
"""One token through the model on a CPU, compiled by Numba: one call for all layers, on one thread.

A step reads each weight once, so its time is that of reading the weights from memory. See `packed` for their layout.

Legend: D d_model, I inner width of a mixer (H heads × P), N state, C channels of the convolution, W1 = W − 1 previous
inputs, M hidden width of an MLP, E embedding width, V vocabulary, L layers; a padded width ends in p.
"""

from __future__ import annotations

import math
from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from jepamba.decode.packed import ABSENT, BITS, BLOCK_ROWS, FLOAT, FP8, FP8_INPUT_SCALE, INT4, INT8, LANES, PLANES
from jepamba.ops.norms import GATED_NORM_EPS, RMS_EPS

# Sums may be reordered and products fused into them. Infinities and NaN are kept.
_FAST = {"reassoc", "contract", "nsz", "arcp"}
RUN = 128
"""Columns that are added up before they are added to the output: sums of sums lose fewer digits than one long sum."""
_INTS, _FLOATS = ir.VectorType(ir.IntType(32), LANES), ir.VectorType(ir.FloatType(), LANES)


def _splat(value: int) -> ir.Constant:
    return ir.Constant(_INTS, [value] * LANES)


def _unpack(builder: Any, words: Any, kind: int, plane: int) -> Any:
    """Return the values of a plane of `words` as floats; the row's scale contains the remaining factor."""
    bits = BITS[kind]
    top = builder.shl(words, _splat(32 - bits * (plane + 1)))
    if kind == FLOAT:
        return builder.bitcast(words, _FLOATS)
    if kind == FP8:
        # Sign to bit 31, exponent and mantissa to bits 26 to 20.
        return builder.bitcast(builder.and_(builder.ashr(top, _splat(4)), _splat(-0x78100000)), _FLOATS)
    if kind == INT4 and plane < 32 // bits - 1:
        return builder.sitofp(builder.and_(words, _splat(15 << (bits * plane))), _FLOATS)
    return builder.sitofp(builder.ashr(top, _splat(32 - bits)), _FLOATS)


def _block_product(kind: int) -> Any:
    """Return the intrinsic `f(words, word, x_K, k, n, y_Rp, row)`: the product of one block of rows with n inputs.

    It adds the products of x[k : k + n] with the codes from `word` on to the outputs from `row` on.
    """
    vectors = PLANES * BITS[kind] // 32
    lane, zeros = ir.IntType(32), ir.Constant(_FLOATS, [0.0] * LANES)

    @intrinsic
    def block_product(_: Any, words: Any, word: Any, x: Any, k: Any, n: Any, y: Any, row: Any) -> Any:
        signature = types.void(words, types.intp, x, types.intp, types.intp, y, types.intp)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def address(array: int) -> Any:
                data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
                return builder.gep(data, [arguments[array + 1]])

            words, x, y = address(0), address(2), address(5)
            words = builder.bitcast(words, _INTS.as_pointer())
            y = builder.bitcast(y, _FLOATS.as_pointer())
            sums = [cgutils.alloca_once_value(builder, zeros) for _ in range(PLANES)]
            for total in sums:
                builder.store(zeros, total)
            with cgutils.for_range(builder, arguments[4]) as loop:
                number = builder.load(builder.gep(x, [loop.index]))
                number = builder.insert_element(zeros, number, ir.Constant(lane, 0))
                number = builder.shuffle_vector(number, number, _splat(0))
                for vector in range(vectors):
                    index = builder.mul(loop.index, ir.Constant(loop.index.type, vectors))
                    index = builder.add(index, ir.Constant(index.type, vector))
                    loaded = builder.load(builder.gep(words, [index]), align=4)
                    for plane in range(PLANES // vectors):
                        total = sums[vector * (PLANES // vectors) + plane]
                        product = builder.fmul(_unpack(builder, loaded, kind, plane), number, flags=("contract",))
                        builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
            for plane, total in enumerate(sums):
                slot = builder.gep(y, [ir.Constant(lane, plane)])
                builder.store(builder.fadd(builder.load(slot, align=4), builder.load(total)), slot, align=4)
            return context.get_dummy_value()

        return signature, generate

    return block_product


_int4_block, _int8_block, _fp8_block, _float_block = map(_block_product, (INT4, INT8, FP8, FLOAT))


@njit(fastmath=_FAST)
@no_type_check
def product(entry, words, scales, offsets, sums, x_K, y_Rp):
    """y = W x for the matrix of `entry`: kind, blocks, columns, its first word and its first row."""
    kind, blocks, columns, word, row = entry[0], entry[1], entry[2], entry[3], entry[4]
    mean, rest, input_K = np.float32(0), np.float32(0), x_K
    if kind == INT4:
        # W x = W (x − mean) + mean · W 1. The sum that the offset multiplies is then small, and so is its rounding.
        for k in range(columns):
            mean += x_K[k]
        mean /= columns
        input_K = np.empty(columns, np.float32)
        for k in range(columns):
            input_K[k] = x_K[k] - mean
            rest += input_K[k]
    elif kind == FP8:
        input_K = np.empty(columns, np.float32)
        for k in range(columns):
            input_K[k] = x_K[k] * np.float32(FP8_INPUT_SCALE)
    for r in range(blocks * BLOCK_ROWS):
        y_Rp[r] = 0
    for block in range(blocks):
        for k in range(0, columns, RUN):
            n = min(RUN, columns - k)
            if kind == INT4:
                _int4_block(words, word, input_K, k, n, y_Rp, block * BLOCK_ROWS)
                word += n * BLOCK_ROWS // 8
            elif kind == INT8:
                _int8_block(words, word, input_K, k, n, y_Rp, block * BLOCK_ROWS)
                word += n * BLOCK_ROWS // 4
            elif kind == FP8:
                _fp8_block(words, word, input_K, k, n, y_Rp, block * BLOCK_ROWS)
                word += n * BLOCK_ROWS // 4
            else:
                _float_block(words, word, input_K, k, n, y_Rp, block * BLOCK_ROWS)
                word += n * BLOCK_ROWS
    for r in range(blocks * BLOCK_ROWS):
        y_Rp[r] = scales[row + r] * y_Rp[r] - offsets[row + r] * rest + sums[row + r] * mean


@njit(fastmath=_FAST)
@no_type_check
def rms(x, eps, y):
    """y = x / sqrt(mean(x²) + eps)."""
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i] * x[i]
    factor = np.float32(1 / math.sqrt(total / len(x) + eps))
    for i in range(len(x)):
        y[i] = x[i] * factor


@njit(fastmath=_FAST)
@no_type_check
def silu(x):
    """x · sigmoid(x), for a number."""
    return x / (np.float32(1) + math.exp(-x))


@njit(fastmath=_FAST)
@no_type_check
def convolution(raw_C, weight_WC, bias_C, history_WC, y_C):
    """y = silu(causal convolution) of the inputs in `history_WC` and of `raw_C`, which enters the history."""
    past = len(history_WC)
    for c in range(len(raw_C)):
        total = bias_C[c] + weight_WC[past, c] * raw_C[c]
        for w in range(past):
            total += weight_WC[w, c] * history_WC[w, c]
        y_C[c] = total
    for c in range(len(raw_C)):
        y_C[c] = silu(y_C[c])
    for w in range(past):
        for c in range(len(raw_C)):
            history_WC[w, c] = history_WC[w + 1, c] if w + 1 < past else raw_C[c]


@njit(fastmath=_FAST)
@no_type_check
def recurrence(xBC_C, dt_H, A_H, D_H, state_HPN, y_I):
    """state = exp(dt·A) state + dt x Bᵀ and y = state C + D x, for each head; the heads of a group share B and C."""
    heads, width, size = state_HPN.shape
    inner = heads * width
    groups = (len(xBC_C) - inner) // (2 * size)
    for h in range(heads):
        B_N = xBC_C[inner + h // (heads // groups) * size :][:size]
        C_N = xBC_C[inner + (groups + h // (heads // groups)) * size :][:size]
        decay = np.float32(math.exp(dt_H[h] * A_H[h]))
        for p in range(width):
            x, state_N = xBC_C[h * width + p], state_HPN[h, p]
            added, total = dt_H[h] * x, np.float32(0)
            for n in range(size):
                value = decay * state_N[n] + added * B_N[n]
                state_N[n] = value
                total += value * C_N[n]
            y_I[h * width + p] = total + D_H[h] * x


@njit(fastmath=_FAST)
@no_type_check
def capped(logit, kind, cap):
    """The soft cap of `jepamba.ops.cross_entropy.softcap`: 0 off, 1 tanh, 2 poly."""
    if kind == 1:
        return cap * np.float32(math.tanh(logit / cap))
    if kind == 2:
        u = min(max(logit / cap, np.float32(-2)), np.float32(2))
        u *= np.float32(1) - u * u / np.float32(3) + u * u * u * u / np.float32(15)
        return cap * min(max(u, np.float32(-1)), np.float32(1))
    return logit


@njit(cache=True, nogil=True, fastmath=_FAST)
@no_type_check
def step(
    x_E, table, words, scales, offsets, sums,
    mix_L2D, skip_LD, source_L, ssm_scale_LD, mlp_scale_LD,
    conv_LWC, conv_bias_LC, dt_bias_LH, A_LH, D_LH, norm_LI, bias_V,
    history_LWC, state_LHPN, outputs_LD, logits_V,
    gelu, cap_kind, cap,
):  # fmt: skip
    """Advance the state by the token of embedding `x_E`, and write the logits of the next."""
    layers, D = outputs_LD.shape
    inner, C, H = norm_LI.shape[1], conv_bias_LC.shape[1], dt_bias_LH.shape[1]
    widest = 0
    for entry in table:
        widest = max(widest, max(entry[1] * BLOCK_ROWS, entry[2]))
    a, b = np.empty(widest, np.float32), np.empty(widest, np.float32)
    y_I, dt_H, u_D = np.empty(inner, np.float32), np.empty(H, np.float32), np.empty(D, np.float32)
    x_D, x0_D = np.empty(D, np.float32), np.empty(D, np.float32)

    if table[5 * layers, 0] != ABSENT:
        product(table[5 * layers], words, scales, offsets, sums, x_E, a)
        rms(a[:D], RMS_EPS, x0_D)
    else:
        rms(x_E, RMS_EPS, x0_D)
    for d in range(D):
        x_D[d] = x0_D[d]
    for i in range(layers):
        if source_L[i] >= 0:
            for d in range(D):
                x_D[d] += skip_LD[i, d] * outputs_LD[source_L[i], d]
        for d in range(D):
            x_D[d] = mix_L2D[i, 0, d] * x_D[d] + mix_L2D[i, 1, d] * x0_D[d]
        rms(x_D, RMS_EPS, u_D)

        # The mixer. The projection is (z, x, B, C, dt).
        product(table[5 * i], words, scales, offsets, sums, u_D, a)
        for h in range(H):
            dt = a[inner + C + h] + dt_bias_LH[i, h]
            dt_H[h] = dt if dt > 20 else math.log1p(math.exp(dt))
        convolution(a[inner : inner + C], conv_LWC[i], conv_bias_LC[i], history_LWC[i], b[:C])
        recurrence(b[:C], dt_H, A_LH[i], D_LH[i], state_LHPN[i], y_I)
        for j in range(inner):
            y_I[j] *= silu(a[j])
        rms(y_I, GATED_NORM_EPS, y_I)
        for j in range(inner):
            y_I[j] *= norm_LI[i, j]
        product(table[5 * i + 1], words, scales, offsets, sums, y_I, a)
        for d in range(D):
            x_D[d] += ssm_scale_LD[i, d] * a[d]

        if table[5 * i + 2, 0] != ABSENT:
            M = table[5 * i + 3, 2]
            rms(x_D, RMS_EPS, u_D)
            product(table[5 * i + 2], words, scales, offsets, sums, u_D, a)
            if table[5 * i + 4, 0] != ABSENT:
                product(table[5 * i + 4], words, scales, offsets, sums, u_D, b)
                for m in range(M):
                    a[m] *= silu(b[m])
            else:
                for m in range(M):
                    a[m] = max(a[m], np.float32(0)) ** 2
            rms(a[:M], RMS_EPS, b[:M])
            product(table[5 * i + 3], words, scales, offsets, sums, b[:M], a)
            for d in range(D):
                x_D[d] += mlp_scale_LD[i, d] * a[d]
        for d in range(D):
            outputs_LD[i, d] = x_D[d]

    rms(x_D, RMS_EPS, b[:D])
    if table[5 * layers + 1, 0] != ABSENT:
        product(table[5 * layers + 1], words, scales, offsets, sums, b[:D], a)
        a, b = b, a
    E = table[5 * layers + 2, 2]
    if gelu:
        for e in range(E):
            b[e] *= np.float32(0.5) * (np.float32(1) + math.erf(b[e] / np.float32(math.sqrt(2))))
    product(table[5 * layers + 2], words, scales, offsets, sums, b[:E], a)
    for v in range(len(logits_V)):
        logits_V[v] = capped(a[v] + bias_V[v], cap_kind, cap)
