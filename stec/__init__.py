"""Self-supervised learning through efference copies (Scherr, Guo, Moraitis, NeurIPS 2022)."""
