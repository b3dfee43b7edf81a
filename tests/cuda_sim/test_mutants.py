"""Mistakes that the tests must notice: each is one place of one source, changed."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from cuda_sim import build, worker


@dataclass(frozen=True)
class Mutant:
    """One wrong edit, the build and the check that see it, and what they say."""

    unit: str
    file: str
    old: str
    new: str
    kind: str
    case: str
    report: str


FW = "cuda/fw_block.cuh"
WRONG = "AssertionError"
RACE = "race on|read of uninitialised"
REPLAY = "cuda/adam_replay.cu"

MUTANTS = {
    "no barrier before the decision": Mutant(
        "frank_wolfe",
        FW,
        "update();\n      __syncthreads();",
        "update();",
        "race",
        "fw_gram",
        RACE,
    ),
    "no barrier after the decision": Mutant(
        "frank_wolfe",
        FW,
        "decide(action);\n      __syncthreads();",
        "decide(action);",
        "race",
        "fw_gram",
        RACE,
    ),
    "no barrier after a reduction": Mutant(
        "integerize",
        "cuda/reduce.cuh",
        "? scratch.indices[w] : first;\n  __syncthreads();",
        "? scratch.indices[w] : first;",
        "race",
        "integerize",
        RACE,
    ),
    "no warp barrier after a new entry": Mutant(
        "frank_wolfe",
        FW,
        "x_.table.weight[entry] = 0;\n    __syncwarp();\n    return entry;",
        "x_.table.weight[entry] = 0;\n    return entry;",
        "race",
        "fw_gram",
        RACE,
    ),
    "barrier in a divergent branch": Mutant(
        "gram",
        "cuda/gram.cu",
        "multiply_share(shared.operands, group, i, j, sums);\n    __syncthreads();",
        "multiply_share(shared.operands, group, i, j, sums);\n    if (group) __syncthreads();",
        "plain",
        "gram",
        "divergent barrier",
    ),
    "threads that leave early": Mutant(
        "lmo",
        "cuda/lmo.cu",
        "const S* c = products",
        "if (me.thread >= 96) return;\n  const S* c = products",
        "plain",
        "lmo",
        "divergent barrier|exited",
    ),
    "a mask that leaves lanes out": Mutant(
        "knn",
        "cuda/reduce.cuh",
        "value += __shfl_xor_sync(kFullWarp, value, lanes);",
        "value += __shfl_xor_sync(0x7fffffffu, value, lanes);",
        "plain",
        "knn",
        "warp mask leaves out its caller",
    ),
    "a row past the pool": Mutant(
        "frank_wolfe",
        "cuda/rows.cuh",
        "rows[k + r < last ? k + r : last - 1]",
        "rows[k + r]",
        "asan",
        "fw_full_support",
        "heap-buffer-overflow",
    ),
    "a vector past the row": Mutant(
        "frank_wolfe",
        "cuda/rows.cuh",
        "vectors ? d / kStep * kStep : 0",
        "vectors ? (d + kStep - 1) / kStep * kStep : 0",
        "asan",
        "fw_full_support_tail",
        "heap-buffer-overflow",
    ),
    "vectors where rows are not aligned": Mutant(
        "gram",
        "cuda/gram.cu",
        "if (pool.vectors && start",
        "if (start",
        "asan",
        "gram",
        "misaligned address",
    ),
    "one column too many": Mutant(
        "gram",
        "cuda/gram.cu",
        "tile.column + j < width)\n      gram[",
        "tile.column + j <= width)\n      gram[",
        "asan",
        "gram",
        "heap-buffer-overflow",
    ),
    "state that is never set": Mutant(
        "frank_wolfe",
        FW,
        "me_.n_threads) x_.u[k] = 0;",
        "me_.n_threads) x_.u[0] = 0;",
        "race",
        "fw_gram",
        RACE,
    ),
    "a tie to the highest index": Mutant(
        "frank_wolfe",
        "cuda/reduce.cuh",
        "__reduce_min_sync(kFullWarp, key == top ? uint32_t(mine.index) : uint32_t(kNoIndex))",
        "__reduce_max_sync(kFullWarp, key == top ? uint32_t(mine.index) : 0u)",
        "plain",
        "fw_ties",
        WRONG,
    ),
    "a tie between threads the wrong way": Mutant(
        "knn",
        "cuda/reduce.cuh",
        "index < best.index)) best =",
        "index > best.index)) best =",
        "plain",
        "knn",
        WRONG,
    ),
    "no mirror image": Mutant(
        "gram",
        "cuda/gram.cu",
        "tile.row != tile.column &&",
        "tile.row == tile.column &&",
        "plain",
        "gram",
        WRONG,
    ),
    "a share of d forgotten": Mutant(
        "gram",
        "cuda/gram.cu",
        "for (int g = 0; g < kGroups; ++g) sum",
        "for (int g = 1; g < kGroups; ++g) sum",
        "plain",
        "gram",
        WRONG,
    ),
    "a unit that is not there": Mutant(
        "integerize",
        "cuda/block_integerize.cuh",
        "x_.held[i] == 0 || x_.counts[i] == 0",
        "x_.held[i] == 0",
        "plain",
        "integerize",
        WRONG,
    ),
    "units of this pass moved on": Mutant(
        "integerize",
        "cuda/block_integerize.cuh",
        "x_.held[i] == 0 || x_.counts[i] == 0",
        "x_.counts[i] == 0",
        "plain",
        "integerize",
        WRONG,
    ),
    "one atom too many": Mutant(
        "frank_wolfe",
        FW,
        "(!corrective() && support_size_ >= p_.n_select)",
        "(!corrective() && support_size_ > p_.n_select)",
        "plain",
        "fw_full_support",
        WRONG,
    ),
    "one step too many": Mutant(
        "frank_wolfe",
        FW,
        "done_ = iterations_ >= p_.max_iter ||",
        "done_ = iterations_ > p_.max_iter ||",
        "plain",
        "fw_gram",
        WRONG,
    ),
    "a drop that stays": Mutant(
        "frank_wolfe",
        FW,
        "if (step.drops) leave(a_entry_);",
        "",
        "plain",
        "fw_drops",
        WRONG,
    ),
    "a column of the support evicted": Mutant(
        "frank_wolfe",
        FW,
        "while (x_.table.atom[next_victim_] >= 0)",
        "while (false)",
        "plain",
        "fw_evicted_columns",
        WRONG,
    ),
    "a missed flush": Mutant(
        "adam_replay",
        "cuda/multi_tensor.h",
        "return batch.n ? flush() : ok;",
        "return ok;",
        "plain",
        "adam",
        WRONG,
    ),
    "a full batch not flushed": Mutant(
        "adam_replay",
        "cuda/multi_tensor.h",
        "const Status status = flush();",
        "const Status status = ok;",
        "asan",
        "adam_many_tensors",
        "stack-buffer-overflow|SEGV|AssertionError",
    ),
    "an empty tensor swept": Mutant(
        "adam_replay",
        "cuda/multi_tensor.h",
        "if (entries[i].numel == 0) continue;",
        "if (entries[i].numel == 0) break;",
        "plain",
        "adam",
        WRONG,
    ),
    "bias correction a step late": Mutant(
        "adam_replay",
        REPLAY,
        "done + double(threadIdx.x + 1)",
        "done + double(threadIdx.x)",
        "plain",
        "adam",
        WRONG,
    ),
    "the table of steps not moved on": Mutant(
        "adam_replay",
        REPLAY,
        "tile == 0 || repeats > kStepTable",
        "tile == 0",
        "plain",
        "adam_many_steps",
        WRONG,
    ),
    "no barrier before the table is rewritten": Mutant(
        "adam_replay",
        REPLAY,
        "AdamStep<R>* steps) {\n  __syncthreads();",
        "AdamStep<R>* steps) {",
        "race",
        "adam_many_steps",
        RACE,
    ),
    "threads past the end leave a sweep with barriers": Mutant(
        "adam_replay",
        REPLAY,
        "T* param = static_cast<T*>(entry.param) + at;",
        "if (count == 0) return;\n    T* param = static_cast<T*>(entry.param) + at;",
        "plain",
        "adam",
        "divergent barrier|exited",
    ),
    "a step on the device not advanced": Mutant(
        "adam_replay",
        REPLAY,
        "return batch.n ? flush() : cudaSuccess;",
        "return cudaSuccess;",
        "plain",
        "adam_device_steps",
        WRONG,
    ),
    "the learning rate on the device not read": Mutant(
        "adam_replay",
        REPLAY,
        "if (call.device_lr) options.lr",
        "if (call.wide_lr) options.lr",
        "plain",
        "adam_device_lr",
        WRONG,
    ),
    "the same random bits for every thread": Mutant(
        "adam_replay",
        REPLAY,
        "rounding_words(key, at / kRoundingGroup)",
        "rounding_words(key, at / kSweepTile<float>)",
        "plain",
        "adam_stochastic",
        WRONG,
    ),
    "random bits that stay as steps go on": Mutant(
        "adam_replay",
        REPLAY,
        "{call.seed, entry.place, rounding_step(done)}",
        "{call.seed, entry.place, 0}",
        "plain",
        "adam_stochastic",
        WRONG,
    ),
    "vectors where tensors are not aligned": Mutant(
        "adam_replay",
        "cuda/sweep.cuh",
        "reinterpret_cast<uintptr_t>(p) % 16 == 0",
        "reinterpret_cast<uintptr_t>(p) % 2 == 0",
        "asan",
        "adam",
        "misaligned address",
    ),
    "one element too many": Mutant(
        "accumulate",
        "cuda/sweep.cuh",
        "if (j < count) p[j] = narrow[j];",
        "if (j <= count) p[j] = narrow[j];",
        "asan",
        "accumulate",
        "heap-buffer-overflow",
    ),
    "a cache read that may hold NaN": Mutant(
        "accumulate",
        "cuda/accumulate.cu",
        "if (beta != R(0)) {",
        "if (true) {",
        "plain",
        "accumulate",
        WRONG,
    ),
    "a bad row unnoticed": Mutant(
        "frank_wolfe",
        FW,
        "bad = bad || !finite(x_.b[k]);",
        "bad = bad || finite(x_.b[k]) < 0;",
        "plain",
        "fw_failures",
        WRONG,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_caught(name: str, tmp_path: Path) -> None:
    m = MUTANTS[name]
    library = build.build_patched(m.kind, m.unit, m.file, m.old, m.new, tmp_path)
    said = worker.run_cases(library, m.kind, [m.case], seed=0, timeout=60)
    assert re.search(m.report, said), f"wanted {m.report!r}, got:\n{said[-2000:]}"
