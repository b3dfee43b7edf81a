"""The regions of a datastore: spherical k-means of its embeddings."""

from dataclasses import dataclass

import numpy as np
import torch

from hullft_ops._extras import needed_by

_ROUNDS = 25
# As many texts for each cluster decide its place; the others only join a cluster.
_SAMPLE = 256


@dataclass(frozen=True)
class Clusters:
    """A datastore's texts in groups, each with one text at least."""

    centroids: torch.Tensor  # float32 [C, dim], means of unit vectors, not normalised
    sizes: torch.Tensor  # int64 [C], the number of texts in each
    texts: (
        torch.Tensor
    )  # int64 [count], positions cluster by cluster, nearest to the centroid first

    def texts_of(self, cluster: int) -> list[int]:
        """The positions of a cluster's texts, nearest to its centroid first."""
        end = int(self.sizes[: cluster + 1].sum())
        found: list[int] = self.texts[end - int(self.sizes[cluster]) : end].tolist()
        return found


def spherical_clusters(embeddings: torch.Tensor, clusters: int, seed: int) -> Clusters:
    """Cluster unit vectors, float32 ``[count, dim]``, by their inner products, with FAISS.

    ``seed`` chooses the sample and the first centroids. With one thread, equal arguments give equal
    bits.
    """
    with needed_by("build_experts"):
        import faiss

    matrix = embeddings.numpy()
    kmeans = faiss.Kmeans(
        matrix.shape[1],
        clusters,
        niter=_ROUNDS,
        spherical=True,
        seed=seed,
        # A small datastore has fewer; FAISS would warn.
        min_points_per_centroid=1,
        max_points_per_centroid=_SAMPLE,
    )
    kmeans.train(matrix)
    scores, nearest = kmeans.assign(matrix)
    labels = _none_empty(nearest, scores, clusters)
    groups = [np.flatnonzero(labels == cluster) for cluster in range(clusters)]
    means = [matrix[rows].mean(axis=0, dtype=np.float64) for rows in groups]
    centroids = np.stack(means).astype(np.float32)
    # On ties the lower position comes first.
    texts = [
        rows[np.argsort(-(matrix[rows] @ centroid), kind="stable")]
        for rows, centroid in zip(groups, centroids, strict=True)
    ]
    sizes, ordered = np.array([len(rows) for rows in groups]), np.concatenate(texts)
    return Clusters(*map(torch.from_numpy, (centroids, sizes, ordered)))


def _none_empty(nearest: np.ndarray, scores: np.ndarray, clusters: int) -> np.ndarray:
    """The cluster of each text. Equal embeddings can leave a centroid without any: it gets the text
    farthest from its own centroid, out of a cluster that keeps another."""
    labels, sizes = nearest.copy(), np.bincount(nearest, minlength=clusters)
    for empty in np.flatnonzero(sizes == 0):
        text = np.where(sizes[labels] > 1, scores, np.inf).argmin()
        sizes[labels[text]] -= 1
        labels[text], sizes[empty] = empty, 1
    return labels
