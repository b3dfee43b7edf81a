"""Training a datastore's experts in several processes, one expert after the other in each."""

from collections.abc import Generator
from functools import cached_property
from pathlib import Path

from hullft_ops.ttft.errors import ScaleError
from hullft_ops.ttft.experts.build import Task, TrainExperts
from hullft_ops.ttft.experts.expert_trainer import ExpertTrainer
from hullft_ops.ttft.experts.folder import Manifest, fingerprint, store_digest
from hullft_ops.ttft.model.loading import checked_device, load_model
from hullft_ops.ttft.model.memory import keep_freed_memory
from hullft_ops.ttft.scale.cluster import (
    Workers,
    cluster,
    completed,
    found_anywhere,
    staff,
    use_threads,
)
from hullft_ops.ttft.store.datastore import Datastore


class ExpertWorker:
    """Holds a model and a datastore, which the first expert loads."""

    def __init__(
        self, threads: int, model: str | None, store: str, device: str, manifest: Manifest
    ) -> None:
        self._threads, self._model, self._store = threads, model, store
        self._device, self._manifest = device, manifest

    def files(self, expert: int, positions: list[int]) -> dict[str, bytes]:
        """The expert's files. It is trained on the texts at these positions."""
        return self._trainer.files(expert, positions)

    @cached_property
    def _trainer(self) -> ExpertTrainer:
        use_threads(self._threads)
        keep_freed_memory()
        # The driver has loaded the model, whatever weights it lacks.
        model, tokenizer = load_model(
            self._model, checked_device(self._device), allow_missing_weights=True
        )
        store = Datastore.open(self._store, verify=False)
        found, wanted = (fingerprint(model), store_digest(store)), self._manifest
        if found != (wanted.fingerprint, wanted.store):
            raise ScaleError(
                "a worker has another model or datastore than the driver under the same name: "
                f"digests {found}, the driver's are {(wanted.fingerprint, wanted.store)}"
            )
        return ExpertTrainer(model, tokenizer, store, wanted)


def ray_training(model: str | None, store: Path, workers: Workers) -> TrainExperts:
    """Pass this to `build_experts` to train in Ray's workers, each one expert at a time.

    With as many threads, the experts have the bits of a single process.

    Args:
        model: the name by which `load_model` loads the model, on the workers' machines too.
        store: the datastore's directory.
        workers: how many workers, and what each computes with.
    """

    def train(manifest: Manifest, tasks: list[Task]) -> Generator[tuple[int, dict[str, bytes]]]:
        if not tasks:
            return
        needed = (
            model and found_anywhere(model),
            str(store.resolve()),
            "cuda" if workers.gpus else "cpu",
            manifest,
        )
        with (
            cluster(workers) as found,
            staff(ExpertWorker, found, [needed] * min(found.count or 1, len(tasks))) as actors,
        ):
            for position, files in completed(actors, tasks, lambda a, t: a.files.remote(*t)):
                yield tasks[position][0], files

    return train
