"""Layers of a jepamba model in plain PyTorch: Mamba-2, sliding-window attention, MLP, block, U-Net skips, head.

`jepamba export` writes this file next to `modeling_jepamba.py`, where the model is. It imports nothing of jepamba.

Legend: B batch, T tokens, D width of the residual stream, V vocabulary, E width of the embedding, I inner width of a
mixer (H heads × P), G groups, N state, C = I + 2·G·N channels of the convolution, W taps or window, c chunks of L
tokens.
"""

import torch
import torch.nn.functional as F
from torch import nn


def rms_norm(x):
    """Divide by the root mean square of the last dimension."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


def ssd(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, state_BHPN, reset_BT, chunk_size):
    """Compute the recurrence S_t = exp(dt_t·A)·S_{t−1} + dt_t·x_t ⊗ B_t with output y_t = S_t·C_t, in fp32.

    A reset sets S_{t−1} to 0. Within a chunk of tokens it is a masked matrix product, and only the chunks follow each
    other (Dao & Gu 2024, arXiv 2405.21060, section 6). Returns (y_BTHP, the last state).
    """
    tokens, heads = x_BTHP.shape[1:3]
    if tokens == 1:  # a step of generation: the formula itself
        dt_BH11 = dt_BTH[:, 0, :, None, None]
        B_BHN, C_BHN = (value[:, 0].repeat_interleave(heads // value.shape[2], dim=1) for value in (B_BTGN, C_BTGN))
        state_BHPN = state_BHPN.masked_fill(reset_BT[..., None, None], 0) * (dt_BH11 * A_H[:, None, None]).exp()
        state_BHPN = state_BHPN + dt_BH11 * x_BTHP[:, 0].unsqueeze(-1) * B_BHN.unsqueeze(-2)
        return (state_BHPN @ C_BHN.unsqueeze(-1)).squeeze(-1).unsqueeze(1), state_BHPN
    L = min(chunk_size, tokens)

    def chunked(value):
        """(B, T, …) to (B, c, L, …). Padding has dt = 0, so it leaves the state as it is."""
        return F.pad(value, (0, 0) * (value.dim() - 2) + (0, -tokens % L)).unflatten(1, (-1, L))

    x_BcHLP = chunked(x_BTHP * dt_BTH.unsqueeze(-1)).transpose(2, 3)
    B_BcHLN, C_BcHLN = (
        chunked(value).transpose(2, 3).repeat_interleave(heads // value.shape[2], dim=2) for value in (B_BTGN, C_BTGN)
    )
    # The decay from token j to token i of a chunk is exp(total_i − total_j) if both are of one document.
    total_BcHL = chunked(dt_BTH * A_H).cumsum(2).transpose(2, 3)
    document_BcL = chunked(reset_BT).cumsum(2)
    visible_BcLL = (document_BcL.unsqueeze(-1) == document_BcL.unsqueeze(-2)).tril()
    decay_BcHLL = (
        (total_BcHL.unsqueeze(-1) - total_BcHL.unsqueeze(-2)).masked_fill(~visible_BcLL.unsqueeze(2), -torch.inf).exp()
    )
    reaches_end = (document_BcL == document_BcL[..., -1:]).unsqueeze(2)
    to_end_BcHL = (total_BcHL[..., -1:] - total_BcHL).masked_fill(~reaches_end, -torch.inf).exp()
    from_start_BcHL = total_BcHL.masked_fill((document_BcL > 0).unsqueeze(2), -torch.inf).exp()

    y_BcHLP = (C_BcHLN @ B_BcHLN.transpose(-1, -2) * decay_BcHLL) @ x_BcHLP
    added_BcHPN = (x_BcHLP * to_end_BcHL.unsqueeze(-1)).transpose(-1, -2) @ B_BcHLN
    starts = []
    for c in range(added_BcHPN.shape[1]):
        starts.append(state_BHPN)
        state_BHPN = from_start_BcHL[:, c, :, -1, None, None] * state_BHPN + added_BcHPN[:, c]
    carried_BcHLP = C_BcHLN @ torch.stack(starts, dim=1).transpose(-1, -2)
    y_BcHLP = y_BcHLP + carried_BcHLP * from_start_BcHL.unsqueeze(-1)
    return y_BcHLP.transpose(2, 3).flatten(1, 2)[:, :tokens], state_BHPN


class Mamba2(nn.Module):
    """The Mamba-2 mixer. Its state is the last W − 1 inputs of the convolution and the state of the recurrence."""

    def __init__(self, config):
        super().__init__()
        self.inner, self.heads, self.headdim = config.d_inner, config.heads, config.headdim
        self.groups, self.d_state, self.chunk_size = config.ngroups, config.d_state, config.chunk_size
        self.channels = self.inner + 2 * self.groups * self.d_state
        self.conv_weight = nn.Parameter(torch.randn(self.channels, config.d_conv) * config.d_conv**-0.5)
        self.conv_bias = nn.Parameter(torch.zeros(self.channels))
        self.dt_bias = nn.Parameter(torch.full((self.heads,), -4.6))  # softplus(−4.6) = 0.01
        self.A_log = nn.Parameter(torch.linspace(1, 16, self.heads).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm_weight = nn.Parameter(torch.ones(self.inner))
        self.in_proj = nn.Linear(config.d_model, self.inner + self.channels + self.heads, bias=False)
        self.out_proj = nn.Linear(self.inner, config.d_model, bias=False)

    def initial_state(self, u_BTD):
        batch, taps = len(u_BTD), self.conv_weight.shape[1]
        history_BWC = u_BTD.new_zeros(batch, taps - 1, self.channels)
        return history_BWC, u_BTD.new_zeros(batch, self.heads, self.headdim, self.d_state, dtype=torch.float32)

    def forward(self, u_BTD, reset_BT, state):
        history_BWC, state_BHPN = state
        z_BTI, raw_BTC, dt_BTH = self.in_proj(u_BTD).split([self.inner, self.channels, self.heads], dim=-1)
        xBC_BTC, history_BWC = self.convolve(raw_BTC, history_BWC, reset_BT)
        x, B, C = xBC_BTC.float().split([self.inner, *[self.groups * self.d_state] * 2], dim=-1)
        x_BTHP = x.unflatten(-1, (self.heads, self.headdim))
        B_BTGN, C_BTGN = (value.unflatten(-1, (self.groups, self.d_state)) for value in (B, C))
        dt_BTH = F.softplus(dt_BTH.float() + self.dt_bias.float())
        A_H = -self.A_log.float().exp()
        y_BTHP, state_BHPN = ssd(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, state_BHPN, reset_BT, self.chunk_size)
        y_BTI = (y_BTHP + self.D.float().unsqueeze(-1) * x_BTHP).flatten(-2)
        normed_BTI = F.rms_norm(y_BTI * F.silu(z_BTI.float()), (self.inner,), self.norm_weight.float(), eps=1e-5)
        return self.out_proj(normed_BTI.to(z_BTI.dtype)), (history_BWC, state_BHPN)

    def convolve(self, x_BTC, history_BWC, reset_BT):
        """Return silu(causal depthwise convolution), which reads no other document, and the new history."""
        tokens, taps = x_BTC.shape[1], self.conv_weight.shape[1]
        padded_BSC = torch.cat([history_BWC, x_BTC], dim=1)
        document_BT = reset_BT.cumsum(1)
        document_BS = F.pad(document_BT, (taps - 1, 0))
        y_BTC = self.conv_bias.expand_as(x_BTC)
        for tap in range(taps):
            same_BT = document_BS[:, tap : tap + tokens] == document_BT
            y_BTC = y_BTC + padded_BSC[:, tap : tap + tokens] * same_BT.unsqueeze(-1) * self.conv_weight[:, tap]
        still_BW = document_BS[:, tokens:] == document_BT[:, -1:]
        return F.silu(y_BTC), padded_BSC[:, tokens:] * still_BW.unsqueeze(-1)


class SlidingAttention(nn.Module):
    """Attention to the token itself and the W − 1 before it in its document. The state is their keys and values."""

    def __init__(self, config):
        super().__init__()
        self.heads, self.inner, self.window = config.heads, config.d_inner, config.attention_window
        self.in_proj = nn.Linear(config.d_model, 3 * self.inner, bias=False)
        self.out_proj = nn.Linear(self.inner, config.d_model, bias=False)

    def initial_state(self, u_BTD):
        none = u_BTD.new_zeros(len(u_BTD), self.window - 1, self.inner)
        return none, none, torch.zeros(none.shape[:2], dtype=torch.bool, device=none.device)

    def forward(self, u_BTD, reset_BT, state):
        past_keys, past_values, valid = state  # valid: of the document of the last token
        tokens, past = u_BTD.shape[1], self.window - 1
        query, key, value = self.in_proj(u_BTD).chunk(3, dim=-1)
        query, key = (rms_norm(part.unflatten(-1, (self.heads, -1))).flatten(-2) for part in (query, key))
        keys, values = torch.cat([past_keys, key], dim=1), torch.cat([past_values, value], dim=1)
        document_BT = reset_BT.cumsum(1)
        documents = torch.cat([valid.long() - 1, document_BT], dim=1)
        # Only distances matter to rotary positions, so they count from the oldest token of the state.
        position = torch.arange(past + tokens, device=u_BTD.device)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, keys, values))
        q, k = rotate(q, position[past:]), rotate(k, position)
        mixed = []
        for start in range(0, tokens, self.window):  # blocks of queries keep the cost linear in the tokens
            rows, columns = slice(start, min(start + self.window, tokens)), slice(start, start + self.window + past)
            distance = position[past:][rows, None] - position[None, columns]
            visible = (distance >= 0) & (distance <= past)
            visible = visible & (document_BT[:, rows, None] == documents[:, None, columns])
            mixed.append(
                F.scaled_dot_product_attention(
                    q[:, :, rows], k[:, :, columns], v[:, :, columns], attn_mask=visible.unsqueeze(1)
                )
            )
        mixed_BTI = torch.cat(mixed, dim=2).transpose(1, 2).flatten(-2)
        valid = documents[:, tokens:] == document_BT[:, -1:]
        return self.out_proj(mixed_BTI), (keys[:, tokens:], values[:, tokens:], valid)


def rotate(x_BHTP, position_T):
    """Rotate the pairs (i, i + P/2) by position · 10000^(−2i/P) (Su et al. 2021)."""
    half = x_BHTP.shape[-1] // 2
    rates = 10_000.0 ** (-torch.arange(half, device=x_BHTP.device, dtype=torch.float32) / half)
    angle = position_T[:, None].float() * rates
    first, second = x_BHTP.float().split(half, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BHTP.dtype)


class Mlp(nn.Module):
    """down(rms(relu(up x)²)), or down(rms(silu(gate x) · up x))."""

    def __init__(self, config):
        super().__init__()
        hidden = round(config.mlp_mult * config.d_model)
        self.up = nn.Linear(config.d_model, hidden, bias=False)
        self.gate = nn.Linear(config.d_model, hidden, bias=False) if config.mlp == "swiglu" else None
        self.down = nn.Linear(hidden, config.d_model, bias=False)

    def forward(self, x_BTD):
        up = self.up(x_BTD)
        return self.down(rms_norm(F.relu(up).square() if self.gate is None else F.silu(self.gate(x_BTD)) * up))


class Block(nn.Module):
    """x = mix₀·x + mix₁·x0; x += ssm_scale·mixer(rms(x)); in some blocks x += mlp_scale·MLP(rms(x))."""

    def __init__(self, config, index):
        super().__init__()
        every = config.attention_every
        self.mix = nn.Parameter(torch.stack([torch.ones(config.d_model), torch.zeros(config.d_model)]))
        self.ssm_scale = nn.Parameter(torch.ones(config.d_model))
        self.mixer = SlidingAttention(config) if every and index % every == every // 2 else Mamba2(config)
        self.mlp = None
        if index % config.mlp_every == 0:
            self.mlp_scale = nn.Parameter(torch.ones(config.d_model))
            self.mlp = Mlp(config)

    def forward(self, x_BTD, x0_BTD, reset_BT, state):
        x_BTD = self.mix[0] * x_BTD + self.mix[1] * x0_BTD
        normed_BTD = rms_norm(x_BTD)
        mixed_BTD, state = self.mixer(normed_BTD, reset_BT, state or self.mixer.initial_state(normed_BTD))
        x_BTD = x_BTD + self.ssm_scale * mixed_BTD
        if self.mlp is not None:
            x_BTD = x_BTD + self.mlp_scale * self.mlp(rms_norm(x_BTD))
        return x_BTD, state


class Skips(nn.Module):
    """U-Net skips: block half + k adds weight · (output of block half − 1 − k)."""

    def __init__(self, config):
        super().__init__()
        half = config.n_layer // 2
        pairs = range(0 if config.self_skip else 1, half if config.unet else 0)
        self.source = {half + k: half - 1 - k for k in pairs}
        if self.source:
            self.skip_weight = nn.Parameter(torch.ones(len(self.source), config.d_model))

    def forward(self, index, outputs):
        """Return the output of the last block, with the skip into block `index` if it has one."""
        if index not in self.source:
            return outputs[-1]
        row = list(self.source).index(index)
        return outputs[-1] + self.skip_weight[row] * outputs[self.source[index]]


class Head(nn.Module):
    """Soft-capped logits of the next token."""

    def __init__(self, config):
        super().__init__()
        self.tie, self.softcap, self.cap = config.tie, config.softcap, config.cap
        self.vocab_bias = nn.Parameter(torch.zeros(config.vocab_size))
        if self.tie == 0:
            self.separate = nn.Linear(config.d_model, config.vocab_size, bias=False)
        elif self.tie == 3 or config.embed_dim != config.d_model:
            self.embed_proj_rev = nn.Linear(config.d_model, config.embed_dim, bias=False)
        if self.tie == 2:
            self.correction = nn.Parameter(torch.zeros(config.vocab_size, config.embed_dim))

    def forward(self, h_BTD, embedding_VE):
        if hasattr(self, "embed_proj_rev"):
            h_BTD = self.embed_proj_rev(h_BTD)
        if self.tie == 3:
            h_BTD = F.gelu(h_BTD)
        matrix = self.separate.weight if self.tie == 0 else embedding_VE
        if self.tie == 2:
            matrix = matrix + self.correction
        logits = F.linear(h_BTD, matrix).float() + self.vocab_bias.float()
        if self.softcap == "tanh":
            return self.cap * torch.tanh(logits / self.cap)
        if self.softcap == "poly":
            u = (logits / self.cap).clamp(-2, 2)
            return self.cap * (u * (1 - u**2 / 3 + u**4 / 15)).clamp(-1, 1)
        return logits
