"""Local unlearning: the reference, objectives, stopping rules and the forget level."""
