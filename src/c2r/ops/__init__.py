"""The floor: tensor operations with plain torch references and no knowledge of models."""
