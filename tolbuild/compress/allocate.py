"""How many components each layer keeps."""

from __future__ import annotations

from typing import Literal

RankOption = Literal["full"] | int


def allocate_ranks(option: RankOption, num_layers: int, width: int) -> tuple[int, ...]:
    """The rank of every layer: D where the rows are kept whole, otherwise the number asked for.

    Args:
        option: "full", or components for every layer.
        width: D, the length of a row.

    Raises:
        ValueError: fewer than 1 or more than D components.
    """
    if option == "full":
        return (width,) * num_layers
    if not 1 <= option <= width:
        raise ValueError(f"rank is {option}; rows of width {width} have 1 to {width} components")
    return (option,) * num_layers
