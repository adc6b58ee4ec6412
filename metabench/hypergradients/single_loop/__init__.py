"""Methods that take one or a few minibatch steps of every level at a time, and solve none."""
