"""Tasks of images that several data sets or laws share."""
