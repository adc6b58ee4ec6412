"""Problems made of a user's own model and data; augmentations that they share with tasks."""
