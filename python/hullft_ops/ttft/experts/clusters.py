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
    """A datastore's texts in groups, each with one text at least.

    Attributes:
        centroids: float32 ``[C, dim]``: the mean of each cluster's unit vectors, not normalised.
        sizes: int64 ``[C]``: the number of texts in each cluster.
        texts: int64 ``[count]``: positions of the texts, cluster by cluster. Within a cluster,
            those nearest to the centroid come first.
    """

    centroids: torch.Tensor
    sizes: torch.Tensor
    texts: torch.Tensor

    def texts_of(self, cluster: int) -> list[int]:
        """The positions of a cluster's texts, nearest to its centroid first."""
        end = int(self.sizes[: cluster + 1].sum())
        found: list[int] = self.texts[end - int(self.sizes[cluster]) : end].tolist()
        return found


def spherical_clusters(embeddings: torch.Tensor, clusters: int, seed: int) -> Clusters:
    """Cluster unit vectors by their inner products, with FAISS.

    With one thread, equal arguments give equal bits.

    Args:
        embeddings: float32 ``[count, dim]`` on the CPU, each row of norm 1.
        clusters: how many, from 1 to ``count``.
        seed: chooses the sample and the first centroids.
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
    centroids = np.empty((clusters, matrix.shape[1]), np.float32)
    texts = []
    for cluster in range(clusters):
        rows = np.flatnonzero(labels == cluster)
        members = matrix[rows]
        centroids[cluster] = members.mean(axis=0, dtype=np.float64)
        # On ties the lower position comes first.
        texts.append(rows[np.argsort(-(members @ centroids[cluster]), kind="stable")])
    sizes = np.bincount(labels, minlength=clusters).astype(np.int64)
    ordered = np.concatenate(texts).astype(np.int64)
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
