"""Language models as pure functions of tensors."""
