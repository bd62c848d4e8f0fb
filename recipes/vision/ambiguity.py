"""What the released code's label cannot tell from the pixels, by `recipes.vision.mirror_worlds`: numbers and a picture.

python -m recipes.vision.ambiguity --out docs/official-label.png
"""

import dataclasses
from pathlib import Path

import tyro

from recipes.terminal import command
from recipes.vision import networks
from recipes.vision.ambiguity_picture import draw_figure
from recipes.vision.mirror_worlds import IMAGE_SIZE, Ambiguity, measure
from recipes.vision.presets import preset


def chance_table() -> list[str]:
    """The chance levels of every label under the CIFAR presets, as `networks.chance` computes them."""
    lines = []
    base = preset("cifar10-resnet18-stec")
    for name, copy in networks.COPIES.items():
        config = dataclasses.replace(base, action=name)  # type: ignore[arg-type]
        level = networks.chance(config, networks.action_bins(config, IMAGE_SIZE), IMAGE_SIZE)
        lines.append(f"{name:<12}nll {level.nll.mean():.4f}  accuracy {level.accuracy.mean():.3f}")
        rows = zip(copy.components, level.nll.tolist(), level.accuracy.tolist())
        lines += [f"  {component:<10}nll {nll:.4f}  accuracy {accuracy:.3f}" for component, nll, accuracy in rows]
    return lines


def report(found: Ambiguity) -> list[str]:
    """The numbers in words."""
    lines = [f"{len(found.exact):,} pairs of views, the law for CIFAR, K = 6, NLLs in nats"]
    for name, shift in (("t_x", found.t_x), ("t_y", found.t_y)):
        lines += [
            f"official {name} and exact {name}: correlation {shift.correlation:z.2f}",
            f"  bin changed by the mirror world: {shift.changed:.1%} of pairs",
            f"  so NLL at least {shift.floor:.3f}, accuracy at most {shift.ceiling:.1%}; chance {shift.chance:.3f}",
            f"  a table of the exact action leaves {shift.lookup:.3f}",
        ]
    lines.append(f"exact action: largest change by the mirror world {found.exact_moves:.1g}")
    lines.append(
        f"official label of two equal views: mean |t_x| {found.still:.2f}, "
        f"outside the two central bins {found.still_outside:.0%}"
    )
    lines.append(f"views without overlap: {found.apart:.1%} of pairs")
    return lines


def main(out: Path, *, pairs: int = 100_000, seed: int = 0) -> None:
    """Draw what the released code's label cannot tell from the pixels, and print the numbers and chance levels.

    Args:
        out: where the picture goes (PNG).
        pairs: simulated pairs of views.
        seed: of the simulation.
    """
    found = measure(pairs, seed=seed)
    draw_figure(found, out)
    print("\n".join(report(found)))
    print("\nchance levels, CIFAR presets, 100,000 pairs (mean over components, then each)")
    print("\n".join(chance_table()))


if __name__ == "__main__":
    command(lambda: tyro.cli(main))
