"""Language models as pure functions of tensors, what grades them, and what finds passages."""
