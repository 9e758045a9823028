"""Keeps the experts equally busy, without a loss term: the routers' biases follow the load.

After each step the bias of an expert that had less than its share of tokens rises by a fixed rate,
that of one that had more falls. The bias takes part in choosing only, so no gradient is bent. (Wang
et al. 2024, "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts"; GLM-4.5's
e_score_correction_bias is trained so.)
"""

import torch
from torch import Tensor

from training.network import Network, Router


class Balance:
    """Biases and loads of all routers, each as one tensor [layers, experts]."""

    def __init__(self, network: Network) -> None:
        routers = [module for module in network.modules() if isinstance(module, Router)]
        self.names = [
            f"{name}.bias" for name, module in network.named_modules() if isinstance(module, Router)
        ]
        self.bias = torch.stack([router.bias for router in routers])
        self.average = self.bias.clone()
        self._load = torch.zeros_like(self.bias)
        for index, router in enumerate(routers):
            router.bias, router.load = self.bias[index], self._load[index]
        self._current = self.bias.clone()

    def start(self) -> None:
        """Before a step: count from zero."""
        self._load.zero_()

    def update(self, rate: float) -> None:
        """After a step: move each bias by `rate` towards an equal load."""
        self.bias += rate * torch.sign(self._load.mean(1, keepdim=True) - self._load)

    def update_average(self, decay: float) -> None:
        """As the weights' average."""
        self.average.lerp_(self.bias, 1.0 - decay)

    def use_average(self) -> None:
        """Let the network route by the average."""
        self._current.copy_(self.bias)
        self.bias.copy_(self.average)

    def use_current(self) -> None:
        """And by the current biases again."""
        self.bias.copy_(self._current)

    def imbalance(self) -> Tensor:
        """Busiest expert's load over the mean, in the step just made: the worst layer's."""
        return (self._load.amax(1) / self._load.mean(1).clamp(min=1e-9)).max()
