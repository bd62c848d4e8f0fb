"""Every objective once more with four processes, which share rows, valid pairs and candidates out differently."""

import pytest
import test_contrastive_gloo as contrastive
import test_gloo as plain
import test_noncontrastive_gloo as noncontrastive
import test_sequence_gloo as sequence
import torch
from torch import Tensor


def one_process() -> dict[str, list[Tensor]]:
    """Terms and gradients of all objectives on their joined batches."""
    grads, terms = plain.gradients(plain.joined_pair())
    found = {"S-TEC": [*grads, terms]}
    found |= {name: contrastive.trained(name, None) for name in contrastive.MODELS}
    pair = plain.joined_pair()
    found |= {name: noncontrastive.terms_and_gradients(name, pair) for name in noncontrastive.MODELS}
    return found | {
        f"{name} {two}": sequence.gradients(name, sequence.joined_pair(two=two)) for name, two in sequence.cases()
    }


def all_parts(rank: int) -> dict[str, list[Tensor]]:
    """The same as means over the processes."""
    objective = plain.part_of_objective(rank)
    found = {"S-TEC": [*objective["gradients"], *objective["terms"]]}
    return found | contrastive.all_models(rank) | noncontrastive.part_of_models(rank) | sequence.part_of_cases(rank)


def test_four_processes_equal_one_on_the_joined_batch(tmp_path_factory: pytest.TempPathFactory) -> None:
    expected = one_process()
    processes = plain.run(all_parts, tmp_path_factory.mktemp("gloo"), world=4)
    assert len(processes) == 4
    for found in processes:
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert len(found[name]) == len(values), name
            for mine, one in zip(found[name], values):
                torch.testing.assert_close(
                    mine, one, rtol=1e-8, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
                )
