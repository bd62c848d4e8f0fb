"""The generic part of S-TEC: actions, inverse models, losses, objective, training and probing. Knows no modality."""
