"""Choose among changes of a model so that the losses rise least while enough is saved: an integer program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Option:
    """One change.  places: what it takes for itself; groups: the kinds of parts of which it drops one."""

    places: frozenset[str]
    cost: float
    savings: Mapping[str, float]
    groups: Mapping[str, int] = field(default_factory=dict)


def choose(
    options: Sequence[Option], needed: Mapping[str, float], most: Mapping[str, int] | None = None
) -> list[int] | None:
    """Numbers of the options that cost least in all; None where not enough can be saved.

    No place is taken twice.  needed: what has to be saved of each measure; most: how many of a group may go.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    if not options:
        return [] if all(value <= 0 for value in needed.values()) else None
    places = sorted({place for option in options for place in option.places})
    taken = np.array([[float(place in option.places) for option in options] for place in places])
    constraints = [LinearConstraint(taken, ub=np.ones(len(places)))]
    for measure, value in needed.items():
        saved = np.array([option.savings.get(measure, 0.0) for option in options])
        # In units of what is needed: byte counts and seconds are many orders of magnitude apart.
        scale = abs(value) or 1.0
        constraints.append(LinearConstraint(saved[None] / scale, lb=value / scale))
    for group, limit in (most or {}).items():
        counts = np.array([float(option.groups.get(group, 0)) for option in options])
        constraints.append(LinearConstraint(counts[None], ub=limit))
    costs = np.array([option.cost for option in options])
    scale = float(np.abs(costs).max()) or 1.0
    found = milp(
        costs / scale, constraints=constraints, integrality=np.ones(len(options), dtype=np.int64), bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )  # fmt: skip
    if found.x is None:
        return None
    return [number for number, value in enumerate(found.x) if value > 0.5]
