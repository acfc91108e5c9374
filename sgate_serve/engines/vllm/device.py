"""What the installed vLLM runs on."""


def has_gpu() -> bool:
    """Return whether the installed vLLM finds a GPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda_alike() or current_platform.is_xpu())
