"""The arithmetic of recurrent layers in torch: a causal convolution, then the gated delta rule.

Both go on from what a sequence left behind, one token or many at a time, so that a prompt may come
in pieces and steps of several sequences are one batch.
"""

from collections.abc import Iterator

import torch

from sgate_serve.architecture.recurrence import UNIT_EPSILON

# Tokens that are solved at once, as in transformers: the work for each grows with it.
CHUNK = 64


def convolved(
    past: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted sums of each token and those before it, and the new `past`.

    `past` [..., p, channels] are the last tokens before `x` [..., t, channels], at least as many as
    `weight` [channels, taps] needs.
    """
    window, (length, taps) = torch.cat([past, x], -2), (x.shape[-2], weight.shape[-1])
    first = window.shape[-2] - length - taps + 1
    sums = torch.zeros_like(x)
    for tap in range(taps):
        sums = sums + window[..., first + tap : first + tap + length, :] * weight[:, tap]
    return sums, window[..., length:, :]


def delta_rule(
    state: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    renewal: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what each token reads [..., t, values], and the state after the last.

    `state` is [..., keys, values]; queries and keys [..., t, keys] have the length 1, or what
    scores are scaled by; `value` is [..., t, values], and `decay`, a logarithm, and `renewal` are
    [..., t]. A token multiplies the state by exp(decay), replaces what its key reads there by its
    value, as far as `renewal` says, and reads by its query.
    """
    read = []
    for chunk in _chunks(value.shape[-2]):
        at = query[..., chunk, :], key[..., chunk, :], value[..., chunk, :]
        found, state = _chunk_read(state, *at, decay[..., chunk], renewal[..., chunk])
        read.append(found)
    return (read[0] if len(read) == 1 else torch.cat(read, -2)), state


def unit(x: torch.Tensor) -> torch.Tensor:
    """Return vectors [..., width] of length 1."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + UNIT_EPSILON)


def _chunks(length: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, length, CHUNK))


def _chunk_read(
    state: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    renewal: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply the rule to all tokens of a chunk at once (section 3.3 of arXiv 2412.06464).

    With D the sums of decays, token i writes w_i = r_i (v_i - e^(D_i) k_i S - the sum over j < i of
    e^(D_i - D_j) (k_i k_j) w_j): a triangular system.
    """
    total = decay.cumsum(-1)
    length = total.shape[-1]
    later = torch.ones(length, length, dtype=torch.bool, device=total.device).triu(1)
    between = total.unsqueeze(-1) - total.unsqueeze(-2)
    between = between.masked_fill(later, -torch.inf).exp()
    since = total.exp().unsqueeze(-1)
    written = renewal.unsqueeze(-1) * (value - since * (key @ state))
    if length > 1:
        system = renewal.unsqueeze(-1) * (key @ key.mT) * between
        written = torch.linalg.solve_triangular(system, written, upper=False, unitriangular=True)
    read = since * (query @ state) + ((query @ key.mT) * between) @ written
    until = (total[..., -1:] - total).exp().unsqueeze(-1)
    return read, since[..., -1:, :] * state + (key * until).mT @ written
