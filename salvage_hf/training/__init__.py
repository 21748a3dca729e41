"""Training of classifiers and explainers: tasks say what is learned, the loop says how, checkpoints keep it."""
