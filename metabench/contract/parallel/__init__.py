"""Episodes of an outer step at once: by vmap, on threads, in several processes."""
