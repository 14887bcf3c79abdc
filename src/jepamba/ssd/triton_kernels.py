# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Triton kernels of the sequence operator; `triton_ssd` launches them and holds the derivation of the gradients.

Within a chunk of L tokens, with s_i = log2(e) · A · (dt_1 + … + dt_i), token i reads token j <= i with weight
C_i·B_j · E_ij · dt_j, E_ij = 2^(s_i − s_j). A reset masks: `document` counts the resets up to each token of the chunk, and
two tokens (or a token and a chunk's edge) see each other where the counts agree.

Decays, sums and states are fp32; the operands of matrix products have the inputs' dtype.

Legend: L chunk length, P head width, N state, i reading token, j read token. Pointers are named as the tensors.
"""

from typing import no_type_check

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
@no_type_check
def _decays(dt, reset, A_h, t, T, dt_st, reset_st, HAS_RESET: tl.constexpr):
    """(dt_j, s_j, s_L, document_j, document_L) of one chunk; tokens past the end have dt = 0 and no reset."""
    dt_L = tl.load(dt + t * dt_st, mask=t < T, other=0.0).to(tl.float32)
    log_L = dt_L * (A_h * LOG2E)
    s_L = tl.cumsum(log_L, axis=0)
    s_end = tl.sum(log_L, axis=0)
    document_L = tl.zeros_like(t)
    document_end = 0
    if HAS_RESET:
        reset_L = tl.load(reset + t * reset_st, mask=t < T, other=0).to(tl.int32)
        document_L = tl.cumsum(reset_L, axis=0)
        document_end = tl.sum(reset_L, axis=0)
    return dt_L, s_L, s_end, document_L, document_end


@triton.jit
@no_type_check
def _from_start(s_L, document_L, HAS_RESET: tl.constexpr):
    """How much of the state at the chunk's start each token reads."""
    if HAS_RESET:
        return tl.where(document_L == 0, tl.exp2(s_L), 0.0)
    return tl.exp2(s_L)


@triton.jit
@no_type_check
def _to_end(s_L, s_end, document_L, document_end, HAS_RESET: tl.constexpr):
    """How much of each token is left at the chunk's end."""
    if HAS_RESET:
        return tl.where(document_L == document_end, tl.exp2(s_end - s_L), 0.0)
    return tl.exp2(s_end - s_L)


@triton.jit
@no_type_check
def forward_kernel(
    x, dt, A, B, C, D, initial, reset, y, final, starts,
    T, H, heads_per_group,
    x_sb, x_st, x_sh, dt_sb, dt_st, dt_sh, B_sb, B_st, B_sg, C_sb, C_st, C_sg, reset_sb, reset_st,
    L: tl.constexpr, P: tl.constexpr, P_BLOCK: tl.constexpr, N: tl.constexpr,
    HAS_INITIAL: tl.constexpr, HAS_RESET: tl.constexpr, KEEP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program walks the chunks of one (sequence, head, block of P) with the state on chip.

    Writes y (B,T,H,P), the final state (B,H,P,N) and, where KEEP, the state at each chunk's start (B,H,chunks,P,N).
    """
    h = tl.program_id(0) // (P // P_BLOCK)
    p = (tl.program_id(0) % (P // P_BLOCK)) * P_BLOCK + tl.arange(0, P_BLOCK)
    b = tl.program_id(1).to(tl.int64)
    g = h // heads_per_group
    l = tl.arange(0, L)  # noqa: E741
    n = tl.arange(0, N)
    x += b * x_sb + h * x_sh
    B += b * B_sb + g * B_sg
    C += b * C_sb + g * C_sg
    dt += b * dt_sb + h * dt_sh
    reset += b * reset_sb
    y += (b * T * H + h) * P
    A_h = tl.load(A + h).to(tl.float32)
    D_h = tl.load(D + h).to(tl.float32)
    chunks = tl.cdiv(T, L)
    tile_PN = p[:, None] * N + n[None, :]
    if HAS_INITIAL:
        state_PN = tl.load(initial + (b * H + h) * P * N + tile_PN).to(tl.float32)
    else:
        state_PN = tl.zeros((P_BLOCK, N), tl.float32)
    starts += (b * H + h) * chunks * P * N
    causal_LL = l[:, None] >= l[None, :]
    for c in tl.range(0, chunks, num_stages=STAGES):
        t = c * L + l
        in_L1 = (t < T)[:, None]
        x_LP = tl.load(x + t[:, None] * x_st + p[None, :], mask=in_L1, other=0.0)
        B_LN = tl.load(B + t[:, None] * B_st + n[None, :], mask=in_L1, other=0.0)
        C_LN = tl.load(C + t[:, None] * C_st + n[None, :], mask=in_L1, other=0.0)
        dt_L, s_L, s_end, doc_L, doc_end = _decays(dt, reset, A_h, t, T, dt_st, reset_st, HAS_RESET)
        narrow_PN = state_PN.to(x_LP.dtype)
        if KEEP:
            tl.store(starts + c * P * N + tile_PN, narrow_PN)
        visible_LL = causal_LL
        if HAS_RESET:
            visible_LL = visible_LL & (doc_L[:, None] == doc_L[None, :])
        weight_LL = tl.dot(C_LN, tl.trans(B_LN), input_precision="ieee")
        weight_LL *= tl.exp2(tl.where(visible_LL, s_L[:, None] - s_L[None, :], float("-inf"))) * dt_L[None, :]
        # D x is one more thing that a token reads of itself.
        weight_LL += tl.where(l[:, None] == l[None, :], D_h, 0.0)
        y_LP = tl.dot(C_LN, tl.trans(narrow_PN), input_precision="ieee")
        y_LP *= _from_start(s_L, doc_L, HAS_RESET)[:, None]
        y_LP = tl.dot(weight_LL.to(x_LP.dtype), x_LP, y_LP, input_precision="ieee")
        tl.store(y + t[:, None] * (H * P) + p[None, :], y_LP.to(y.dtype.element_ty), mask=in_L1)
        into_L = dt_L * _to_end(s_L, s_end, doc_L, doc_end, HAS_RESET)
        survival = tl.exp2(s_end)
        if HAS_RESET:
            survival = tl.where(doc_end == 0, survival, 0.0)
        scaled_LP = (x_LP.to(tl.float32) * into_L[:, None]).to(x_LP.dtype)
        state_PN = tl.dot(tl.trans(scaled_LP), B_LN, state_PN * survival, input_precision="ieee")
    tl.store(final + (b * H + h) * P * N + tile_PN, state_PN)


@triton.jit
@no_type_check
def state_kernel(
    u, dt, A, V, edge, reset, states, last,
    T, H, heads_per_group,
    u_sb, u_st, u_sh, dt_sb, dt_st, dt_sh, V_sb, V_st, V_sg, reset_sb, reset_st,
    L: tl.constexpr, P: tl.constexpr, P_BLOCK: tl.constexpr, N: tl.constexpr,
    REVERSE: tl.constexpr, HAS_EDGE: tl.constexpr, HAS_RESET: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The recurrence between chunks alone: the state before each chunk is walked over, and the one after the last.

    Forward, from u = x and V = B: the state at each chunk's start. REVERSE, from u = dy and V = C: the gradient of the
    state at each chunk's end, walking from the end; `last` is then the gradient of the initial state.
    """
    h = tl.program_id(0) // (P // P_BLOCK)
    p = (tl.program_id(0) % (P // P_BLOCK)) * P_BLOCK + tl.arange(0, P_BLOCK)
    b = tl.program_id(1).to(tl.int64)
    g = h // heads_per_group
    l = tl.arange(0, L)  # noqa: E741
    n = tl.arange(0, N)
    u += b * u_sb + h * u_sh
    V += b * V_sb + g * V_sg
    dt += b * dt_sb + h * dt_sh
    reset += b * reset_sb
    A_h = tl.load(A + h).to(tl.float32)
    chunks = tl.cdiv(T, L)
    tile_PN = p[:, None] * N + n[None, :]
    if HAS_EDGE:
        state_PN = tl.load(edge + (b * H + h) * P * N + tile_PN).to(tl.float32)
    else:
        state_PN = tl.zeros((P_BLOCK, N), tl.float32)
    states += (b * H + h) * chunks * P * N
    for k in tl.range(0, chunks, num_stages=STAGES):
        c = k
        if REVERSE:
            c = chunks - 1 - k
        t = c * L + l
        in_L1 = (t < T)[:, None]
        u_LP = tl.load(u + t[:, None] * u_st + p[None, :], mask=in_L1, other=0.0)
        V_LN = tl.load(V + t[:, None] * V_st + n[None, :], mask=in_L1, other=0.0)
        dt_L, s_L, s_end, doc_L, doc_end = _decays(dt, reset, A_h, t, T, dt_st, reset_st, HAS_RESET)
        tl.store(states + c * P * N + tile_PN, state_PN.to(u_LP.dtype))
        if REVERSE:
            scale_L = _from_start(s_L, doc_L, HAS_RESET)
        else:
            scale_L = dt_L * _to_end(s_L, s_end, doc_L, doc_end, HAS_RESET)
        survival = tl.exp2(s_end)
        if HAS_RESET:
            survival = tl.where(doc_end == 0, survival, 0.0)
        scaled_LP = (u_LP.to(tl.float32) * scale_L[:, None]).to(u_LP.dtype)
        state_PN = tl.dot(tl.trans(scaled_LP), V_LN, state_PN * survival, input_precision="ieee")
    tl.store(last + (b * H + h) * P * N + tile_PN, state_PN)


@triton.jit
@no_type_check
def gradient_kernel(
    x, dt, A, B, C, D, reset, dy, starts, dends, dx, ddt, dB, dC, dA, dD,
    T, H, heads_per_group, parts_sb,
    x_sb, x_st, x_sh, dt_sb, dt_st, dt_sh, B_sb, B_st, B_sg, C_sb, C_st, C_sg, reset_sb, reset_st,
    dy_sb, dy_st, dy_sh,
    L: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    HEADS: tl.constexpr, SPLITS: tl.constexpr, HAS_RESET: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """All gradients of one chunk of one sequence, for HEADS heads of one group one after the other.

    B and C are shared by the group, so C·B, dB and dC stay on chip while the heads pass. Square tiles are (j, i): the read
    token down, the reading token across, which lets two of the three products that use them take them from registers.
    """
    c = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    g = tl.program_id(2) // SPLITS
    split = tl.program_id(2) % SPLITS
    chunks = tl.cdiv(T, L)
    groups = H // heads_per_group
    l = tl.arange(0, L)  # noqa: E741
    p = tl.arange(0, P)
    n = tl.arange(0, N)
    t = c * L + l
    in_L1 = (t < T)[:, None]
    B_LN = tl.load(B + b * B_sb + g * B_sg + t[:, None] * B_st + n[None, :], mask=in_L1, other=0.0)
    C_LN = tl.load(C + b * C_sb + g * C_sg + t[:, None] * C_st + n[None, :], mask=in_L1, other=0.0)
    reset += b * reset_sb
    product_LL = tl.dot(B_LN, tl.trans(C_LN), input_precision="ieee")
    dB_LN = tl.zeros((L, N), tl.float32)
    dC_LN = tl.zeros((L, N), tl.float32)
    tile_PN = p[:, None] * N + n[None, :]
    first_head = g * heads_per_group + split * HEADS
    for k in tl.range(0, HEADS, num_stages=STAGES):
        h = first_head + k
        x_LP = tl.load(x + b * x_sb + h * x_sh + t[:, None] * x_st + p[None, :], mask=in_L1, other=0.0)
        dy_LP = tl.load(dy + b * dy_sb + h * dy_sh + t[:, None] * dy_st + p[None, :], mask=in_L1, other=0.0)
        state = ((b * H + h) * chunks + c) * P * N
        dend_PN = tl.load(dends + state + tile_PN)
        start_PN = tl.load(starts + state + tile_PN)
        A_h = tl.load(A + h).to(tl.float32)
        D_h = tl.load(D + h).to(tl.float32)
        dt_L, s_L, s_end, doc_L, doc_end = _decays(
            dt + b * dt_sb + h * dt_sh, reset, A_h, t, T, dt_st, reset_st, HAS_RESET
        )
        visible_LL = l[:, None] <= l[None, :]
        if HAS_RESET:
            visible_LL = visible_LL & (doc_L[:, None] == doc_L[None, :])
        E_LL = tl.exp2(tl.where(visible_LL, s_L[None, :] - s_L[:, None], float("-inf")))
        from_L = _from_start(s_L, doc_L, HAS_RESET)
        to_L = _to_end(s_L, s_end, doc_L, doc_end, HAS_RESET)

        # u_j = dt_j x_j is what token j writes; du_j = to_j B_j·dend + Σ_i C_i·B_j E_ij dy_i.
        du_LP = tl.dot(B_LN, tl.trans(dend_PN), input_precision="ieee") * to_L[:, None]
        x32_LP = x_LP.to(tl.float32)
        leaving_L = tl.sum(du_LP * x32_LP, axis=1)
        du_LP = tl.dot((product_LL * E_LL).to(x_LP.dtype), dy_LP, du_LP, input_precision="ieee")
        dy32_LP = dy_LP.to(tl.float32)
        dx_LP = du_LP * dt_L[:, None] + dy32_LP * D_h
        tl.store(dx + ((b * T + t[:, None]) * H + h) * P + p[None, :], dx_LP.to(dx.dtype.element_ty), mask=in_L1)
        dD_h = tl.sum(tl.sum(x32_LP * dy32_LP, axis=1), axis=0)

        # The weight C_i·B_j E_ij dt_j has the gradient x_j·dy_i.
        R_LL = tl.dot(x_LP, tl.trans(dy_LP), input_precision="ieee") * E_LL
        W_LL = R_LL * dt_L[:, None]
        R_LL *= product_LL
        read_L = tl.sum(R_LL, axis=1)
        reads_L = tl.sum(R_LL * dt_L[:, None], axis=0)
        W_LL = W_LL.to(x_LP.dtype)
        entering_LN = tl.dot(dy_LP, start_PN, input_precision="ieee") * from_L[:, None]
        entering_L = tl.sum(entering_LN * C_LN.to(tl.float32), axis=1)
        dC_LN += entering_LN
        dC_LN = tl.dot(tl.trans(W_LL), B_LN, dC_LN, input_precision="ieee")
        dB_LN = tl.dot(W_LL, C_LN, dB_LN, input_precision="ieee")
        scaled_LP = (x32_LP * (dt_L * to_L)[:, None]).to(x_LP.dtype)
        dB_LN = tl.dot(scaled_LP, dend_PN, dB_LN, input_precision="ieee")

        # The log-decay of token t carries every reading that crosses from before t to t or after it.
        survival = tl.exp2(s_end)
        if HAS_RESET:
            survival = tl.where(doc_end == 0, survival, 0.0)
        passing = tl.sum(tl.sum(dend_PN.to(tl.float32) * start_PN.to(tl.float32), axis=1), axis=0) * survival
        leaving = tl.sum(dt_L * leaving_L, axis=0)
        balance_L = reads_L + entering_L - dt_L * (read_L + leaving_L)
        dlog_L = tl.cumsum(balance_L, axis=0, reverse=True) + (passing + leaving)
        if HAS_RESET:
            reset_L = tl.load(reset + t * reset_st, mask=t < T, other=0)
            dlog_L = tl.where(reset_L != 0, 0.0, dlog_L)
        tl.store(ddt + (b * T + t) * H + h, read_L + leaving_L + A_h * dlog_L, mask=t < T)
        tl.store(dA + (b * chunks + c) * H + h, tl.sum(dt_L * dlog_L, axis=0))
        tl.store(dD + (b * chunks + c) * H + h, dD_h)
    out = split * parts_sb + ((b * T + t[:, None]) * groups + g) * N + n[None, :]
    tl.store(dB + out, dB_LN.to(dB.dtype.element_ty), mask=in_L1)
    tl.store(dC + out, dC_LN.to(dC.dtype.element_ty), mask=in_L1)
