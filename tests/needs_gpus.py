"""The marks of tests that run on GPUs."""

import pytest
import torch


def needs_gpus(count: int = 1) -> list[pytest.MarkDecorator]:
    """Return the marks of a test that needs `count` CUDA GPUs and is skipped on a machine with fewer."""
    too_few = torch.cuda.device_count() < count
    return [pytest.mark.gpu, pytest.mark.skipif(too_few, reason=f"needs {count} CUDA GPU{'s' * (count > 1)}")]
