"""Adam steps on the texts of a support, several with each gradient. Imports ``ttft.model``."""
