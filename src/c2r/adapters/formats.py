"""The formats of engines by name, without the weight of what reads and writes them."""

from enum import StrEnum


class ExportFormat(StrEnum):
    """Engines whose formats can be written."""

    SGLANG = "sglang"
    VLLM = "vllm"
    TENSORRT_LLM = "trtllm"
    VLLM_ASCEND = "vllm-ascend"
    MEGATRON = "megatron"


class ImportFormat(StrEnum):
    """Files that can be read: traces of engines, and the pair counts of C2R's authors."""

    C2R_PICKLE = "c2r-pickle"
    SGLANG_PER_TOKEN = "sglang-per-token"
    VLLM_ROUTED = "vllm-routed"
    MEGATRON_TRACE = "megatron-trace"
    TENSORRT_LLM_RAW = "trtllm-raw"
    NPZ = "npz"
