"""Clusters are those of the nearest centroid, none is empty, and the seed decides them."""

import torch

from hullft_ops.ttft.experts.build import Clusters, spherical_clusters


def unit_vectors(count: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(count, 6), dim=1)


def is_partition(found: Clusters, count: int) -> bool:
    return (
        sorted(found.texts.tolist()) == list(range(count))
        and int(found.sizes.min()) > 0
    )


def test_centroids_are_means_and_the_nearest_texts_come_first() -> None:
    vectors = unit_vectors(80)
    found = spherical_clusters(vectors, 5, seed=3)
    assert is_partition(found, 80)
    for cluster, centroid in enumerate(found.centroids):
        members = vectors[found.texts_of(cluster)]
        torch.testing.assert_close(centroid, members.mean(dim=0))
        scores = members @ centroid
        assert (scores.diff() <= 1e-6).all()
    # A text may prefer a neighbour of its centroid only as far as the last round moved them.
    directions = torch.nn.functional.normalize(found.centroids, dim=1)
    nearest = (vectors @ directions.T).argmax(dim=1)
    own = torch.empty(80, dtype=torch.int64)
    own[found.texts] = torch.arange(5).repeat_interleave(found.sizes)
    assert (nearest == own).float().mean() > 0.9


def test_the_seed_decides() -> None:
    vectors = unit_vectors(80)
    one, again, other = (spherical_clusters(vectors, 5, seed) for seed in (1, 1, 2))
    assert all(torch.equal(getattr(one, n), getattr(again, n)) for n in vars(one))
    assert not torch.equal(one.texts, other.texts)


def test_equal_texts_leave_no_cluster_empty() -> None:
    same = unit_vectors(1).repeat(6, 1)
    found = spherical_clusters(same, 4, seed=0)
    assert is_partition(found, 6)
    torch.testing.assert_close(found.centroids, same[:4])
    assert is_partition(spherical_clusters(unit_vectors(3), 3, seed=0), 3)
