"""What driver.h declares, and a plan of csrc/cuda, as structures of ctypes."""

import ctypes
from ctypes import c_bool, c_double, c_int, c_int32, c_int64, c_uint, c_void_p

import torch


def structure(fields: type) -> type[ctypes.Structure]:
    """The structure of C whose fields the class annotates, as driver.h declares it."""
    members = list(fields.__annotations__.items())
    return type(fields.__name__, (ctypes.Structure,), {"_fields_": members})


@structure
class Schedule:
    seed: c_uint
    max_shared_bytes: c_int64
    max_workspace_bytes: c_int64
    sms: c_int64
    rounds: c_int64


@structure
class Pool:
    base: c_void_p
    elements: c_int64
    batch_stride: c_int64
    row_stride: c_int64
    n_rows: c_int64
    candidates: c_void_p
    sizes: c_void_p
    width: c_int32
    storage: c_int32
    d: c_int64
    query: c_void_p
    batch: c_int64
    query_stride: c_int64


@structure
class Selection:
    indices: c_void_p
    counts: c_void_p
    support_size: c_void_p
    num_iter: c_void_p
    weights: c_void_p
    residual: c_void_p
    gap: c_void_p


@structure
class FwCase:
    pool: Pool
    out: Selection
    n_select: c_int32
    max_support: c_int32
    max_iter: c_int32
    swap_passes: c_int32
    variant: c_int32
    tol: c_double
    gap_tol: c_double
    force_gram: c_int32
    force_warp: c_int32
    force_threads: c_int32
    force_slots: c_int32


@structure
class LstsqCase:
    pool: Pool
    weights: c_void_p
    residual: c_void_p
    gap: c_void_p
    support_size: c_void_p
    num_iter: c_void_p
    constraint: c_int32
    force_gram: c_int32
    force_threads: c_int32


@structure
class AdjointCase:
    pool: Pool
    weights: c_void_p
    gradient: c_void_p
    out: c_void_p
    on_simplex: c_int32


@structure
class KnnCase:
    pool: Pool
    out: Selection
    n_select: c_int32


@structure
class SiftCase:
    pool: Pool
    out: Selection
    picks: c_void_p
    variance: c_void_p
    n_select: c_int32
    n_targets: c_int32
    noise: c_double
    force_gram: c_int32
    force_threads: c_int32


@structure
class LmoCase:
    pool: Pool
    current: c_void_p
    index: c_void_p
    correlation: c_void_p
    gamma: c_void_p
    gap: c_void_p


@structure
class IntegerizeCase:
    pool: Pool
    weights: c_void_p
    counts: c_void_p
    wide_weights: c_int32
    n_select: c_int32
    swap_passes: c_int32


@structure
class GramCase:
    pool: Pool
    gram: c_void_p
    products: c_void_p
    share: c_int64


@structure
class AdamCase:
    n: c_int32
    param_storage: c_int32
    grad_storage: c_int32
    decoupled: c_int32
    maximize: c_int32
    misalign: c_int32
    wide_steps: c_int32
    wide_lr: c_int32
    numels: c_void_p
    params: c_void_p
    grads: c_void_p
    exp_avgs: c_void_p
    exp_avg_sqs: c_void_p
    device_steps: c_void_p
    steps_done: c_void_p
    lr_scales: c_void_p
    repeats: c_int64
    lr: c_double
    beta1: c_double
    beta2: c_double
    eps: c_double
    weight_decay: c_double
    device_lr: c_void_p
    device_repeats: c_void_p
    seed: c_int64


@structure
class AccumulateCase:
    n: c_int32
    cache_storage: c_int32
    grad_storage: c_int32
    misalign: c_int32
    numels: c_void_p
    caches: c_void_p
    grads: c_void_p
    alpha: c_double
    beta: c_double


@structure
class Plan:
    """SolverPlan of csrc/cuda/plan.h."""

    gram: c_bool
    shared_state: c_bool
    warp: c_bool
    wide: c_bool
    wide_products: c_bool
    threads: c_int
    slots: c_int
    shared_limit: c_int64
    column_stride: c_int64
    state_bytes: c_int64
    states_offset: c_int64
    columns_offset: c_int64
    partial_offset: c_int64
    behind_offset: c_int64
    part: c_int64
    workspace_bytes: c_int64
    sms: c_int64
    rounds: c_int
    round: c_int
    share_columns: c_int64
    share_count: c_int


def storage_elements(tensor: torch.Tensor) -> int:
    """From the first element to the last one, gaps included."""
    if tensor.numel() == 0:
        return 0

    last = 0
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        last += (size - 1) * stride

    return 1 + last
