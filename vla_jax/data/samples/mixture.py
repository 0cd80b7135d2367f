"""How much of the stream each dataset of a mixture supplies."""

from collections.abc import Sequence

from vla_jax.core import errors


def mixture_weights(
    num_samples: Sequence[int],
    weights: Sequence[float] | None = None,
    *,
    temperature: float = 1.0,
    embodiments: Sequence[str | None] | None = None,
) -> tuple[float, ...]:
    """One fraction of the stream per dataset; they add up to 1.

    A dataset counts `base ** (1 / temperature)`, where `base` is its weight if given and its number of samples if not:
    1 leaves the proportions alone, a higher temperature evens them out, and far above 1 all sets count the same. With
    `embodiments` (one name per dataset) every robot gets the same mass, which its datasets share in those proportions;
    a dataset without a name is a robot of its own.

    Raises ConfigError for weights that are not positive, one per dataset, and for a temperature that is not.
    """
    base = tuple(num_samples) if weights is None else tuple(weights)
    if len(base) != len(num_samples) or not all(weight > 0 for weight in base):
        raise errors.ConfigError(
            "weights", expected=f"{len(num_samples)} positive numbers, one per dataset", found=weights
        )
    if not temperature > 0:
        raise errors.ConfigError("mixture temperature", expected="above 0", found=temperature)
    largest = max(base)
    masses = list(base) if temperature == 1 else [(weight / largest) ** (1 / temperature) for weight in base]
    if embodiments is not None:
        robots = [f"dataset {i}" if name is None else f"robot {name}" for i, name in enumerate(embodiments)]
        of_robot = {robot: sum(m for m, r in zip(masses, robots, strict=True) if r == robot) for robot in robots}
        masses = [mass / of_robot[robot] for mass, robot in zip(masses, robots, strict=True)]
    total = sum(masses)
    return tuple(mass / total for mass in masses)
