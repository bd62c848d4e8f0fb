"""Self-supervised learning through efference copies (Scherr, Guo, Moraitis, NeurIPS 2022)."""

__version__ = "0.1.0"  # pyproject.toml reads it here
