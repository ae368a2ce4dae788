"""The paper's networks: survival probabilities, gates, residual blocks, and their timm registration."""
