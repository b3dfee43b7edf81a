"""Training a datastore's experts in several processes, one expert after the other in each."""

from collections.abc import Callable, Generator
from pathlib import Path

from hullft_ops.ttft.errors import ScaleError
from hullft_ops.ttft.experts.build import Task, TrainExperts
from hullft_ops.ttft.experts.expert_trainer import ExpertTrainer
from hullft_ops.ttft.experts.folder import Manifest, fingerprint, store_digest
from hullft_ops.ttft.model.loading import load_model
from hullft_ops.ttft.scale.cluster import Workers, done_by_workers, found_anywhere
from hullft_ops.ttft.store.datastore import Datastore


def load_training(
    model: str | None, path: Path, device: str, manifest: Manifest
) -> Callable[[Task], tuple[int, dict[str, bytes]]]:
    """What a worker does: an expert and its files, trained on the texts at some positions."""
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
    return lambda task: (task[0], trainer.files(*task))


def ray_training(model: str | None, store: Path, workers: Workers) -> TrainExperts:
    """Pass this to `build_experts` to train in Ray's workers, each one expert at a time.

    With as many threads, the experts have the bits of a single process. `load_model` loads
    ``model`` and `Datastore.open` opens ``store`` on the workers' machines too.
    """

    def train(
        manifest: Manifest, tasks: list[Task]
    ) -> Generator[tuple[int, dict[str, bytes]]]:
        arguments = (
            model and found_anywhere(model),
            store.resolve(),
            workers.device,
            manifest,
        )
        return done_by_workers(load_training, arguments, tasks, workers)

    return train
