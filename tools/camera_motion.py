"""The camera's motion from matched points, UCN's Table 6 (section 4, "Camera Motion Estimation").

An essential matrix by OpenCV's five-point RANSAC, of the four motions it stands for the one with the
most inliers in front of both cameras, then least squares over what agrees with it. Points are (x, y) in
pixels, 0-based. How far a motion is from the true one: :mod:`cortado.layers._geometry.motion`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .opencv import opencv

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

LEAST = 6  # matches: five have up to ten essential matrices, and none to choose by
SAMPLES = 10_000  # all are tried: near a plane nearly all matches agree with a wrong motion, too
ROUNDS = 2  # of choosing matches and refining
REACH = 2.5  # thresholds: matches farther off take no part in refining
FAR = 1e9  # baselines: OpenCV's own limit, 50, drops what is far


@dataclass(frozen=True, eq=False)
class Found:
    """A motion: X2 ~ ``rotation`` X1 + s ``translation`` for some unknown s above 0, coordinates x
    right, y down, z forward.

    rotation: float64 [3, 3]; translation: float64 [3], of length 1; inliers: bool [P], the matches
    within the threshold of it.
    """

    rotation: Array
    translation: Array
    inliers: Mask


def estimate(
    points1: Array,
    points2: Array,
    camera1: Array,
    camera2: Array,
    threshold: float = 1.0,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Found | None:
    """The camera's motion by which points [P, 2] of image 1 are seen at those of image 2, or None
    where there is none: of fewer than ``LEAST`` matches, of points that all are the same, or of images
    in which nothing moves.

    camera1, camera2: [3, 3], pixel ~ camera X. threshold: in pixels, Sampson's distance up to which a
    match is an inlier, taken at the mean focal length. samples: of five matches, at random by the seed.
    A match with a point that is not finite is none. The same input and seed give the same bits.

    Where the camera only turns, the rotation is right and the translation means nothing; of points in a
    plane two motions are possible, and the wrong one may be found.

    Raises ValueError for other shapes and for what is no camera, and :class:`NoOpenCV` without it.
    """
    points1, points2 = (np.asarray(points, np.float64) for points in (points1, points2))
    if points1.shape != points2.shape or points1.ndim != 2 or points1.shape[1] != 2:
        shapes = f"{list(points1.shape)} and {list(points2.shape)}"
        raise ValueError(f"expected points [P, 2] of both images, got {shapes}")
    known = np.flatnonzero(np.isfinite(points1).all(1) & np.isfinite(points2).all(1))
    if len(known) < LEAST:
        return None
    cameras = _camera(camera1, "camera1"), _camera(camera2, "camera2")
    limit = threshold / float(np.mean([camera[[0, 1], [0, 1]] for camera in cameras]))
    rays1 = _rays(points1[known], cameras[0])
    rays2 = _rays(points2[known], cameras[1])
    begun = _ransac(rays1, rays2, limit, samples, seed)
    if begun is None:
        return None
    rotation, translation = begun
    for _ in range(ROUNDS):
        near = np.abs(_sampson(rotation, translation, rays1, rays2)) <= REACH * limit
        if near.sum() < LEAST:
            return None
        rotation, translation = _refined(rotation, translation, rays1[near], rays2[near], limit)
    inliers = np.zeros(len(points1), bool)
    inliers[known] = np.abs(_sampson(rotation, translation, rays1, rays2)) <= limit
    return Found(rotation, translation, inliers)


def _camera(matrix: Array, name: str) -> Array:
    camera = np.asarray(matrix, np.float64)
    if camera.shape != (3, 3) or not np.isfinite(camera).all() or np.linalg.matrix_rank(camera) < 3:
        raise ValueError(f"{name}: expected a camera [3, 3] with an inverse, got {camera.tolist()}")
    return camera


def _rays(points: Array, camera: Array) -> Array:
    """The directions (x, y, 1) in which a camera sees points [P, 2]: [P, 3]."""
    rays = np.linalg.solve(camera, np.c_[points, np.ones(len(points))].T).T
    return np.ascontiguousarray(rays / rays[:, 2:])


def _ransac(
    rays1: Array, rays2: Array, limit: float, samples: int, seed: int
) -> tuple[Array, Array] | None:
    """A rotation and a translation that most rays [P, 3] agree with, or None.

    Of OpenCV's ways this is the most accurate one with 40% of wrong matches: USAC with MSAC's score.
    """
    cv2 = opencv("the camera's motion")
    params = cv2.UsacParams()
    params.score, params.loMethod = cv2.SCORE_METHOD_MSAC, cv2.LOCAL_OPTIM_INNER_LO
    params.threshold, params.confidence = limit, 1.0
    params.maxIterations, params.randomGeneratorState = samples, seed
    flat = [np.ascontiguousarray(rays[:, :2]) for rays in (rays1, rays2)]
    unit, straight = np.eye(3), np.zeros(5)  # a camera of rays, without distortion
    essential, inliers = cv2.findEssentialMat(*flat, unit, unit, straight, straight, params)
    if essential is None or essential.shape != (3, 3):
        return None
    seen, rotation, translation, _, _ = cv2.recoverPose(
        essential, *flat, unit, distanceThresh=FAR, mask=inliers
    )
    return (rotation, translation[:, 0]) if seen else None


def _sampson(rotation: Array, translation: Array, rays1: Array, rays2: Array) -> Array:
    """How far rays [P, 3] are from agreeing with a motion, in first order: [P], at focal length 1."""
    essential = np.cross(translation, rotation, axisb=0, axisc=0)
    lines2, lines1 = rays1 @ essential.T, rays2 @ essential
    steep = np.hypot(*lines1[:, :2].T) ** 2 + np.hypot(*lines2[:, :2].T) ** 2
    return (rays2 * lines2).sum(1) / np.sqrt(np.maximum(steep, 1e-300))


def _refined(
    rotation: Array, translation: Array, rays1: Array, rays2: Array, limit: float
) -> tuple[Array, Array]:
    """The motion near a given one with the least sum of Cauchy's log(1 + (distance / limit)²)."""
    from scipy.optimize import least_squares
    from scipy.spatial.transform import Rotation

    across = np.linalg.svd(translation[None])[2][1:]  # what the direction may move along

    def moved(change: Array) -> tuple[Array, Array]:
        direction = translation + change[3:] @ across
        turn = Rotation.from_rotvec(change[:3]).as_matrix()
        return turn @ rotation, direction / np.linalg.norm(direction)

    def apart(change: Array) -> Array:
        return _sampson(*moved(change), rays1, rays2) / limit

    return moved(least_squares(apart, np.zeros(5), loss="cauchy").x)
