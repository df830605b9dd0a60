"""Spiking neurons as pure step functions on explicit state, in units of the threshold (spikes are -1, 0 or 1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class IFState(NamedTuple):
    """State of integrate-and-fire neurons after a reset by subtraction."""

    v: Tensor
    """Membrane potential in thresholds, the current's shape; 1/2 before the first step."""


class SignedIFState(NamedTuple):
    """State of integrate-and-fire neurons that may take spikes back."""

    v: Tensor
    """Membrane potential in thresholds; 1/2 before the first step."""
    n: Tensor
    """Net number of spikes emitted so far, 0..levels; 0 before the first step."""


def if_step(current: Tensor, state: IFState) -> tuple[Tensor, IFState]:
    """Advance integrate-and-fire neurons with soft reset by one time step (QCFS).

        p = v + I;  z = [p >= 1];  v' = p - z

    Shapes: any, all alike. `z` is written clip(floor(p), 0, 1), the leanest exact form.
    Source: Dynamic Confidence, eq. 3-4 with reset by subtraction; `>=` as in the published code (paper: `>`).
    """
    p = state.v + current
    z = torch.clamp(torch.floor(p), 0.0, 1.0)
    return z, IFState(p - z)


def signed_if_step(current: Tensor, state: SignedIFState, levels: int) -> tuple[Tensor, SignedIFState]:
    """Advance neurons with negative spikes and a spike cap by one time step (QFFS).

        p = v + I;  z = [p >= 1][n < levels] - [p < 0][n > 0];  v' = p - z;  n' = n + z

    Shapes: any, all alike. `n'` is written clip(n + clip(floor(p), -1, 1), 0, levels): the two brackets in one clip.
    Source: Dynamic Confidence, eq. 20-26.
    """
    p = state.v + current
    n = torch.clamp(state.n + torch.clamp(torch.floor(p), -1.0, 1.0), 0.0, float(levels))
    z = n - state.n
    return z, SignedIFState(p - z, n)
