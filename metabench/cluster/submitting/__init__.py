"""From a plan to jobs in the queue: what they need, what speaks against it, the code they run."""
