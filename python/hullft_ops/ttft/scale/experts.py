"""Training a datastore's experts in several processes, one expert after the other in each."""

from collections.abc import Callable, Generator
from pathlib import Path

from hullft_ops.ttft.errors import ScaleError
from hullft_ops.ttft.experts.build import Task, TrainExperts
from hullft_ops.ttft.experts.expert_trainer import ExpertTrainer
from hullft_ops.ttft.experts.folder import Manifest, fingerprint, store_digest
from hullft_ops.ttft.model.loading import load_model
from hullft_ops.ttft.scale.cluster import Workers, cluster, completed, found_anywhere, staff
from hullft_ops.ttft.store.datastore import Datastore


def load_training(
    model: str | None, path: Path, device: str, manifest: Manifest
) -> Callable[[Task], dict[str, bytes]]:
    """What a worker does: the files of an expert, trained on the texts at some positions."""
    # The driver has loaded the model, whatever weights it lacks, and verified the datastore.
    loaded, tokenizer = load_model(model, device, allow_missing_weights=True)
    store = Datastore.open(path, verify=False)
    found = fingerprint(loaded), store_digest(store)
    wanted = manifest.fingerprint, manifest.store
    if found != wanted:
        raise ScaleError(
            "a worker has another model or datastore than the driver under the same name: "
            f"digests {found}, the driver's are {wanted}"
        )
    trainer = ExpertTrainer(loaded, tokenizer, store, manifest)
    return lambda task: trainer.files(*task)


def ray_training(model: str | None, store: Path, workers: Workers) -> TrainExperts:
    """Pass this to `build_experts` to train in Ray's workers, each one expert at a time.

    With as many threads, the experts have the bits of a single process. `load_model` loads
    ``model`` and `Datastore.open` opens ``store`` on the workers' machines too.
    """

    def train(manifest: Manifest, tasks: list[Task]) -> Generator[tuple[int, dict[str, bytes]]]:
        if not tasks:
            return
        arguments = model and found_anywhere(model), store.resolve(), workers.device, manifest
        with (
            cluster(workers) as count,
            staff(load_training, workers, [arguments] * min(count, len(tasks))) as actors,
        ):
            for position, files in completed(actors, tasks):
                yield tasks[position][0], files

    return train
