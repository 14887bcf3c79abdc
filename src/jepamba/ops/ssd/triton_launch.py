"""Supported sizes, launch settings, descriptors and decay tensors of the Triton kernels."""

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from jepamba.errors import UserError
from jepamba.ops.dispatch import large_tiles_fit
from jepamba.ops.ssd.triton_decays import prepare_kernel

HEAD_DIMS = (32, 64, 128)
"""Supported head dimensions."""
STATE_DIMS = (16, 32, 64, 128)
"""Supported state dimensions."""
CHUNK_SIZES = (16, 32, 64, 128)
"""Supported chunk lengths."""
DTYPES = (torch.float32, torch.bfloat16)
FLOAT32 = "tf32x3"
"""Precision of float32 products: three TF32 products on the tensor cores, which give full precision."""
BLOCK = 4
"""Chunks per program of the decay kernels."""
PROGRAMS = 528
"""Programs that fill an H100, 4 for each of 132 multiprocessors. Fewer sequences are divided into segments."""
GRADIENT_PROGRAMS = 512
"""With fewer chunks, the heads of a chunk are split over several programs of the gradient kernel."""


TUNED = {
    "forward": {"num_warps": 4, "STAGES": 3},
    "state": {"num_warps": 4, "STAGES": 2},
    "gradient": {"num_warps": 4, "STAGES": 2},
}
"""Launch settings of each kernel: the fastest for tiles of 64 × 64 on an H100 (docs/performance.md)."""


def is_supported(dtype: torch.dtype, headdim: int, n: int, chunk_size: int) -> bool:
    """Whether the kernels support x of `dtype`, head dimension `headdim`, state dimension `n` and `chunk_size`."""
    return dtype in DTYPES and headdim in HEAD_DIMS and n in STATE_DIMS and chunk_size in CHUNK_SIZES


def launch(kernel: str, dtype: torch.dtype, L: int, width: int, n: int) -> dict[str, int | str]:
    """Return the launch settings of `kernel`, adapted to the tile size and dtype."""
    settings: dict[str, int | str] = dict(TUNED[kernel])
    large = max(L, width, n) > 64
    if dtype == torch.float32:
        # More stages would not fit in shared memory.
        settings = {"num_warps": 8 if large else 4, "STAGES": 1}
    elif large:
        # Eight warps are slower where the tiles have 64 tokens (docs/performance.md).
        settings["num_warps"] = 8 if L > 64 and kernel != "state" else 4
        fits = not (kernel == "gradient" and width > 64) and large_tiles_fit()
        settings["STAGES"] = 2 if fits else 1
    return settings | {"PRECISION": FLOAT32}


def gradient_launches(n: int) -> list[tuple[bool, bool]]:
    """Return (WITH_B, WITH_C) of each launch of the gradient kernel."""
    return [(True, False), (False, True)] if n > 64 else [(True, True)]


def check_inputs(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial: Tensor | None,
    reset: Tensor | None,
    chunk_size: int,
) -> None:
    """Raise `UserError` for inputs that the kernels do not support."""
    problem = ""
    batch, length, heads, headdim = x.shape
    groups, n = B.shape[2:]
    if x.dtype not in DTYPES or B.dtype != x.dtype or C.dtype != x.dtype:
        problem = f"x, B and C must share one dtype, float32 or bfloat16, not {x.dtype}, {B.dtype} and {C.dtype}"
    elif headdim not in HEAD_DIMS or n not in STATE_DIMS:
        problem = f"head dimension {headdim} must be one of {HEAD_DIMS} and state dimension {n} one of {STATE_DIMS}"
    elif chunk_size not in CHUNK_SIZES:
        problem = f"chunk_size {chunk_size} must be one of {CHUNK_SIZES}"
    elif length == 0 or batch == 0:
        problem = "there must be at least one token and one sequence"
    elif heads % groups or B.shape != (batch, length, groups, n) or C.shape != B.shape or dt.shape != x.shape[:3]:
        problem = f"shapes do not match: x {x.shape}, dt {dt.shape}, B {B.shape}, C {C.shape}"
    elif A.shape != (heads,) or D.shape != (heads,):
        problem = f"A {A.shape} and D {D.shape} must have one value for each of {heads} heads"
    elif initial is not None and initial.shape != (batch, heads, headdim, n):
        problem = f"the initial state is {initial.shape}, not {(batch, heads, headdim, n)}"
    elif reset is not None and (reset.shape != x.shape[:2] or reset.dtype != torch.bool):
        problem = f"reset must be bool of shape {x.shape[:2]}, not {reset.dtype} of {reset.shape}"
    elif not x.is_cuda and not triton.knobs.runtime.interpret:
        problem = f"x is on {x.device}; the Triton kernels need a CUDA GPU"
    if problem:
        raise UserError(f"ssd_triton: {problem}; use ssd_torch (plain PyTorch) instead")


def tiles(tensor: Tensor, L: int, width: int, *, written: bool = False) -> TensorDescriptor:
    """Return the descriptor of a (batch, time, heads, width) tensor for tiles of L tokens of one head.

    Reads past the end give 0. TMA needs a contiguous last axis and other strides that are multiples of 16 bytes;
    otherwise the tensor is copied. Raises `ValueError` if an output (`written`) would be copied.
    """
    step = 16 // tensor.element_size()
    strides = tensor.stride()
    if strides[3] != 1 or any(s % step or not s for s in strides[:3]) or tensor.data_ptr() % 16:
        if written:
            raise ValueError(f"cannot write to a tensor with strides {strides}: rows must be multiples of 16 bytes")
        tensor = tensor.contiguous()
    return TensorDescriptor.from_tensor(tensor.transpose(1, 2), [1, 1, L, width])


def pairs(tiles: TensorDescriptor) -> TensorDescriptor:
    """Return bfloat16 tiles as pairs in int32. Returns float32 tiles unchanged; the kernel does not read them."""
    if tiles.base.dtype == torch.float32:
        return tiles
    base = tiles.base.view(torch.int32)
    return TensorDescriptor.from_tensor(base, [*tiles.block_shape[:3], tiles.block_shape[3] // 2])


def states_of(tensor: Tensor, block: int) -> TensorDescriptor:
    """Return the descriptor of a (batch, heads, chunks, P, N) tensor for blocks of P of one state."""
    n = tensor.shape[-1]
    return TensorDescriptor.from_tensor(tensor.view(-1, tensor.shape[-2], n), [1, block, n])


def reset_bytes(reset: Tensor | None, like: Tensor) -> tuple[Tensor, int, int]:
    """Return the resets as int8 with their strides. Without resets, `like` is a placeholder that is not read."""
    return (like, 0, 0) if reset is None else (reset.view(torch.int8), reset.stride(0), reset.stride(1))


def chunk_length(chunk_size: int, x: Tensor, n: int) -> int:
    """Return `chunk_size`, or less for short sequences, float32 and large tiles, which are limited by shared memory."""
    max_length = 32 if x.dtype == torch.float32 else 64 if max(x.shape[3], n) > 64 else 128
    length = 16
    while length < min(chunk_size, max_length) and length < x.shape[1]:
        length *= 2
    return length


def decay_tensors(
    dt: Tensor, A: Tensor, reset: Tensor | None, L: int, dt_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (dt and the cumulative log2 decays of each chunk, the cumulative number of resets in each chunk).

    The first tensor is fp32 (2, B, H, chunks·L). The second is int32 (B, chunks·L), or empty without resets. With
    `dt_bias`, dt is raw and `A` is A_log (`run_forward`).
    """
    batch, tokens, heads = dt.shape
    chunks = triton.cdiv(tokens, L)
    decays = dt.new_empty(2, batch, heads, chunks * L, dtype=torch.float32)
    documents = dt.new_empty((0,) if reset is None else (batch, chunks * L), dtype=torch.int32)
    bytes_, reset_sb, reset_st = reset_bytes(reset, dt)
    prepare_kernel[(heads, batch, triton.cdiv(chunks, BLOCK))](
        dt, dt if dt_bias is None else dt_bias, A, bytes_, decays[0], decays[1], documents,
        tokens, heads, chunks, *dt.stride(), reset_sb, reset_st,
        L=L, BLOCK=BLOCK, HAS_RESET=reset is not None, RAW=dt_bias is not None,
    )  # fmt: skip
    return decays, documents
