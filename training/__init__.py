"""Makes the built-in model: trains a small glm4v_moe network from nothing and exports it."""
