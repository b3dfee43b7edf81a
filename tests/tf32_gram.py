"""What three TF32 products make of a float32 Gram matrix: a model of csrc/cuda/gram_slice.cuh.

A float32 x is hi + lo, both of TF32's 11 bits. Of the product (hi + lo)(hi' + lo') the model leaves
out lo lo'. A tensor core multiplies exactly and adds 8 products to a float32 sum that it cuts off
instead of rounding it (Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor
cores", PeerJ Computer Science, 2021).
"""

import numpy as np

DEPTH = 8
"""Products that one instruction adds to a sum: mma.m16n8k8."""
SLICE = 16
"""Columns whose products have sums of their own: four lanes have four each, two for either of two
instructions."""

Matrix = np.ndarray


def masked(bits: Matrix) -> Matrix:
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def split(x: Matrix) -> tuple[Matrix, Matrix]:
    """hi, rounded to the nearest number of 11 bits, ties away from 0, and lo, cut off."""
    hi = masked(x.view(np.uint32) + np.uint32(0x1000))
    return hi, masked((x - hi).view(np.uint32))


def cut(x: Matrix) -> Matrix:
    """float64 to float32, toward 0."""
    nearest = x.astype(np.float32)
    beyond = np.abs(nearest.astype(np.float64)) > np.abs(x)
    return np.where(beyond, np.nextafter(nearest, np.float32(0)), nearest)


def accumulate(a: Matrix, b: Matrix, sums: Matrix | None = None) -> Matrix:
    """sums + a b^T in the tensor core's steps of DEPTH columns."""
    if sums is None:
        sums = np.zeros((len(a), len(b)), np.float32)

    for start in range(0, a.shape[1], DEPTH):
        part = slice(start, start + DEPTH)
        products = a[:, part].astype(np.float64) @ b[:, part].astype(np.float64).T
        sums = cut(sums.astype(np.float64) + products)
    return sums


def gram(pool: Matrix) -> Matrix:
    """The Gram matrix of pool [K, d], float32. hi lo' and lo hi' have sums of their own, so that
    those of rows i and j are those of j and i."""
    rows, dim = pool.shape
    padded = np.zeros((rows, -(-dim // SLICE) * SLICE), np.float32)
    padded[:, :dim] = pool
    # [slice, instruction, 8 columns] of each row.
    lanes = padded.reshape(rows, -1, 4, 2, 2)
    slices = lanes.swapaxes(2, 3).reshape(rows, -1, SLICE)
    total = np.zeros((rows, rows), np.float32)

    for start in range(slices.shape[1]):
        hi, lo = split(np.ascontiguousarray(slices[:, start]))
        corrections = accumulate(hi, lo) + accumulate(lo, hi)
        total += accumulate(hi, hi, corrections)
    return total
