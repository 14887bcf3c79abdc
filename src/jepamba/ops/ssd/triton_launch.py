"""What the launches of the Triton kernels share: supported sizes, launch settings, descriptors, prepared decays."""

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from jepamba.errors import UserError
from jepamba.ops.ssd.triton_decays import prepare_kernel

WIDTHS = (32, 64, 128)
"""Head widths that the kernels take."""
STATES = (16, 32, 64, 128)
"""State widths that the kernels take."""
CHUNKS = (16, 32, 64, 128)
"""Chunk lengths that the kernels take."""
DTYPES = (torch.float32, torch.bfloat16)
FLOAT32 = "tf32x3"
"""How products of float32 are taken: each as three of TF32, which keeps full precision on the tensor cores."""
BLOCK = 4
"""Chunks that a program of the two small kernels takes at once."""
PROGRAMS = 528
"""Programs that fill a large GPU (four for each of 132 multiprocessors); fewer chunks than that split their heads."""


TUNED = {
    "forward": {"num_warps": 4, "STAGES": 3},
    "state": {"num_warps": 4, "STAGES": 2},
    "gradient": {"num_warps": 4, "STAGES": 2},
}
"""Launch settings of each kernel, the fastest measured for tiles of 64 × 64 on an H100 (docs/performance.md)."""


def takes(dtype: torch.dtype, width: int, n: int, chunk_size: int) -> bool:
    """Whether the kernels serve x of `dtype`, head width `width`, state `n` and chunks of `chunk` tokens."""
    return dtype in DTYPES and width in WIDTHS and n in STATES and chunk_size in CHUNKS


def launch(kernel: str, dtype: torch.dtype, L: int, width: int, n: int) -> dict[str, int | str]:
    """Launch settings: as tuned, more warps where the tiles are larger; how float32 products are taken."""
    settings: dict[str, int | str] = dict(TUNED[kernel])
    if max(L, width, n) > 64:
        settings["num_warps"] = 8
    if max(L, width, n) > 64 or dtype == torch.float32:
        # Tiles in flight would not fit in shared memory.
        settings["STAGES"] = 1
    return settings | {"PRECISION": FLOAT32}


def check(
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
    """UserError for what the kernels do not do."""
    problem = ""
    batch, length, heads, width = x.shape
    groups, n = B.shape[2:]
    if x.dtype not in DTYPES or B.dtype != x.dtype or C.dtype != x.dtype:
        problem = f"x, B and C must share one dtype, float32 or bfloat16, not {x.dtype}, {B.dtype} and {C.dtype}"
    elif width not in WIDTHS or n not in STATES:
        problem = f"head width {width} must be one of {WIDTHS} and state {n} one of {STATES}"
    elif chunk_size not in CHUNKS:
        problem = f"chunk {chunk_size} must be one of {CHUNKS}"
    elif length == 0 or batch == 0:
        problem = "there must be at least one token and one sequence"
    elif heads % groups or B.shape != (batch, length, groups, n) or C.shape != B.shape or dt.shape != x.shape[:3]:
        problem = f"shapes do not fit: x {x.shape}, dt {dt.shape}, B {B.shape}, C {C.shape}"
    elif A.shape != (heads,) or D.shape != (heads,):
        problem = f"A {A.shape} and D {D.shape} must have one value for each of {heads} heads"
    elif initial is not None and initial.shape != (batch, heads, width, n):
        problem = f"the initial state is {initial.shape}, not {(batch, heads, width, n)}"
    elif reset is not None and (reset.shape != x.shape[:2] or reset.dtype != torch.bool):
        problem = f"reset must be bool of shape {x.shape[:2]}, not {reset.dtype} of {reset.shape}"
    elif not x.is_cuda and not triton.knobs.runtime.interpret:
        problem = f"x is on {x.device}; the Triton kernels need a CUDA GPU"
    if problem:
        raise UserError(f"ssd_triton: {problem}; use ssd_chunked (plain PyTorch) for it")


def tiles(tensor: Tensor, L: int, width: int, *, written: bool = False) -> TensorDescriptor:
    """Descriptor of a (batch, time, heads, width) tensor for tiles of L tokens of one head; reads past the end give 0.

    The copy engine wants the last axis contiguous and everything else in steps of 16 bytes; a copy is made otherwise.
    Raises `ValueError` where that would be a copy of what is to be `written`.
    """
    step = 16 // tensor.element_size()
    strides = tensor.stride()
    if strides[3] != 1 or any(s % step or not s for s in strides[:3]) or tensor.data_ptr() % 16:
        if written:
            raise ValueError(f"a tensor with strides {strides} cannot be written to: rows must be whole 16 bytes")
        tensor = tensor.contiguous()
    return TensorDescriptor.from_tensor(tensor.transpose(1, 2), [1, 1, L, width])


def pairs(tiles: TensorDescriptor) -> TensorDescriptor:
    """The same tiles of bfloat16 as pairs in int32; of float32, the tiles themselves, never read as pairs."""
    if tiles.base.dtype == torch.float32:
        return tiles
    base = tiles.base.view(torch.int32)
    return TensorDescriptor.from_tensor(base, [*tiles.block_shape[:3], tiles.block_shape[3] // 2])


def states_of(tensor: Tensor, block: int) -> TensorDescriptor:
    """Descriptor of a (batch, heads, chunks, P, N) tensor for blocks of P of one state."""
    n = tensor.shape[-1]
    return TensorDescriptor.from_tensor(tensor.view(-1, tensor.shape[-2], n), [1, block, n])


def reset_bytes(reset: Tensor | None, like: Tensor) -> tuple[Tensor, int, int]:
    """The resets as bytes with their strides; without resets any pointer will do, since it is never read."""
    return (like, 0, 0) if reset is None else (reset.view(torch.int8), reset.stride(0), reset.stride(1))


def length(chunk_size: int, x: Tensor, n: int) -> int:
    """The chunk, or what is enough for a short sequence; float32 and wide tiles, large in shared memory, get less."""
    most = 32 if x.dtype == torch.float32 else 64 if max(x.shape[3], n) > 64 else 128
    length = 16
    while length < min(chunk_size, most) and length < x.shape[1]:
        length *= 2
    return length


def decay_tensors(
    dt: Tensor, A: Tensor, reset: Tensor | None, L: int, dt_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(dt in fp32 and the running sum of log2 decays in each chunk, (2, B, H, chunks·L); resets so far in each chunk,
    int32 (B, chunks·L), or empty without resets). With `dt_bias`, dt is raw and A stands for A_log (`run_forward`)."""
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
