"""Learning without backpropagation: rules (network, state, target, sites) -> (loss, gradients)."""

from attractor_lib.learning.rules import Gradients, closed_form, energy_rule, prediction_rule

__all__ = ["Gradients", "closed_form", "energy_rule", "prediction_rule"]
