"""The argument --seeds, which means the same to every command that takes several."""

from collections.abc import Sequence

from recipes.terminal import say


def check_seeds(seeds: Sequence[int]) -> None:
    """ValueError for no seed or one named twice; a line where one seed may have been meant as a number of them."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"--seeds is {' '.join(map(str, seeds)) or 'empty'}; name each once, such as --seeds 0 1 2")
    if len(seeds) == 1 and seeds[0] > 1:
        say(f"seed {seeds[0]} alone; for {seeds[0]} seeds: --seeds {' '.join(map(str, range(seeds[0])))}")
