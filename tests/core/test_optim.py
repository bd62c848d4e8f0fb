"""LARS against a per-tensor loop in float64, its state, its kernels; the schedule; the exclusion rules."""

import copy
import io
import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from waiting import waiting_forbidden

from stec.core.optim import LARS, by_kind, by_name, parameter_groups, warmup_cosine

SHAPES = [(8, 3, 3, 3), (5,), (7, 4), (2, 6, 1, 1), (1300,), (), (0, 4)]


class LoopLARS:
    """The rule, one tensor at a time and in float64, with the branches as the rule states them."""

    def __init__(self, values: list[Tensor], *, decays: list[float], lr: float, momentum: float, trust: float) -> None:
        self.values = [value.detach().double().clone() for value in values]
        self.decays, self.lr, self.momentum, self.trust = decays, lr, momentum, trust
        self.buffers: list[Tensor | None] = [None] * len(values)

    def step(self, gradients: list[Tensor | None]) -> None:
        for i, (p, gradient, decay) in enumerate(zip(self.values, gradients, self.decays)):
            if gradient is None:
                continue
            g = gradient.double()
            p_norm, g_norm = math.sqrt((p * p).sum().item()), math.sqrt((g * g).sum().item())
            d = g.clone()
            if decay != 0 and p_norm != 0 and g_norm != 0:
                d = (g + decay * p) * (self.trust * p_norm / (g_norm + decay * p_norm + 1e-8))
            if self.momentum != 0:
                buffer = self.buffers[i]
                self.buffers[i] = d.clone() if buffer is None else self.momentum * buffer + d
                d = self.buffers[i]
            p -= self.lr * d


def _parameters(shapes: list[tuple[int, ...]], *, seed: int, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape in shapes:
        value = torch.randn(shape, generator=generator).to(dtype)
        if value.ndim == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        made.append(nn.Parameter(value))
    return made


def _set_gradients(parameters: list[nn.Parameter], *, seed: int) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    gradients: list[Tensor | None] = []
    for parameter in parameters:
        drawn = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        parameter.grad = torch.empty_like(parameter).copy_(drawn)  # the strides that autograd gives
        gradients.append(drawn)
    return gradients


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_lars_equals_the_loop_over_tensors(momentum: float, dtype: torch.dtype, tolerance: float) -> None:
    adapted, plain = _parameters(SHAPES, seed=0, dtype=dtype), _parameters(SHAPES, seed=1, dtype=dtype)
    with torch.no_grad():
        adapted[1].zero_()  # |p| = 0: a plain step without decay
        adapted.append(nn.Parameter(torch.randn(60, 90, dtype=dtype)[1::2, ::9]))  # a slice with gaps
    unused = nn.Parameter(torch.ones(4, dtype=dtype))
    adapted.append(unused)
    everything = adapted + plain
    decays = [0.3] * len(adapted) + [0.0] * len(plain)
    reference = LoopLARS(everything, decays=decays, lr=0.7, momentum=momentum, trust=0.05)
    groups = [{"params": adapted, "weight_decay": 0.3}, {"params": plain}]
    optimizer = LARS(groups, lr=0.7, momentum=momentum, trust_coefficient=0.05)
    for step in range(6):
        gradients = _set_gradients(everything, seed=10 + step)
        if step in (0, 3):  # |g| = 0 with |p| != 0: no decay either
            adapted[2].grad, gradients[2] = torch.zeros_like(adapted[2]), torch.zeros_like(adapted[2])
        unused.grad, gradients[len(adapted) - 1] = None, None
        optimizer.step()
        reference.step(gradients)
        for parameter, expected in zip(everything, reference.values):
            assert torch.allclose(parameter.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(unused, torch.ones(4, dtype=dtype))
    assert unused not in optimizer.state


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1, max_size=12),
    decay=st.floats(1e-6, 1.0),
    trust=st.floats(1e-3, 1.0),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=40, deadline=None)
def test_lars_equals_the_loop_for_any_shapes(
    shapes: list[tuple[int, ...]], decay: float, trust: float, seed: int
) -> None:
    parameters = _parameters(shapes, seed=seed, dtype=torch.float64)
    reference = LoopLARS(parameters, decays=[decay] * len(shapes), lr=0.1, momentum=0.9, trust=trust)
    optimizer = LARS(parameters, lr=0.1, weight_decay=decay, trust_coefficient=trust)
    for step in range(2):
        reference.step(_set_gradients(parameters, seed=seed + 1 + step))
        optimizer.step()
    for parameter, expected in zip(parameters, reference.values):
        assert torch.allclose(parameter, expected, rtol=1e-12, atol=1e-13)


def test_half_precision_norms_do_not_overflow() -> None:
    parameter = nn.Parameter(torch.full((300, 300), 300.0, dtype=torch.float16))  # |p| = 90,000 > 65,504
    parameter.grad = torch.full_like(parameter, 1.0)
    LARS([parameter], lr=1.0, weight_decay=1e-3, trust_coefficient=0.01).step()
    expected = 300 - 0.01 * 90_000 / (300 + 1e-3 * 90_000) * (1 + 1e-3 * 300)
    assert parameter.unique().tolist() == [pytest.approx(expected, rel=2e-3)]


def test_parameters_of_two_types_in_one_group() -> None:
    single, double = _parameters([(4, 3)], seed=0) + _parameters([(4, 3)], seed=0, dtype=torch.float64)
    optimizer = LARS([single, double], lr=1.0, weight_decay=0.1, trust_coefficient=0.1)
    _set_gradients([single], seed=2)
    _set_gradients([double], seed=2)
    optimizer.step()
    assert torch.allclose(single.double(), double, atol=1e-6)
    assert single.dtype == torch.float32


def test_learning_rate_multiplies_the_buffer_and_not_what_goes_into_it() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = LARS([parameter], lr=0.5)
    for rate in (0.5, 0.1):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = torch.tensor([1.0])
        optimizer.step()
    assert parameter.item() == pytest.approx(1 - 0.5 * 1 - 0.1 * 1.9)


def test_a_learning_rate_in_a_tensor_gives_the_same_step() -> None:
    as_number, as_tensor = _parameters(SHAPES, seed=0), _parameters(SHAPES, seed=0)
    for parameters, rate in ((as_number, 0.25), (as_tensor, torch.tensor(0.25))):
        optimizer = LARS(parameters, rate, weight_decay=0.1)
        for step in range(3):
            _set_gradients(parameters, seed=step)
            optimizer.step()
    for first, second in zip(as_number, as_tensor):
        assert torch.allclose(first, second, atol=1e-7)


def _train(parameters: list[nn.Parameter], optimizer: LARS, steps: range) -> None:
    for step in steps:
        _set_gradients(parameters, seed=100 + step)
        optimizer.step()


@pytest.mark.parametrize("through_disk", [True, False])
def test_resumed_run_equals_unbroken_run_bit_for_bit(through_disk: bool) -> None:
    def build(seed: int) -> tuple[list[nn.Parameter], LARS]:
        parameters = _parameters(SHAPES, seed=seed)
        groups = [{"params": parameters[:4], "weight_decay": 0.1}, {"params": parameters[4:]}]
        return parameters, LARS(groups, lr=0.3, trust_coefficient=0.1)

    unbroken, optimizer = build(seed=0)
    _train(unbroken, optimizer, range(3))
    state, values = optimizer.state_dict(), [parameter.detach().clone() for parameter in unbroken]
    if through_disk:
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    else:
        state = copy.deepcopy(state)
    _train(unbroken, optimizer, range(3, 6))

    resumed, optimizer = build(seed=9)
    optimizer.load_state_dict(state)
    for parameter, value in zip(resumed, values):
        parameter.data.copy_(value)
    _train(resumed, optimizer, range(3, 6))
    for first, second in zip(unbroken, resumed):
        assert torch.equal(first, second)
    assert optimizer.state[resumed[0]]["momentum_buffer"].stride() == resumed[0].stride()


def test_a_copied_optimizer_steps_alike() -> None:
    parameters = _parameters(SHAPES, seed=0)
    optimizer = LARS(parameters, lr=0.3, weight_decay=0.1)
    _train(parameters, optimizer, range(2))
    twin = copy.deepcopy(optimizer)
    _train(parameters, optimizer, range(2, 4))
    copied = twin.param_groups[0]["params"]
    _train(copied, twin, range(2, 4))
    for first, second in zip(parameters, copied):
        assert torch.equal(first, second)


def test_two_runs_are_equal_bit_for_bit() -> None:
    results = []
    for _ in range(2):
        parameters = _parameters([*SHAPES, (64, 64, 3, 3)], seed=0)
        _train(parameters, LARS(parameters, lr=0.3, weight_decay=0.1), range(3))
        results.append(parameters)
    for first, second in zip(*results):
        assert torch.equal(first, second)


def test_closure_and_a_group_added_later() -> None:
    first, second = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([5.0]))
    optimizer = LARS([first], lr=0.1)
    optimizer.add_param_group({"params": [second], "lr": 0.2})

    def closure() -> float:
        loss = (3 * first + 4 * second).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 26.0
    assert (first.item(), second.item()) == (pytest.approx(2 - 0.1 * 3), pytest.approx(5 - 0.2 * 4))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"lr": -1.0}, "lr is -1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": 1.0, "momentum": 1.0}, "momentum is 1"),
        ({"lr": 1.0, "weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"lr": 1.0, "trust_coefficient": -0.1}, "trust_coefficient is -0.1"),
        ({"lr": 1.0, "eps": -0.1}, "eps is -0.1"),
    ],
)
def test_settings_out_of_range_are_named(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LARS([nn.Parameter(torch.zeros(2))], **wrong)


def test_a_refused_group_is_not_kept() -> None:
    optimizer = LARS([nn.Parameter(torch.zeros(2))], lr=1.0)
    with pytest.raises(ValueError, match="real parameters"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, dtype=torch.complex64))]})
    with pytest.raises(ValueError, match="weight_decay is -1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "weight_decay": -1.0})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        LARS(embedding.parameters(), lr=1.0).step()


class _Recorder(TorchDispatchMode):
    """Writes down every operation that reaches the kernels, and whether a multi-tensor one has like layouts."""

    views = frozenset({"as_strided", "unsqueeze", "expand", "split", "slice", "select", "detach", "alias"})

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []
        self.layouts_differ: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func._schema.name.removeprefix("aten::")
        if name not in self.views:
            self.operations.append(name)
        if name.startswith("_foreach") and name != "_foreach_norm":
            for tensors in zip(*(arg for arg in args if isinstance(arg, list))):
                if len({(t.shape, t.stride()) for t in tensors}) != 1:
                    self.layouts_differ.append(name)
        return func(*args, **(kwargs or {}))


def _recorded_step(count: int) -> _Recorder:
    parameters = _parameters([(4, 3, 3, 3), (6, 5), (7,)] * count, seed=0)[:count]
    optimizer = LARS(parameters, lr=0.1, weight_decay=0.1)
    _train(parameters, optimizer, range(1))  # buffers and the chunk index are made here
    _set_gradients(parameters, seed=1)
    with _Recorder() as recorder:
        optimizer.step()
    return recorder


def test_operations_do_not_grow_with_tensors_and_wait_for_nothing() -> None:
    few, many = _recorded_step(5), _recorded_step(100)
    assert few.operations == many.operations
    assert len(few.operations) < 25
    assert not {"_local_scalar_dense", "nonzero", "item", "_to_copy", "lift_fresh", "repeat_interleave"} & set(
        many.operations
    )
    # Equal shapes and strides in every list are what the multi-tensor kernels ask for.
    assert not many.layouts_differ


@pytest.mark.unchecked
def test_step_compiles_into_one_graph() -> None:
    eager, compiled = _parameters(SHAPES[:4], seed=0), _parameters(SHAPES[:4], seed=0)
    _train(eager, LARS(eager, lr=0.3, weight_decay=0.1), range(3))
    optimizer = LARS(compiled, torch.tensor(0.3), weight_decay=0.1)
    _train(compiled, optimizer, range(1))
    step = torch.compile(optimizer.step, fullgraph=True, backend="eager")
    for i in range(1, 3):
        _set_gradients(compiled, seed=100 + i)
        step()
    for first, second in zip(eager, compiled):
        assert torch.allclose(first, second, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_on_a_gpu() -> None:
    counts = []
    for count in (5, 100):
        parameters = [nn.Parameter(p.detach().cuda()) for p in _parameters([(32, 16, 3, 3), (64, 50)] * 50, seed=0)]
        parameters = parameters[:count]
        optimizer = LARS(parameters, lr=0.1, weight_decay=0.1)
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        with waiting_forbidden():
            optimizer.step()
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
            optimizer.step()
            torch.cuda.synchronize()
        on_device = [event for event in profiler.events() if event.device_type.name == "CUDA"]
        counts.append(sum(not event.is_user_annotation for event in on_device))
    # Six multi-tensor operations and the stack: 100 tensors take at most a few launches more of each than 5 do.
    assert 0 < counts[0] < 40
    assert counts[1] <= counts[0] + 7 * (100 // 30)


def test_warmup_cosine_in_closed_form() -> None:
    factors = [warmup_cosine(step, 4, 12) for step in range(16)]
    assert factors[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert factors[8] == pytest.approx(0.5)  # half-way down
    assert factors[6] == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert factors[12:] == [0.0] * 4  # lightning-bolts' 13th would be 0.038 and rise
    assert [warmup_cosine(step, 0, 2) for step in range(3)] == pytest.approx([1.0, 0.5, 0.0])
    assert [warmup_cosine(step, 1, 1) for step in range(3)] == pytest.approx([0.0, 1.0, 0.0])


@given(warmup=st.integers(0, 50), decay=st.integers(1, 100), step=st.integers(0, 200))
def test_warmup_cosine_rises_then_falls_within_zero_and_one(warmup: int, decay: int, step: int) -> None:
    here, after = (warmup_cosine(s, warmup, warmup + decay) for s in (step, step + 1))
    assert 0.0 <= here <= 1.0
    assert after >= here if step < warmup else after <= here


@pytest.mark.parametrize(("architecture", "shortcuts"), [("resnet18", 3), ("resnet50", 4)])
def test_rules_differ_in_the_batchnorm_of_the_shortcuts_alone(architecture: str, shortcuts: int) -> None:
    with torch.device("meta"):
        network = getattr(torchvision.models, architecture)()
    adapted = {}
    for rule in (by_kind, by_name):
        groups = parameter_groups(network, weight_decay=1e-6, adapt=rule)
        assert [group["weight_decay"] for group in groups] == [1e-6, 0.0]
        assert [group["name"] for group in groups] == ["adapted", "plain"]
        names = [name for group in groups for name in group["names"]]
        assert sorted(names) == sorted(name for name, _ in network.named_parameters())
        for group in groups:
            for name, parameter in zip(group["names"], group["params"]):
                assert network.get_parameter(name) is parameter
        adapted[rule] = set(groups[0]["names"])
    differing = adapted[by_kind] ^ adapted[by_name]
    assert len(differing) == shortcuts
    assert all(name.endswith("downsample.1.weight") for name in differing)
    assert differing <= adapted[by_name]


def test_groups_leave_out_frozen_parameters_and_feed_lars() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    network[0].bias.requires_grad_(False)
    groups = parameter_groups(network, weight_decay=0.1, adapt=by_kind)
    assert [group["names"] for group in groups] == [["0.weight"], ["1.weight", "1.bias"]]
    optimizer = LARS(groups, lr=0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    with pytest.raises(ValueError, match="need 0 or a positive value"):
        parameter_groups(network, weight_decay=-0.1, adapt=by_kind)
