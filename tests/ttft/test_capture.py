"""What a capture leaves behind, in a model of torch's bookkeeping, read in its sources."""

import warnings
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from hullft_ops.ttft import capture
from hullft_ops.ttft.capture import Recorder

DEVICE = torch.device("cuda", 0)


class Generator:
    """As in torch: an object whose state can be another's."""

    def __init__(self, state):
        self.state = state

    def graphsafe_get_state(self):
        return Generator(self.state)

    def graphsafe_set_state(self, other):
        self.state = other.state

    def clone_state(self):
        return Generator(SimpleNamespace(capturing=False))


class Cuda:
    """torch.cuda of 2.11."""

    def __init__(self):
        self.is_invalid = False  # the capture that is underway
        self.underway = set()
        self.shares = {}
        self.current = "default"
        self.streams = []
        self.pools = 0
        self.generator = Generator(SimpleNamespace(capturing=False))
        self.default_generators = [self.generator]
        self.CUDAGraph = self.new_graph
        self.Stream = self.new_stream

    def graph_pool_handle(self):
        self.pools += 1
        return (0, self.pools)

    def new_graph(self):
        graph = SimpleNamespace(has_ended=False)
        graph.reset = lambda: self.reset(graph)
        return graph

    def reset(self, graph):
        if graph.has_ended:
            self.release_pool(0, graph.pool)
            graph.has_ended = False

    def device(self, device):
        return nullcontext()

    def current_stream(self, device):
        return self.current

    def new_stream(self, device, priority):
        self.streams.append(priority)
        return "of captures"

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph, pool, stream, mode):
        self.shares[pool] = self.shares.get(pool, 0) + 1
        self.underway.add(pool)
        graph.pool = pool
        state = self.generator.state
        state.capturing = True
        before, self.current = self.current, stream
        try:
            yield
        finally:
            if self.is_invalid:
                raise RuntimeError("failed due to a previous error during capture")
            self.underway.remove(pool)
            state.capturing = False
            graph.has_ended = True
            self.current = before

    def end_allocate(self, index, pool):
        if pool not in self.underway:
            raise RuntimeError("not currently recording to this pool")
        self.underway.remove(pool)

    def release_pool(self, index, pool):
        self.shares[pool] -= 1
        assert self.shares[pool] >= 0

    def empty_cache(self):
        assert not self.underway
        self.shares = {pool: n for pool, n in self.shares.items() if n > 0}

    def memory_snapshot(self):
        segment = {"device": 0, "active_size": 0}
        return [segment | {"segment_pool_id": pool} for pool in self.shares]


@pytest.fixture
def cuda(monkeypatch):
    cuda = Cuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    private = {
        "_cuda_endAllocateToPool": cuda.end_allocate,
        "_cuda_releasePool": cuda.release_pool,
    }
    for name, fake in private.items():
        monkeypatch.setattr(torch._C, name, fake, raising=False)
    capture._capture_stream.cache_clear()
    yield cuda
    capture._capture_stream.cache_clear()


@pytest.mark.parametrize("is_invalid", [True, False], ids=["waits", "has no memory"])
def test_a_capture_that_fails_leaves_torch_as_it_was(cuda, is_invalid):
    def run():
        cuda.is_invalid = is_invalid
        raise RuntimeError("not permitted")

    recorder = Recorder(DEVICE)
    state = cuda.generator.state
    graph, _ = recorder.record(lambda: "loss")
    with pytest.raises(RuntimeError):
        recorder.record(run)

    assert cuda.generator.state is state
    assert not state.capturing
    assert cuda.current == "default"
    assert not cuda.underway

    graph.reset()
    recorder.release()
    assert not cuda.shares

    cuda.is_invalid = False
    recorder.record(lambda: "loss")
    Recorder(DEVICE).record(lambda: "loss")
    capture._FAILED.pop().reset()  # as at the end of the process

    assert cuda.shares == {(0, 2): 1, (0, 3): 1}
    assert cuda.streams == [-1]  # one for all


class Stream:
    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def wait_stream(self, other):
        self.calls.append(f"{self.name} waits for {other.name}")


@pytest.mark.parametrize("fails", [False, True])
def test_a_rehearsal_runs_where_captures_do(cuda, fails):
    def run():
        calls.append(f"runs on {cuda.current.name}")
        if fails:
            raise RuntimeError("no memory")
        return loss

    calls = []
    cuda.current = caller = Stream("caller", calls)
    captures = Stream("captures", calls)
    cuda.Stream = lambda device, priority: captures
    loss = SimpleNamespace(record_stream=lambda stream: calls.append(stream.name))
    with pytest.raises(RuntimeError) if fails else nullcontext():
        assert Recorder(DEVICE).rehearse(run) is loss

    waits = [
        "captures waits for caller",
        "runs on captures",
        "caller waits for captures",
    ]
    assert calls == waits + ["caller"] * (not fails)
    assert cuda.current is caller


def test_waits_are_told_apart_from_other_warnings(monkeypatch):
    modes = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def warn():
        with Recorder(DEVICE).watched() as waits:
            warnings.warn("Synchronization debug mode is a prototype", stacklevel=1)
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            warnings.warn("deprecated", stacklevel=1)
        return waits

    with pytest.warns(UserWarning, match="^deprecated$") as others:
        waits = warn()

    assert (len(waits), len(others)) == (1, 1)
    assert modes == [0, "warn", 0]
