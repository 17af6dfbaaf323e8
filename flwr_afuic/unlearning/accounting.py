"""What Gaussian noise guarantees: the analytic Gaussian mechanism."""

from __future__ import annotations

import math

from flwr_afuic.errors import ConfigError


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Smallest epsilon for which one Gaussian release is (epsilon, delta)-private.

    Parameters
    ----------
    noise_multiplier : float
        Standard deviation per entry divided by the sensitivity: by the greatest Euclidean
        distance between what two neighbouring inputs would release.
    delta : float
        In (0, 1).

    Returns
    -------
    float
        Infinite without noise. Good to about 1e-9 of itself, upwards.

    Raises
    ------
    ConfigError
        If a value is out of its range.

    Notes
    -----
    B. Balle and Y.-X. Wang, "Improving the Gaussian mechanism for differential privacy", ICML
    2018, Theorem 8: the least epsilon with
    ``Phi(1/(2s) - epsilon s) - exp(epsilon) Phi(-1/(2s) - epsilon s) <= delta``, s the noise
    multiplier. Exact for one release; several releases add up.

    Examples
    --------
    >>> round(gaussian_epsilon(1.0, 1e-5), 3)
    4.377
    """
    if not 0 <= noise_multiplier < math.inf:
        raise ConfigError(f"noise_multiplier must be finite and >= 0, got {noise_multiplier!r}")
    if not 0 < delta < 1:
        raise ConfigError(f"delta must be in (0, 1), got {delta!r}")
    if noise_multiplier == 0:
        return math.inf
    if _exceeded(0.0, noise_multiplier) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while _exceeded(high, noise_multiplier) > delta:
        low, high = high, 2.0 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if _exceeded(middle, noise_multiplier) > delta:
            low = middle
        else:
            high = middle
    return high


def _exceeded(epsilon: float, s: float) -> float:
    """Probability by which epsilon is exceeded; logarithms keep ``exp(epsilon)`` in range."""
    from scipy.special import log_ndtr  # only where there is noise: a site's process starts often

    likely = float(log_ndtr(1 / (2 * s) - epsilon * s))
    unlikely = epsilon + float(log_ndtr(-1 / (2 * s) - epsilon * s))
    return math.exp(likely) - math.exp(min(unlikely, likely))
