"""What the program finds around it: hardware, optional packages, the code that it is itself."""
