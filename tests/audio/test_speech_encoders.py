"""The encoder of CPC: where its frames lie, what they can know, how large it is."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from stec.audio.encoders import PADDINGS, ChannelNorm, CPCEncoder

RECEPTIVE = 465  # samples that a frame sees: 10 + 5 (8 - 1) + 20 (4 - 1) + 40 (4 - 1) + 80 (4 - 1)


def open_encoder(paddings: tuple[int, ...]) -> CPCEncoder:
    """One whose convolutions add up all they see, so that no ReLU hides a sample from the gradient."""
    encoder = CPCEncoder(channels=2, context_dim=2, paddings=paddings).double()
    for name, parameter in encoder.convolutions.named_parameters():
        nn.init.constant_(parameter, 0.0 if "bias" in name else 1.0)
    return encoder


def seen(encoder: CPCEncoder, frame: int, *, n: int = 4_000) -> Tensor:
    """The samples that a frame of latents depends on, by its gradient."""
    waveforms = torch.ones(1, n, dtype=torch.float64, requires_grad=True)
    encoder.latents(waveforms)[0, frame].sum().backward()
    assert waveforms.grad is not None
    return waveforms.grad[0].nonzero().flatten()


@pytest.mark.parametrize(
    ("name", "centre"), [("cpc_audio", 79.5), ("gim", 20.5), ("none", 232.5)], ids=["cpc_audio", "gim", "none"]
)
def test_frames_are_centred_where_their_receptive_field_is(name: str, centre: float) -> None:
    encoder = open_encoder(PADDINGS[name])
    assert encoder.centre == centre
    for frame in (3, 4, 11):
        samples = seen(encoder, frame)
        first, last = int(samples[0]), int(samples[-1])
        assert len(samples) == last - first + 1 == RECEPTIVE
        assert (first + last + 1) / 2 == encoder.hop * frame + encoder.centre  # sample k lies from k to k + 1


def test_without_padding_no_frame_sees_beyond_the_waveform_and_with_it_some_do() -> None:
    assert len(seen(open_encoder(PADDINGS["none"]), 0)) == RECEPTIVE
    for name in ("cpc_audio", "gim"):
        assert len(seen(open_encoder(PADDINGS[name]), 0)) < RECEPTIVE


@pytest.mark.parametrize("name", PADDINGS)
def test_frames_of_every_length_and_what_is_too_short(name: str) -> None:
    encoder = CPCEncoder(channels=2, context_dim=2, paddings=PADDINGS[name])
    lengths = [*range(1, 500, 3), 464, 465, *range(600, 1_500, 7), 20_480]
    for n in lengths:
        if frames := encoder.frames(n):
            assert encoder.latents(torch.zeros(1, n)).shape == (1, frames, 2), n
        else:
            assert n < RECEPTIVE
            with pytest.raises(ValueError, match=f"waveforms of {n} samples give no frame; 465 samples always"):
                encoder(torch.zeros(1, n))
    assert {encoder.frames(n) > 0 for n in lengths} == {True, False}


@pytest.mark.parametrize(("name", "frames"), [("cpc_audio", 128), ("gim", 128), ("none", 126)])
def test_the_default_shapes(name: str, frames: int) -> None:
    context, latents = CPCEncoder(paddings=PADDINGS[name])(torch.zeros(2, 20_480))
    assert context.shape == (2, frames, 256)
    assert latents.shape == (2, frames, 512)


def test_the_size_of_the_papers_network() -> None:
    """audio.md: convolutions 5.25 M, GRU 0.59 M; with W of 12 steps (1.57 M) 7.41 M in all."""
    encoder = CPCEncoder()
    convolutions, recurrence = (
        sum(p.numel() for p in part.parameters()) for part in (encoder.convolutions, encoder.recurrence)
    )
    assert convolutions == (10 + 1) * 512 + (8 * 512 + 1) * 512 + 3 * (4 * 512 + 1) * 512 == 5_250_560
    assert recurrence == 3 * 256 * (512 + 256 + 2) == 591_360
    assert sum(p.numel() for p in encoder.parameters()) == convolutions + recurrence
    assert (encoder.feature_dim, encoder.latent_dim) == (256, 512)


@pytest.mark.parametrize(("recurrence", "layers"), [("gru", 1), ("lstm", 1), ("gru", 2)])
def test_context_knows_the_past_and_not_the_future(recurrence: str, layers: int) -> None:
    encoder = CPCEncoder(channels=4, context_dim=3, recurrence=recurrence, recurrent_layers=layers).double()  # type: ignore[arg-type]
    latents = torch.randn(2, 9, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(encoder.context(latents)[0, 5].sum(), latents)
    assert (gradient[0, :6] != 0).any(dim=1).all()
    assert (gradient[0, 6:] == 0).all()
    assert (gradient[1] == 0).all()


def test_the_call_is_the_context_of_its_latents_and_waveforms_do_not_mix() -> None:
    encoder = CPCEncoder(channels=4, context_dim=3).double()
    waveforms = torch.randn(3, 2_000, dtype=torch.float64)
    context, latents = encoder(waveforms)
    torch.testing.assert_close(latents, encoder.latents(waveforms))
    torch.testing.assert_close(context, encoder.context(latents))
    alone = torch.cat([encoder(waveform[None])[0] for waveform in waveforms])
    torch.testing.assert_close(context, alone)
    assert (latents >= 0).all()


def test_mean_and_std_scale_the_waveform() -> None:
    plain, scaled = CPCEncoder(channels=4, context_dim=3), CPCEncoder(channels=4, context_dim=3, mean=0.25, std=0.125)
    scaled.load_state_dict(plain.state_dict())
    waveforms = torch.rand(2, 2_000)
    torch.testing.assert_close(scaled.latents(waveforms), plain.latents(8 * waveforms - 2))


@pytest.mark.parametrize("channels", [2, 7, 64])
def test_channel_norm_against_layer_norm(channels: int) -> None:
    """Riviere et al. divide by c - 1 where a layer norm divides by c, and then add eps."""
    torch.manual_seed(channels)
    norm = ChannelNorm(channels, eps=1e-3).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = 3 + 2 * torch.randn(2, channels, 11, dtype=torch.float64)
    share = (channels - 1) / channels
    unit = nn.functional.layer_norm(x.transpose(1, 2), (channels,), eps=1e-3 * share)
    expected = (math.sqrt(share) * unit * norm.weight + norm.bias).transpose(1, 2)
    torch.testing.assert_close(norm(x), expected, rtol=1e-10, atol=1e-12)


def test_channel_norm_keeps_a_narrow_type_and_sums_in_a_wide_one() -> None:
    norm = ChannelNorm(512)
    x = (1_000 + torch.randn(1, 512, 4)).bfloat16()
    found = norm(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), norm(x.float()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("normalisation", "parameters"), [("none", 0), ("channel", 10), ("batch", 10)])
def test_normalisations(normalisation: str, parameters: int) -> None:
    encoder = CPCEncoder(channels=4, context_dim=3, normalisation=normalisation)  # type: ignore[arg-type]
    assert sum("norm" in name for name, _ in encoder.named_parameters()) == parameters
    latents = encoder.latents(0.01 * torch.randn(4, 4_000)).detach()
    if normalisation == "none":
        return
    # Before the ReLU every channel (batch) or frame (channel) has variance 1, however quiet the waveform.
    assert 0.2 < float(latents.square().mean()) < 1


@pytest.mark.parametrize("apart", [False, True])
def test_in_bf16_channels_lie_last_and_in_float32_as_they_did(apart: bool) -> None:
    """Also waveforms whose samples do not lie side by side are the same waveforms."""
    encoder = CPCEncoder(channels=8, context_dim=4)
    waveforms = torch.randn(3, 2_000)
    given = waveforms.T.contiguous().T if apart else waveforms
    layouts: list[torch.Tensor] = []
    for module in encoder.convolutions:
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, given, z: layouts.append(z))
    plain = encoder.latents(given).detach()
    assert all(z.is_contiguous() for z in layouts)
    layouts.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = encoder.latents(given)
    assert all(z.is_contiguous(memory_format=torch.channels_last) and not z.is_contiguous() for z in layouts)
    torch.testing.assert_close(plain, encoder.latents(waveforms).detach())
    torch.testing.assert_close(narrow.detach().float(), plain, atol=0.03 * float(plain.abs().max()), rtol=0)


@pytest.mark.unchecked
def test_mistakes() -> None:
    for paddings in ((3, 2, 1, 1), (10, 2, 1, 1, 1), (3, 2, 1, 1, -1)):
        with pytest.raises(ValueError, match=r"need one for each of the kernels \(10, 8, 4, 4, 4\), below it"):
            CPCEncoder(channels=2, context_dim=2, paddings=paddings)
    for std in (0.0, -1.0):
        with pytest.raises(ValueError, match=r"std is .*; need a positive value"):
            CPCEncoder(channels=2, context_dim=2, std=std)
    for options in ({"normalisation": "layer"}, {"recurrence": "rnn"}):
        ((name, value),) = options.items()
        with pytest.raises(ValueError, match=f"{name} is '{value}'; use "):
            CPCEncoder(channels=2, context_dim=2, **options)  # type: ignore[arg-type]


def test_latents_move_with_the_waveform() -> None:
    """A shift by the hop shifts the frames, but for those that see padding."""
    encoder = CPCEncoder(channels=4, context_dim=3, paddings=PADDINGS["none"]).double()
    waveform = torch.randn(1, 4_000, dtype=torch.float64)
    whole, later = encoder.latents(waveform), encoder.latents(waveform[:, 160:])
    torch.testing.assert_close(whole[:, 1:], later)
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(whole[0]))
