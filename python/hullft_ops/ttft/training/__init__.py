"""Adam steps on texts, several with each gradient: in one model, or in many adapters at once."""
