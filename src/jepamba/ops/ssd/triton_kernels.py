# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Triton kernels of the sequence operator.

Within a chunk of L tokens, with s_i = log2(e) · A · (dt_1 + … + dt_i), token i reads token j <= i with weight
C_i·B_j · E_ij · dt_j, E_ij = 2^(s_i − s_j). `document` is the number of resets up to each token of the chunk. A token
reads another token, or a chunk boundary, only if the counts agree.

Decays, sums and states are fp32. The operands of matrix products have the dtype of the inputs. Tokens past the end have
dt = 0 and zeros elsewhere, which the TMA loads supply, so they do not change the state. `zero` is 0 at run time but
unknown to the compiler. Masks that depend on it are recomputed in each iteration and do not occupy registers.

Legend: B batch, H heads, c chunks, L chunk length, P head dimension, N state, i reading token, j read token.
A pointer or descriptor has the name of its tensor. Descriptors are (B, H or G, T, columns) or (B·H·c, P, N).
"""

from typing import no_type_check

import triton
import triton.language as tl

from jepamba.ops.ssd.triton_decays import TINY


@triton.jit
@no_type_check
def _from_start(s_L, document_L, HAS_RESET: tl.constexpr):
    """Return the decay from the chunk's start to each token."""
    if HAS_RESET:
        return tl.where(document_L == 0, tl.exp2(s_L), 0.0)
    return tl.exp2(s_L)


@triton.jit
@no_type_check
def _to_end(s_L, s_end, document_L, document_end, HAS_RESET: tl.constexpr):
    """Return the decay from each token to the chunk's end."""
    if HAS_RESET:
        return tl.where(document_L == document_end, tl.exp2(s_end - s_L), 0.0)
    return tl.exp2(s_end - s_L)


@triton.jit
@no_type_check
def _decays(dts, logs, documents, c, L: tl.constexpr, HAS_RESET: tl.constexpr):
    """Load (dt_j, s_j, s at the end, document_j, document at the end) of chunk c from `prepare_kernel`."""
    o_L = c * L + tl.arange(0, L)
    dt_L = tl.load(dts + o_L)
    s_L = tl.load(logs + o_L)
    s_end = tl.load(logs + c * L + (L - 1))
    document_L = tl.zeros_like(o_L)
    document_end = 0
    if HAS_RESET:
        document_L = tl.load(documents + o_L)
        document_end = tl.load(documents + c * L + (L - 1))
    return dt_L, s_L, s_end, document_L, document_end


@triton.jit
@no_type_check
def forward_kernel(
    x, dts, logs, documents, B, C, D, initial, y, final, starts,
    H, heads_per_group, chunks, zero,
    L: tl.constexpr, P: tl.constexpr, P_BLOCK: tl.constexpr, N: tl.constexpr,
    HAS_INITIAL: tl.constexpr, HAS_RESET: tl.constexpr, KEEP: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Process the chunks of one (sequence, head, block of P) in order, with the state on chip.

    Writes y, the final state (B, H, P, N) and, with KEEP, the state at each chunk's start.
    """
    h = tl.program_id(0) // (P // P_BLOCK)
    p0 = (tl.program_id(0) % (P // P_BLOCK)) * P_BLOCK
    b = tl.program_id(1)
    g = h // heads_per_group
    row = (b * H + h).to(tl.int64)
    offset_PN = row * P * N + (p0 + tl.arange(0, P_BLOCK))[:, None] * N + tl.arange(0, N)[None, :]
    dts += row * chunks * L
    logs += row * chunks * L
    documents += b.to(tl.int64) * chunks * L
    D_h = tl.load(D + h).to(tl.float32)
    state_PN = tl.zeros((P_BLOCK, N), tl.float32)
    if HAS_INITIAL:
        state_PN += tl.load(initial + offset_PN).to(tl.float32)
    for c in tl.range(0, chunks, num_stages=STAGES):
        x_LP = x.load([b, h, c * L, p0]).reshape(L, P_BLOCK)
        B_LN = B.load([b, g, c * L, 0]).reshape(L, N)
        C_LN = C.load([b, g, c * L, 0]).reshape(L, N)
        dt_L, s_L, s_end, doc_L, doc_end = _decays(dts, logs, documents, c, L, HAS_RESET)
        rounded_state_PN = state_PN.to(x_LP.dtype)
        if KEEP:
            starts.store([(b * H + h) * chunks + c, p0, 0], rounded_state_PN.reshape(1, P_BLOCK, N))
        j_L = tl.arange(0, L)
        i_L = j_L + c * zero
        visible_LL = i_L[:, None] >= j_L[None, :]
        if HAS_RESET:
            visible_LL = visible_LL & (doc_L[:, None] == doc_L[None, :])
        weight_LL = tl.dot(C_LN, tl.trans(B_LN), input_precision=PRECISION)
        weight_LL *= tl.exp2(tl.where(visible_LL, s_L[:, None] - s_L[None, :], float("-inf"))) * dt_L[None, :]
        # D x is an additional weight of each token on itself.
        weight_LL += tl.where(i_L[:, None] == j_L[None, :], D_h, 0.0)
        y_LP = tl.dot(C_LN, tl.trans(rounded_state_PN), input_precision=PRECISION)
        y_LP *= _from_start(s_L, doc_L, HAS_RESET)[:, None]
        y_LP = tl.dot(weight_LL.to(x_LP.dtype), x_LP, y_LP, input_precision=PRECISION)
        y.store([b, h, c * L, p0], y_LP.to(x_LP.dtype).reshape(1, 1, L, P_BLOCK))
        weight_to_end_L = dt_L * _to_end(s_L, s_end, doc_L, doc_end, HAS_RESET)
        chunk_decay = tl.exp2(s_end)
        if HAS_RESET:
            chunk_decay = tl.where(doc_end == 0, chunk_decay, 0.0)
        scaled_LN = (B_LN.to(tl.float32) * weight_to_end_L[:, None]).to(x_LP.dtype)
        state_PN = tl.dot(tl.trans(x_LP), scaled_LN, state_PN * chunk_decay, input_precision=PRECISION)
    tl.store(final + offset_PN, state_PN)


@triton.jit
@no_type_check
def state_kernel(
    u, dts, logs, documents, V, edge, states, last,
    H, heads_per_group, chunks,
    L: tl.constexpr, P: tl.constexpr, P_BLOCK: tl.constexpr, N: tl.constexpr,
    REVERSE: tl.constexpr, HAS_EDGE: tl.constexpr, HAS_RESET: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute only the recurrence between chunks: the state before each chunk, and the state after the last one.

    Forward, with u = x and V = B, this is the state at each chunk's start. With REVERSE, u = dy and V = C, the loop
    starts at the last chunk and computes the gradient of the state at each chunk's end. `last` is then the gradient of
    the initial state.
    """
    h = tl.program_id(0) // (P // P_BLOCK)
    p0 = (tl.program_id(0) % (P // P_BLOCK)) * P_BLOCK
    b = tl.program_id(1)
    g = h // heads_per_group
    row = (b * H + h).to(tl.int64)
    offset_PN = row * P * N + (p0 + tl.arange(0, P_BLOCK))[:, None] * N + tl.arange(0, N)[None, :]
    dts += row * chunks * L
    logs += row * chunks * L
    documents += b.to(tl.int64) * chunks * L
    state_PN = tl.zeros((P_BLOCK, N), tl.float32)
    if HAS_EDGE:
        state_PN += tl.load(edge + offset_PN).to(tl.float32)
    for k in tl.range(0, chunks, num_stages=STAGES):
        c = k
        if REVERSE:
            c = chunks - 1 - k
        u_LP = u.load([b, h, c * L, p0]).reshape(L, P_BLOCK)
        V_LN = V.load([b, g, c * L, 0]).reshape(L, N)
        dt_L, s_L, s_end, doc_L, doc_end = _decays(dts, logs, documents, c, L, HAS_RESET)
        states.store([(b * H + h) * chunks + c, p0, 0], state_PN.to(u_LP.dtype).reshape(1, P_BLOCK, N))
        if REVERSE:
            scale_L = _from_start(s_L, doc_L, HAS_RESET)
        else:
            scale_L = dt_L * _to_end(s_L, s_end, doc_L, doc_end, HAS_RESET)
        chunk_decay = tl.exp2(s_end)
        if HAS_RESET:
            chunk_decay = tl.where(doc_end == 0, chunk_decay, 0.0)
        scaled_LN = (V_LN.to(tl.float32) * scale_L[:, None]).to(u_LP.dtype)
        state_PN = tl.dot(tl.trans(u_LP), scaled_LN, state_PN * chunk_decay, input_precision=PRECISION)
    tl.store(last + offset_PN, state_PN)


@triton.jit
@no_type_check
def _row_products(tile_LN, other, opaque_zero, L: tl.constexpr, N: tl.constexpr):
    """Return Σ_n tile · other of each row. `other` is fp32, or bfloat16 pairs in int32 with the even column low.

    The pairs are unpacked in each iteration of the caller's loop. `opaque_zero` is 0 but unknown to the compiler, which
    would otherwise keep the unpacked tile in registers.
    """
    if other.dtype == tl.int32:
        even_Lm, odd_Lm = tl.split(tile_LN.reshape(L, N // 2, 2))
        low_Lm = (other << (16 + opaque_zero)).to(tl.float32, bitcast=True)
        high_Lm = (other & (-65536 + opaque_zero)).to(tl.float32, bitcast=True)
        return tl.sum(even_Lm * low_Lm + odd_Lm * high_Lm, axis=1)
    else:
        return tl.sum(tile_LN * other, axis=1)


@triton.jit
@no_type_check
def gradient_kernel(
    x, dts, logs, documents, B, C, B_pairs, C_pairs, D, dy, starts, dends, dx, dB, dC, sums,
    T, H, heads_per_group, chunks, zero, dB_sp, dB_sb, dB_st, sums_sk,
    L: tl.constexpr, P: tl.constexpr, N: tl.constexpr, PAIRED: tl.constexpr,
    HEADS: tl.constexpr, SPLITS: tl.constexpr, HAS_RESET: tl.constexpr, WITH_B: tl.constexpr, WITH_C: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dx, dB, dC and the sums for the decay gradients of one chunk, in a loop over HEADS heads of a group.

    WITH_B is for dx, dB and their sums, WITH_C for dC and its sum. With a large N two launches with one of them each
    are faster, because the tiles of both do not fit in the registers.

    The heads of a group share B and C, so dB and dC stay on chip during the loop. Square tiles are (j, i), with the
    read token as row and the reading token as column. Two of the three products with them can then read them from
    registers.
    """
    c = tl.program_id(0)
    b = tl.program_id(1)
    g = tl.program_id(2) // SPLITS
    split = tl.program_id(2) % SPLITS
    l = tl.arange(0, L)  # noqa: E741
    B_LN = B.load([b, g, c * L, 0]).reshape(L, N)
    if WITH_B or not PAIRED:
        C_LN = C.load([b, g, c * L, 0]).reshape(L, N)
    if PAIRED:
        if WITH_B:
            B_rows = B_pairs.load([b, g, c * L, 0]).reshape(L, N // 2)
        if WITH_C:
            C_rows = C_pairs.load([b, g, c * L, 0]).reshape(L, N // 2)
    else:
        B_rows = B_LN.to(tl.float32)
        C_rows = C_LN.to(tl.float32)
    dB_LN = tl.zeros((L, N), tl.float32)
    dC_LN = tl.zeros((L, N), tl.float32)
    documents += b.to(tl.int64) * chunks * L
    first = g * heads_per_group + split * HEADS
    for k in tl.range(0, HEADS, num_stages=STAGES):
        h = first + k
        row = b * H + h
        x_LP = x.load([b, h, c * L, 0]).reshape(L, P)
        dy_LP = dy.load([b, h, c * L, 0]).reshape(L, P)
        # All loads of a descriptor come before the store of dx: with P 128 and N 16 a load after it gave wrong tiles
        # (Triton 3.6).
        if WITH_B:
            dend_PN = dends.load([row * chunks + c, 0, 0]).reshape(P, N)
            D_h = tl.load(D + h).to(tl.float32)
        if WITH_C:
            start_PN = starts.load([row * chunks + c, 0, 0]).reshape(P, N)
        tokens = row.to(tl.int64) * chunks * L
        dt_L, s_L, s_end, doc_L, doc_end = _decays(dts + tokens, logs + tokens, documents, c, L, HAS_RESET)
        dt_L = tl.maximum(dt_L, TINY)
        out_L = sums + tokens + c * L + l
        opaque_zero = k * zero
        j_L = l + opaque_zero
        diagonal_LL = j_L[:, None] == l[None, :]
        visible_LL = j_L[:, None] <= l[None, :]
        if HAS_RESET:
            visible_LL = visible_LL & (doc_L[:, None] == doc_L[None, :])
        E_LL = tl.exp2(tl.where(visible_LL, s_L[None, :] - s_L[:, None], float("-inf"))) * dt_L[:, None]

        # The gradient of the weight C_i·B_j E_ij dt_j, with D added on the diagonal, is x_j·dy_i.
        if WITH_B:
            # The product is the same for every head, but recomputing it is faster than keeping it in registers.
            product_LL = tl.dot(
                B_LN, tl.trans(C_LN), tl.zeros((L, L), tl.float32) + opaque_zero.to(tl.float32),
                input_precision=PRECISION,
            )  # fmt: skip
            weight_LL = (product_LL * E_LL + tl.where(diagonal_LL, D_h, 0.0)).to(x_LP.dtype)
        R_LL = tl.dot(x_LP, tl.trans(dy_LP), input_precision=PRECISION)
        if WITH_B:
            tl.store(out_L + 2 * sums_sk, tl.sum(tl.where(diagonal_LL, R_LL, 0.0), axis=1))
        W_LL = (R_LL * E_LL).to(x_LP.dtype)
        if WITH_B:
            weight_to_end_L = dt_L * _to_end(s_L, s_end, doc_L, doc_end, HAS_RESET)
            dx_LP = tl.dot(B_LN, tl.trans(dend_PN), input_precision=PRECISION) * weight_to_end_L[:, None]
            dx_LP = tl.dot(weight_LL, dy_LP, dx_LP, input_precision=PRECISION)
            dx.store([b, h, c * L, 0], dx_LP.to(x_LP.dtype).reshape(1, 1, L, P))

            head_LN = tl.dot(x_LP, dend_PN, input_precision=PRECISION) * weight_to_end_L[:, None]
            tl.store(out_L + 3 * sums_sk, _row_products(head_LN, B_rows, opaque_zero * 2, L, N))
            head_LN = tl.dot(W_LL, C_LN, head_LN, input_precision=PRECISION)
            tl.store(out_L, _row_products(head_LN, B_rows, opaque_zero, L, N))
            dB_LN += head_LN
        if WITH_C:
            head_LN = tl.dot(dy_LP, start_PN, input_precision=PRECISION)
            head_LN *= _from_start(s_L, doc_L, HAS_RESET)[:, None]
            head_LN = tl.dot(tl.trans(W_LL), B_LN, head_LN, input_precision=PRECISION)
            tl.store(out_L + sums_sk, _row_products(head_LN, C_rows, opaque_zero, L, N))
            dC_LN += head_LN
    t = c * L + l
    out = split * dB_sp + b.to(tl.int64) * dB_sb + t[:, None].to(tl.int64) * dB_st + g * N + tl.arange(0, N)[None, :]
    if WITH_B:
        tl.store(dB + out, dB_LN.to(dB.dtype.element_ty), mask=(t < T)[:, None])
    if WITH_C:
        tl.store(dC + out, dC_LN.to(dC.dtype.element_ty), mask=(t < T)[:, None])
